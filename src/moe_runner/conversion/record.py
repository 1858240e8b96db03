"""The record of a conversion: what was replaced, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from moe_runner.backbones.sites import FFNSite, SparseSite
from moe_runner.conversion.counts import count_parameters
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.options.method import Method
from moe_runner.options.protocol import Protocol

Site = FFNSite | SparseSite
ATTRIBUTE = "moe_runner_conversion"  # where a converted model keeps its Conversion
MOST_PIECES = 6  # ranges of layers that a report names one by one


@dataclass
class Conversion:
    """What `convert` did to a model.

    Args:
        method: how.
        protocol: equations or reference behaviour.
        sites: the converted sites.
        layers: the MoE layers, in the order of the sites.
        blocks: names of all transformer blocks of the model.
        dense_parameters: of the model before.
        dense_flops: per token before, see `flops_per_token`.
        parameters: of the model after.
        active_parameters: that take part in one token, after.
        flops: per token after.
        inertia: of the clusters, and of random groups, mean over the sites; None: not clustered.
        kept: sparse layers of a Switch Transformer that are still the library's.
    """

    method: Method
    protocol: Protocol
    sites: list[Site]
    layers: list[MoEFeedForward]
    blocks: list[str]
    dense_parameters: int
    dense_flops: int
    parameters: int
    active_parameters: int
    flops: int
    inertia: tuple[float, float] | None = None
    kept: list[SparseSite] = field(default_factory=list)

    def new_parameters(self, model: nn.Module) -> set[str]:
        """Name the parameters that the pretrained model does not have.

        The neurons of EMoE and the experts and routers of a Switch Transformer are its own.
        """
        found = set()
        for site in self.sites:
            sparse = isinstance(site, SparseSite)
            pretrained = {"experts", "router"} if sparse else self.method.pretrained_parts
            for name, _ in model.named_parameters():
                if name.startswith(f"{site.slot}."):
                    part = name[len(site.slot) + 1 :].partition(".")[0]
                    if part not in pretrained:
                        found.add(name)
        return found

    def own_lr_scales(self, model: nn.Module) -> dict[str, float]:
        """Name the parameters that learn at another rate than their like, and the factor.

        They are those of modules with an attribute `lr_scale`: of HyperExperts.
        """
        found: dict[str, float] = {}
        for name, module in model.named_modules():
            if isinstance(scale := getattr(module, "lr_scale", None), float):
                found |= {f"{name}.{own}": scale for own, _ in module.named_parameters()}
        names = {name for name, _ in model.named_parameters()}  # a shared parameter is there once
        return {name: scale for name, scale in found.items() if name in names}

    def converted_blocks(self) -> list[str]:
        """Name the transformer blocks that have an MoE layer."""
        return list(dict.fromkeys(site.block for site in self.sites))

    def report(self, model: nn.Module) -> str:
        """Say in a few lines what was converted.

        Args:
            model: the converted model, with what trains already set.
        """
        if not self.layers:
            return f"{self.method.name}: no layer converted, {self.parameters:,} parameters"
        layer = self.layers[0]
        num_experts, size, _ = layer.experts.keys.shape
        places = ", ".join(
            f"{stack} {spans([site.layer for site in self.sites if site.stack == stack])}"
            for stack in dict.fromkeys(site.stack for site in self.sites)
        )
        trainable = count_parameters(model, trainable=True)
        lines = [
            f"{self.method.name}: {places}: {num_experts} experts of {size} neurons, "
            f"{layer.selected()} per token",
            f"parameters {self.dense_parameters:,} -> {self.parameters:,} "
            f"({self.active_parameters:,} active per token, {trainable:,} train); "
            f"FLOPs per token {self.dense_flops:,} -> {self.flops:,}",
        ]
        if self.inertia is not None:
            own, random = self.inertia
            lines.append(
                f"clusters: inertia {own:.1f}, random groups {random:.1f} "
                f"({100 * (own / random - 1):+.1f}%)"
            )
        return "\n".join(lines)


def spans(numbers: Sequence[int]) -> str:
    """Write ascending whole numbers in short: 0-3, 8, 10; of many: 0, 2, 4, ..., 58 (30 layers)."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    pieces = ["-".join(map(str, span)) for span in found]
    if len(pieces) > MOST_PIECES:
        pieces = [*pieces[:3], "...", f"{pieces[-1]} ({len(numbers)} layers)"]
    return ", ".join(pieces)


def conversion_of(model: nn.Module) -> Conversion | None:
    """Find what `convert` did to a model; None if it was not converted."""
    return getattr(model, ATTRIBUTE, None)
