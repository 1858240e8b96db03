"""EMoE-learn's options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from moe_runner.methods.checks import cluster_problems, later_of_cosine, top_k_problems
from moe_runner.options.fields import Count, NotNegative, Seed, seldom
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Backend, Expansion, Method
from moe_runner.options.model import Model


@dataclass(frozen=True, kw_only=True)
class EMoELearn(Method):
    """Split pretrained feed-forward networks into clusters, routed by a learned cosine router.

    Source: EMoE, arXiv:2310.10908, ablation EMoE-learn.
    """

    name: Literal["emoe_learn"] = "emoe_learn"
    num_experts: int = 64  # must divide d_ff
    top_k: int = 16
    layers: str | tuple[int, ...] = "last-even:1"
    clustering: Literal["constrained_kmeans", "random"] = "constrained_kmeans"
    cluster_seed: Seed | None = 0  # None: the run's own seed
    router_dim: Count = 256  # the router compares tokens and experts in so many dimensions
    balance_loss: NotNegative = 0.005  # times CV^2 of importance plus CV^2 of load
    backend: Backend = seldom("auto", "kernel")

    pretrained_parts: ClassVar[frozenset[str]] = frozenset({"experts"})
    tunes_outside_layers: ClassVar[bool] = True
    not_standard: ClassVar[str | None] = "a cosine router"

    @property
    def not_mergeable(self) -> str:
        """See `Method`."""
        return "method=emoe_learn cannot be merged: its learned router weighs the experts"

    def seeded(self, seed: int) -> Self:
        """See `Method`."""
        return self if self.cluster_seed is not None else replace(self, cluster_seed=seed)

    def problems(self, model: Model) -> list[str]:
        """See `Method`."""
        return [
            *cluster_problems(self.num_experts, model),
            *top_k_problems(self.top_k, self.num_experts),
            *layer_problems("method.layers", self.layers, model),
        ]

    def expansion(self) -> Expansion:
        """See `Method`."""
        return Expansion(active=self.top_k / self.num_experts)

    def expert_size(self, model: Model) -> int:
        """See `Method`; its own part of the neurons."""
        return model.d_ff // self.num_experts

    def later_protocol(self, model: Model) -> frozenset[str]:
        """See `Method`."""
        return super().later_protocol(model) | later_of_cosine(self.top_k, model)


METHOD = EMoELearn
