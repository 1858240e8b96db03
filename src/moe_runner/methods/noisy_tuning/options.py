"""NoisyTune's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.options.fields import NotNegative
from moe_runner.options.method import Method


@dataclass(frozen=True, kw_only=True)
class NoisyTuning(Method):
    """Perturb the pretrained weights before tuning: w + U(-noise/2, noise/2) * std(w).

    Source: NoisyTune, arXiv:2202.12024, eq. 1; a baseline of EMoE.
    """

    name: Literal["noisy_tuning"] = "noisy_tuning"
    noise: NotNegative = 0.15

    converts: ClassVar[bool] = False
    perturbs: ClassVar[bool] = True
    not_mergeable: ClassVar[None] = None


METHOD = NoisyTuning
