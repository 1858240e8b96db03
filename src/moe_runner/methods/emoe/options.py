"""EMoE's options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from moe_runner.methods.checks import cluster_problems, top_k_problems
from moe_runner.options.errors import show
from moe_runner.options.fields import Seed, later, seldom
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Backend, Expansion, Method, Phase
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES


@dataclass(frozen=True, kw_only=True)
class EMoE(Method):
    """Split pretrained feed-forward networks into experts of similar neurons.

    Source: EMoE, arXiv:2310.10908, section 3.
    """

    name: Literal["emoe"] = "emoe"
    num_experts: int = 64  # must divide d_ff
    top_k: int = 16  # experts per token; equal to num_experts: the dense model
    layers: str | tuple[int, ...] = "last-even:1"  # see select_layers
    clustering: Literal["constrained_kmeans", "random"] = "constrained_kmeans"
    cluster_seed: Seed | None = 0  # None: the run's own seed
    select: Literal["top", "bottom", "not_top"] = "top"
    gate_on: Literal["gate", "up", "up_abs", "inter", "inter_abs"] = "gate"  # others: gated FFNs
    normalize_gate: bool = later(False)  # gate vectors of length 1
    convert_at: Phase = later("both")  # EMoE2LoRA, LoRA2EMoE, EMoE
    backend: Backend = seldom("auto", "kernel")

    pretrained_parts: ClassVar[frozenset[str]] = frozenset({"experts"})
    tunes_outside_layers: ClassVar[bool] = True
    not_mergeable: ClassVar[None] = None
    not_standard: ClassVar[str | None] = "an avg-k router, whose experts are summed without weights"

    @property
    def converted_at(self) -> Phase:
        """See `Method`."""
        return self.convert_at

    @property
    def computes_all(self) -> bool:
        """Whether the gate needs the activation of every neuron."""
        return self.gate_on in ("inter", "inter_abs")

    def seeded(self, seed: int) -> Self:
        """See `Method`."""
        return self if self.cluster_seed is not None else replace(self, cluster_seed=seed)

    def problems(self, model: Model) -> list[str]:
        """See `Method`."""
        return [
            *cluster_problems(self.num_experts, model),
            *top_k_problems(self.top_k, self.num_experts),
            *self.gate_problems(model),
            *layer_problems("method.layers", self.layers, model),
        ]

    def gate_problems(self, model: Model) -> list[str]:
        """Check selection and gate source."""
        problems = []
        if self.select == "not_top" and self.top_k == self.num_experts:
            problems.append(
                f"method.select=not_top leaves no expert with method.top_k={self.top_k} of "
                f"{self.num_experts}; use a smaller top_k"
            )
        if self.gate_on != "gate" and not model.gated:
            problems.append(
                f"method.gate_on={self.gate_on} needs a gated FFN and model={model.name} has none; "
                "use method.gate_on=gate"
            )
        if self.computes_all and self.backend not in ("auto", "masked"):
            problems.append(
                f"method.gate_on={self.gate_on} computes every neuron and has no back end "
                f"`{self.backend}`; use method.backend=masked"
            )
        if self.gate_on not in ("gate", "up") and self.normalize_gate:
            problems.append(
                f"method.normalize_gate=true does not go with method.gate_on={self.gate_on}, which "
                "has no gate vectors; use method.normalize_gate=false"
            )
        return problems

    def expert_size(self, model: Model) -> int:
        """See `Method`; its own part of the neurons."""
        return model.d_ff // self.num_experts

    def later_protocol(self, model: Model) -> frozenset[str]:
        """See `Method`."""
        if not FAMILIES[model.family].reference_extras:
            return super().later_protocol(model)
        own = {"load_threshold_on"} | ({"normalize_token"} if self.normalize_gate else set())
        return super().later_protocol(model) | own

    def protocol_problems(self, protocol: Protocol) -> list[str]:
        """See `Method`."""
        if protocol.capacity_factor is None or self.select == "top":
            return []
        return [
            f"protocol.capacity_factor={show(protocol.capacity_factor)} goes with "
            "method.select=top only: priorities are those of the best experts"
        ]

    def export_problems(self, export: str) -> list[str]:
        """See `Method`; what is merged or converted after tuning ends in one form."""
        if export == "none" or self.convert_at == "both":
            return super().export_problems(export)
        form = "dense" if self.convert_at == "train" else "moe"
        if export == form:
            return []
        return [
            f"export={export}: method.convert_at={self.convert_at} ends as {form}; "
            f"use export={form}"
        ]

    def expansion(self) -> Expansion:
        """See `Method`."""
        return Expansion(active=self.top_k / self.num_experts)


METHOD = EMoE
