"""Options of `moe` with a shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.methods.moe.options import MoE
from moe_runner.options.method import Expansion


@dataclass(frozen=True, kw_only=True)
class MoEShare(MoE):
    """`moe` with one more expert that every token passes: the mean of both.

    Source: MoE-Share in HyperMoE, arXiv:2402.12656, which does not define it: this form is ours.
    """

    name: Literal["moe_share"] = "moe_share"  # type: ignore[assignment]

    not_standard: ClassVar[str | None] = "an expert that every token passes, without a gate"

    def expansion(self) -> Expansion:
        """See `Method`: one expert more, which every token passes."""
        own = super().expansion()
        return Expansion(copies=own.copies + 1, active=own.active + 1)


METHOD = MoEShare
