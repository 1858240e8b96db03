"""Options of the method `toy`: copies of an FFN behind a plain linear router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_runner.methods.checks import top_k_problems
from moe_runner.options.fields import Count, seldom
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Backend, Expansion, Method
from moe_runner.options.model import Model


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Copy the FFN, choose by a linear router, weigh by the softmax of the chosen scores."""

    name: Literal["toy"] = "toy"
    num_experts: Count = 4
    top_k: Count = 2  # experts per token
    layers: str | tuple[int, ...] = "last:1"
    backend: Backend = seldom("auto", "kernel")  # of the experts; the kernel has sums of its own

    def problems(self, model: Model) -> list[str]:
        """See `Method`."""
        return [
            *top_k_problems(self.top_k, self.num_experts),
            *layer_problems("method.layers", self.layers, model),
        ]

    def expansion(self) -> Expansion:
        """See `Method`."""
        return Expansion(copies=self.num_experts, active=self.top_k)
