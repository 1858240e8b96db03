"""GMoE's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.methods.checks import count_problems, later_of_cosine, top_k_problems
from moe_runner.options.fields import Count, NotNegative, seldom
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Backend, Expansion, Method
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES


@dataclass(frozen=True, kw_only=True)
class GMoE(Method):
    """Copy pretrained feed-forward networks and route by a learned cosine router.

    Source: GMoE, arXiv:2206.04046, as EMoE's baseline.
    """

    name: Literal["gmoe"] = "gmoe"
    num_experts: int = 8
    top_k: int = 2
    layers: str | tuple[int, ...] = "last-even:1"
    router_dim: Count = 256
    balance_loss: NotNegative = 0.005  # times CV^2 of importance plus CV^2 of load
    backend: Backend = seldom("auto", "kernel")

    tunes_outside_layers: ClassVar[bool] = True
    not_standard: ClassVar[str | None] = "a cosine router"

    def problems(self, model: Model) -> list[str]:
        """See `Method`."""
        return [
            *count_problems(self.num_experts),
            *top_k_problems(self.top_k, self.num_experts),
            *layer_problems("method.layers", self.layers, model),
        ]

    def expansion(self) -> Expansion:
        """See `Method`."""
        return Expansion(copies=self.num_experts, active=self.top_k)

    def later_protocol(self, model: Model) -> frozenset[str]:
        """See `Method`."""
        found = super().later_protocol(model) | later_of_cosine(self.top_k, model)
        vision = FAMILIES[model.family].dropout_after_activation
        return found | {"whole_vision_bias"} if vision and self.top_k > 1 else found

    def trains_whole_blocks(self, protocol: Protocol) -> bool:
        """See `Method`."""
        return protocol.train_gmoe_block


METHOD = GMoE
