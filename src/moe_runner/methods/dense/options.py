"""The dense baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.options.method import Method


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Keep the pretrained feed-forward networks: vanilla fine-tuning, the baseline."""

    name: Literal["dense"] = "dense"

    converts: ClassVar[bool] = False
    not_mergeable: ClassVar[None] = None


METHOD = Dense
