"""Options of `moe` with plain adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.methods.moe.options import NUM_EXPERTS, MoE
from moe_runner.options.fields import Count
from moe_runner.options.model import Model


@dataclass(frozen=True, kw_only=True)
class MoEAdapter(MoE):
    """`moe` with plain adapters of the HyperExpert's width: HyperMoE's parameter-matched control.

    Source: ours.
    """

    name: Literal["moe_adapter"] = "moe_adapter"  # type: ignore[assignment]
    width: Count = 64
    shared: bool = False  # one adapter for all tokens instead of one per expert

    not_standard: ClassVar[str | None] = "adapters beside the experts"

    def added_parameters(self, model: Model, layers: int) -> int:
        """See `Method`."""
        adapters = 1 if self.shared else self.num_experts or NUM_EXPERTS
        size = 2 * self.width * model.d_model + self.width + model.d_model
        return layers * adapters * size


METHOD = MoEAdapter
