"""Options of sparse upcycling, HyperMoE's baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.methods.checks import count_problems, top_k_problems
from moe_runner.options.fields import NotNegative, seldom
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Backend, Expansion, Method
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES

NUM_EXPERTS = 8  # where no number is given: HyperMoE's GPT-2, and the Switch Transformers here


@dataclass(frozen=True, kw_only=True)
class MoE(Method):
    """Copy pretrained feed-forward networks (sparse upcycling), noisy top-k router.

    The sparse layers of a Switch Transformer keep their experts and router.

    Source: sparse upcycling, arXiv:2212.05055; HyperMoE's baseline, arXiv:2402.12656.
    """

    name: Literal["moe"] = "moe"
    num_experts: int | None = None  # None: NUM_EXPERTS, or a Switch Transformer's own
    top_k: int = 1
    layers: str | tuple[int, ...] = "all"
    balance_loss: NotNegative | None = None  # None: 0.01, or a Switch Transformer's own coefficient
    backend: Backend = seldom("auto", "kernel")

    takes_sparse: ClassVar[bool] = True
    not_standard: ClassVar[str | None] = None

    def problems(self, model: Model) -> list[str]:
        """See `Method`."""
        problems = []
        if self.num_experts is not None and FAMILIES[model.family].reads_experts:
            problems.append(
                f"method.num_experts={self.num_experts} cannot be chosen for model={model.name}, "
                "whose experts are pretrained; use method.num_experts=null"
            )
        num_experts = NUM_EXPERTS if self.num_experts is None else self.num_experts
        return [
            *problems,
            *count_problems(num_experts),
            *top_k_problems(self.top_k, num_experts),
            *layer_problems("method.layers", self.layers, model),
        ]

    def expansion(self) -> Expansion:
        """See `Method`."""
        return Expansion(copies=self.num_experts or NUM_EXPERTS, active=self.top_k)

    def tuned_under(self, protocol: Protocol) -> Protocol:
        """See `Method`: HyperMoE's code has no LoRA, hence no extras beside it."""
        return Protocol()


METHOD = MoE
