"""Convert a model in place, say what changed, and merge it back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_runner.backbones.finder import find_sites, find_sparse_sites
from moe_runner.backbones.sites import FFNSite, SparseSite
from moe_runner.config import (
    Clustered,
    ConfigError,
    Dense,
    EMoE,
    GMoE,
    HyperMoE,
    Method,
    MoE,
    NoisyTuning,
    Protocol,
    not_mergeable,
    select_layers,
)
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.methods.emoe import assign_neurons, emoe_layer, emoe_learn_layer
from moe_runner.methods.gmoe import gmoe_layer
from moe_runner.methods.library_routers import follow_protocol, release, router_losses
from moe_runner.methods.noisy_tuning import perturb
from moe_runner.methods.reference_code import protocol_of_family
from moe_runner.methods.upcycling import (
    NUM_COPIES,
    make_beside,
    make_hypernet,
    switch_layer,
    upcycled_layer,
)
from moe_runner.moe.clustering import inertia, random_clusters
from moe_runner.moe.experts import FFN
from moe_runner.moe.hypernet import HyperNetwork
from moe_runner.moe.layer import MoEFeedForward

Site = FFNSite | SparseSite
ATTRIBUTE = "moe_runner_conversion"  # where a converted model keeps its Conversion
HOOKS = "moe_runner_hooks"  # and the handles of its hooks
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
        own = {"experts", "router"} if isinstance(self.method, MoE) else {"experts"}
        found = set()
        for site in self.sites:
            pretrained = isinstance(site, SparseSite) or isinstance(self.method, Clustered)
            for name, _ in model.named_parameters():
                if name.startswith(f"{site.slot}."):
                    part = name[len(site.slot) + 1 :].partition(".")[0]
                    if not (pretrained and part in own):
                        found.add(name)
        return found

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


def convert(
    model: PreTrainedModel,
    method: Method,
    *,
    protocol: Protocol | None = None,
    cache: Path | None = None,
    assignments: Mapping[str, Tensor] | None = None,
) -> Conversion:
    """Turn the FFNs of a pretrained model into experts, in place.

    New weights (routers, adapters, hypernetworks) come from torch's global generator: seed before.

    Args:
        model: of a supported family, bare or with a head; not yet converted, FFNs without LoRA.
        method: what to make of which layers.
        protocol: what to do beside the equations; None: nothing.
        cache: folder that remembers clusters; None: they are made anew.
        assignments: the expert of each neuron (int64, (d_ff,)) by site key, instead of clustering.

    Returns:
        What was replaced. It stays attached to the model, for `merge`.

    Raises:
        ConfigError: if the method does not fit the model's sizes; the model is unchanged then.
        ValueError: if the family is not supported, the model is converted already, or the
            assignments are not those of the chosen sites.
    """
    if conversion_of(model) is not None:
        raise ValueError("the model is converted already; merge it first")
    protocol = protocol or Protocol()
    all_sparse = find_sparse_sites(model)
    candidates: list[Site] = [*find_sites(model), *all_sparse]
    blocks = list(dict.fromkeys(site.block for site in candidates))
    before = count_parameters(model), flops_per_token(model)
    sites: list[Site] = []
    layers: list[MoEFeedForward] = []
    inertias = None
    if isinstance(method, NoisyTuning):
        perturb(model, method)
    elif not isinstance(method, Dense):
        sparse = all_sparse if isinstance(method, MoE) else []
        sites = choose_sites(sparse or find_sites(model), method.layers)
        if isinstance(method, Clustered):
            groups = group_neurons(model, method, protocol, sites, ClusterCache(cache), assignments)
            if assignments is None:
                inertias = mean_inertia(model, sites, groups)
            layers = clustered_layers(model, method, protocol, sites, groups)
        else:
            layers = copied_layers(model, method, protocol, sites)
        for site, layer in zip(sites, layers, strict=True):
            site.replace(model, layer.train(model.training))
    replaced = {site.slot for site in sites}
    kept = [site for site in all_sparse if site.slot not in replaced]
    for site in kept:
        keep(model, follow_protocol(model, site, protocol))
    if sites or kept:
        hand_over_masks(model)
    touch_idle_experts(model)
    conversion = Conversion(
        method=method,
        protocol=protocol,
        sites=sites,
        layers=layers,
        blocks=blocks,
        dense_parameters=before[0],
        dense_flops=before[1],
        parameters=count_parameters(model),
        active_parameters=active_parameters(model),
        flops=flops_per_token(model),
        inertia=inertias,
        kept=kept,
    )
    setattr(model, ATTRIBUTE, conversion)
    return conversion


def group_neurons(
    model: PreTrainedModel,
    method: Clustered,
    protocol: Protocol,
    sites: Sequence[Site],
    clusters: ClusterCache,
    assignments: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Check the sizes and find the expert of each neuron, by site key.

    Raises:
        ConfigError: if the method does not fit.
        ValueError: if the assignments are not those of the sites.
    """
    ffns = {site.key: site.read(model) for site in sites if isinstance(site, FFNSite)}
    check_fits({key: ffn.keys.shape[0] for key, ffn in ffns.items()}, method, assignments)
    if assignments is not None:
        return dict(assignments)
    return assign_neurons(ffns, method, protocol, clusters)


def mean_inertia(
    model: PreTrainedModel, sites: Sequence[Site], groups: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Measure how alike the neurons of an expert are, and those of random groups; site means."""
    own = random = 0.0
    for site in sites:
        assert isinstance(site, FFNSite)
        keys_FD = site.read(model).keys.detach().float().cpu().numpy()
        expert_of_neuron = groups[site.key].numpy()
        shuffled = random_clusters(keys_FD, int(expert_of_neuron.max()) + 1, seed=0)
        own += inertia(keys_FD, expert_of_neuron) / len(sites)
        random += inertia(keys_FD, shuffled) / len(sites)
    return own, random


def clustered_layers(
    model: PreTrainedModel,
    method: Clustered,
    protocol: Protocol,
    sites: Sequence[Site],
    groups: Mapping[str, Tensor],
) -> list[MoEFeedForward]:
    """Build the layers whose experts are groups of neurons."""
    layers = []
    for site in sites:
        assert isinstance(site, FFNSite)
        own = protocol_of_family(protocol, site.family)
        ffn = site.read(model)
        if isinstance(method, EMoE):
            layers.append(emoe_layer(ffn, method, groups[site.key], site.family, own))
        else:
            layers.append(emoe_learn_layer(ffn, method, groups[site.key], site.family, own))
    return layers


def copied_layers(
    model: PreTrainedModel, method: GMoE | MoE, protocol: Protocol, sites: Sequence[Site]
) -> list[MoEFeedForward]:
    """Build the layers whose experts are whole FFNs: copies, or those of a Switch Transformer.

    Raises:
        ConfigError: if the number of experts and top_k do not fit.
    """
    read = {site.key: site.read(model) for site in sites}
    check_experts(method, [r for r in read.values() if isinstance(r, list)])
    hypernets: dict[str, HyperNetwork] = {}
    counts: dict[str, int] = {}
    layers = []
    for site in sites:
        found = read[site.key]
        ffn = found[0] if isinstance(found, list) else found
        if isinstance(method, GMoE):
            own = protocol_of_family(protocol, site.family)
            layers.append(gmoe_layer(ffn, method, site.family, own))
            continue
        owner = site.stack if protocol.hypernet_per_stack else ""
        if isinstance(method, HyperMoE) and owner not in hypernets:
            sharing = [s for s in sites if owner in ("", s.stack)]
            hypernets[owner] = make_hypernet(method, ffn.keys.shape[1], len(sharing))
        index = counts[owner] = counts.get(owner, -1) + 1
        num_experts = len(found) if isinstance(found, list) else method.num_experts or NUM_COPIES
        beside = make_beside(method, ffn, num_experts, index, hypernets.get(owner))
        if isinstance(found, list):
            assert isinstance(site, SparseSite)
            coefficients = router_losses(model.config)
            weight = site.router_weight(model)
            layers.append(switch_layer(found, weight, coefficients, method, protocol, beside))
        else:
            layers.append(upcycled_layer(ffn, method, protocol, beside))
    return layers


def merge(model: PreTrainedModel) -> None:
    """Turn a converted model back into the dense one, in place: its class, names, weight order.

    Bit-exact: neurons return to their original index, and nothing is computed. (Only where
    `protocol.split_output_bias` gave every expert a bias b_i of its own, it becomes k mean(b_i).)

    Args:
        model: converted by `convert` with EMoE.

    Raises:
        ValueError: if the model is not converted, or its method has no dense form.
    """
    conversion = conversion_of(model)
    if conversion is None:
        raise ValueError("the model is not converted; there is nothing to merge")
    if not isinstance(conversion.method, Dense | NoisyTuning | EMoE):
        raise ValueError(not_mergeable(conversion.method))
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        assert isinstance(site, FFNSite)
        site.restore(model, layer.experts.dense(layer.top_k))
    for site in conversion.kept:
        release(model, site)
    for handle in model.__dict__.pop(HOOKS, []):
        handle.remove()
    delattr(model, ATTRIBUTE)


def conversion_of(model: nn.Module) -> Conversion | None:
    """Find what `convert` did to a model; None if it was not converted."""
    return getattr(model, ATTRIBUTE, None)


def choose_sites(sites: Sequence[Site], rule: str | Sequence[int]) -> list[Site]:
    """Apply a layer rule to each stack (an encoder-decoder has two).

    Layers are counted among the sites: in a Switch Transformer only some of the blocks have one.

    Args:
        sites: all sites of a model.
        rule: see `config.select_layers`.

    Returns:
        The chosen sites in their order.

    Raises:
        ConfigError: if the rule does not fit the number of layers.
    """
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.stack, []).append(site)
    try:
        return [own[i] for own in stacks.values() for i in select_layers(rule, len(own))]
    except ValueError as error:
        raise ConfigError(f"method.layers={error}") from None


def check_fits(
    sizes: Mapping[str, int], method: Clustered, assignments: Mapping[str, Tensor] | None
) -> None:
    """Check the sizes before anything is replaced.

    Args:
        sizes: d_ff by site key.
        method: what to make of them.
        assignments: see `convert`.

    Raises:
        ConfigError: if the method does not fit, one line per problem.
        ValueError: if the assignments are not those of the sites.
    """
    problems = [
        f"num_experts={method.num_experts} does not divide d_ff={d_ff}"
        for d_ff in dict.fromkeys(sizes.values())
        if method.num_experts < 1 or d_ff % method.num_experts
    ]
    if not 1 <= method.top_k <= method.num_experts:
        problems.append(f"top_k={method.top_k} does not fit num_experts={method.num_experts}")
    if problems:
        raise ConfigError(*problems)
    if assignments is None:
        return
    if odd := sizes.keys() ^ assignments.keys():
        raise ValueError(f"the assignments are not those of the sites: {', '.join(sorted(odd))}")
    for key, d_ff in sizes.items():
        load = torch.bincount(assignments[key], minlength=method.num_experts)
        if len(assignments[key]) != d_ff or set(load.tolist()) != {d_ff // method.num_experts}:
            raise ValueError(
                f"the assignment of {key} does not share {d_ff} neurons equally among "
                f"{method.num_experts} experts"
            )


def check_experts(method: GMoE | MoE, given: Sequence[Sequence[FFN]]) -> None:
    """Check the number of experts of a method before anything is replaced.

    Args:
        method: what to make of the sites.
        given: the experts of each site that has its own.

    Raises:
        ConfigError: if the method does not fit.
    """
    num_experts = method.num_experts
    if given and num_experts is not None:
        raise ConfigError(
            f"num_experts={num_experts} cannot be chosen: the model has {len(given[0])} experts of "
            "its own; use null"
        )
    if num_experts is None:
        num_experts = len(given[0]) if given else NUM_COPIES
    if num_experts < 1 or not 1 <= method.top_k <= num_experts:
        raise ConfigError(f"top_k={method.top_k} does not fit num_experts={num_experts}")


def hand_over_masks(model: PreTrainedModel) -> None:
    """Let every MoE layer know which positions are padding, by one pre-hook on the model.

    A replaced FFN never sees the attention mask, and statistics must leave padding out. The hook is
    on the whole model, so it must be called through `model(...)`; `generate` calls an encoder by
    itself, which has a hook of its own. A decoder without a mask has that of its labels.
    """
    parameters = list(inspect.signature(model.forward).parameters)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        conversion = conversion_of(module)  # of this model, which may be a copy of the first
        if conversion is None:
            return
        assert isinstance(module, PreTrainedModel)
        pairs: list[tuple[Site, Any]] = [*zip(conversion.sites, conversion.layers, strict=True)]
        for kept in conversion.kept:
            pairs.append((kept, module.get_submodule(f"{kept.slot}.router")))
        own = given.get("decoder_attention_mask")
        if own is None and given.get("labels") is not None:
            own = given["labels"] != -100
        for site, layer in pairs:
            decodes = module.config.is_encoder_decoder and site.stack == "decoder"
            layer.attention_mask = own if decodes else given.get("attention_mask")

    keep(model, model.register_forward_pre_hook(hook, with_kwargs=True))
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        keep(model, encoder.register_forward_pre_hook(hand_over_own_mask, with_kwargs=True))


def hand_over_own_mask(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the MoE layers of an encoder know its mask."""
    if "attention_mask" in kwargs:
        for layer in encoder.modules():
            if hasattr(layer, "attention_mask"):
                layer.attention_mask = kwargs["attention_mask"]


def touch_idle_experts(model: PreTrainedModel) -> None:
    """Give the experts that a Switch Transformer has kept a gradient when no token is theirs: zero.

    So have those of our layers. The library leaves them out of the graph, and data-parallel
    training waits for the gradient of every parameter.
    """
    for module in library_experts(model):
        keep(model, module.register_forward_hook(touch_parameters))


def touch_parameters(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Add nothing to an output, in such a way that it depends on every parameter of the module."""
    firsts = [p.flatten()[0] for p in module.parameters() if p.requires_grad]
    return output + 0.0 * torch.stack(firsts).sum() if firsts else output


def library_experts(model: nn.Module) -> list[nn.ModuleDict]:
    """List the experts of a Switch Transformer's own sparse layers, which were not converted."""
    return [m for m in model.modules() if isinstance(m, nn.ModuleDict) and "expert_0" in m]


def keep(model: nn.Module, handle: RemovableHandle) -> None:
    """Remember a hook, for `merge` to remove it."""
    model.__dict__.setdefault(HOOKS, []).append(handle)


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the parameters of a model, tied ones once; only those that train if asked."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def active_parameters(model: nn.Module) -> int:
    """Count the parameters that take part in one token: all but its unselected experts."""
    total = count_parameters(model) - sum(layer.idle_parameters() for layer in moe_layers(model))
    for module in library_experts(model):  # one expert each
        own = sum(p.numel() for p in module.parameters())
        total -= own - own // len(module)
    return total


def flops_per_token(model: nn.Module) -> int:
    """Count the floating point operations of a token's forward pass in products with weights.

    Two per weight. Attention scores, which grow with the length, and embeddings are left out; in
    an encoder-decoder the token passes both stacks. Experts count by what is selected (`masked`
    computes more than that), the router's product included.
    """
    total = 0
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, MoEFeedForward):
            inside.append(f"{name}.")
            total += module.flops_per_token()
        elif isinstance(module, nn.ModuleDict) and "expert_0" in module:  # a Switch Transformer's
            inside.append(f"{name}.")
            total += 2 * sum(p.numel() for p in module["expert_0"].parameters())
        elif isinstance(module, (nn.Linear, Conv1D)):
            total += 2 * module.weight.numel()
    return total


def moe_layers(model: nn.Module) -> list[MoEFeedForward]:
    """List the MoE layers of a model in their order."""
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]
