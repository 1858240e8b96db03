"""HyperMoE's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_runner.methods.moe.options import NUM_EXPERTS, MoE
from moe_runner.options.fields import Count, Positive, later
from moe_runner.options.model import Model


@dataclass(frozen=True, kw_only=True)
class HyperMoE(MoE):
    """`moe` with a HyperExpert, generated from the embeddings of the unselected experts.

    Source: HyperMoE, arXiv:2402.12656.
    """

    name: Literal["hypermoe"] = "hypermoe"  # type: ignore[assignment]
    width: Count = 64  # r, of the HyperExpert
    embedding_dim: Count = 128  # of experts, selections and the hypernetwork
    layer_dim: Count = 10  # of the layer embedding
    aggregate: Literal["sum", "mean"] = "sum"  # over the unselected experts
    inside: bool = False  # multiply the HyperExpert by the router's weights
    # Of all that the HyperExperts are made from; auto: see `moe.hypernet.lr_scale`
    hypernet_lr_scale: Positive | Literal["auto"] = later("auto", neutral=1.0)

    not_standard: ClassVar[str | None] = "a HyperExpert beside the experts"

    def added_parameters(self, model: Model, layers: int) -> int:
        """See `Method`: the hypernetwork, which is there once, and each layer's embeddings."""
        hidden, generated = self.embedding_dim, 2 * self.width * model.d_model
        made = (hidden + 1) * (generated + self.width + model.d_model)
        read = (self.embedding_dim + self.layer_dim + 1) * hidden
        selection = 2 * (self.embedding_dim + 1) * self.embedding_dim  # M1, M2
        experts = (self.num_experts or NUM_EXPERTS) * self.embedding_dim
        return made + read + layers * (experts + selection + self.layer_dim)

    def later_protocol(self, model: Model) -> frozenset[str]:
        """See `Method`."""
        return super().later_protocol(model) | {"hypernet_start"}


METHOD = HyperMoE
