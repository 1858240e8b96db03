"""Convert a model in place, and merge it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from moe_runner.backbones.finder import find_sites, find_sparse_sites
from moe_runner.backbones.sites import FFNSite
from moe_runner.conversion.counts import active_parameters, count_parameters, flops_per_token
from moe_runner.conversion.hooks import (
    follow_passes,
    keep,
    remove_hooks,
    touch_idle_experts,
)
from moe_runner.conversion.library_routers import follow_protocol, release, router_losses
from moe_runner.conversion.record import ATTRIBUTE, Conversion, Site, conversion_of
from moe_runner.methods.building import OpenSite, PretrainedMixture, layers_module
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.alignment import fits_grouped, refusal
from moe_runner.moe.clustering import inertia, random_clusters
from moe_runner.moe.layer import Capacity, MoEFeedForward
from moe_runner.options.errors import ConfigError, show
from moe_runner.options.layers import select_layers
from moe_runner.options.method import Method
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES

TIED = "_tied_weights_keys"  # where transformers looks, in every module, for what to save once


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
    dense = find_sites(model)
    candidates: list[Site] = [*dense, *all_sparse]
    blocks = list(dict.fromkeys(site.block for site in candidates))
    before = count_parameters(model), flops_per_token(model)
    sites: list[Site] = []
    layers: list[MoEFeedForward] = []
    inertias = None
    if method.perturbs:
        layers_module(method).perturb(model, method)
    if method.converts:
        sparse = all_sparse if method.takes_sparse else []
        sites = choose_sites(sparse or dense, method.layer_rule)
        if not sites:
            raise ConfigError(
                f"method={method.name} finds no dense FFN in a model of type "
                f"{model.config.model_type}, whose layers are mixtures of experts already; use "
                "method=dense"
            )
        dropouts = [0.0] * len(sites)
        if protocol.residual_dropout == "experts":
            sites, dropouts = take_out_residual_dropout(model, sites)
        opened = [open_site(model, site, p) for site, p in zip(sites, dropouts, strict=True)]
        neurons = Neurons(ClusterCache(cache), assignments)
        layers = layers_module(method).build(opened, method, protocol, neurons)
        check_grouped(layers)
        check_chunks(model, sites, layers)
        if assignments is None:
            inertias = mean_inertia(opened, layers)
        del opened
        declare_shared(layers)
        for site, layer in zip(sites, layers, strict=True):
            site.replace(model, layer.train(model.training))
    replaced = {site.slot for site in sites}
    kept = [site for site in all_sparse if site.slot not in replaced]
    for site in kept:
        for handle in follow_protocol(model, site, protocol):
            keep(model, handle)
    if sites or kept:
        follow_passes(model)
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


def declare_shared(layers: Sequence[MoEFeedForward]) -> None:
    """Tell transformers which weights a layer shares with one before: a hypernetwork's.

    Its `save_pretrained`, which its Trainer calls at each checkpoint, refuses undeclared ones.
    """
    seen: set[Parameter] = set()
    for layer in layers:
        own = dict(layer.named_parameters())
        shared = {name: name for name, parameter in own.items() if parameter in seen}
        if shared:
            setattr(layer, TIED, shared)
        seen |= set(own.values())


def check_grouped(layers: Sequence[MoEFeedForward]) -> None:
    """Check the sizes of layers that are to be computed by `grouped_mm`.

    Raises:
        ConfigError: if one has others than torch's product takes.
    """
    for layer in layers:
        _, size, d_model = layer.experts.keys.shape
        in_bytes = layer.experts.keys.dtype.itemsize
        if layer.backend == "grouped_mm" and not fits_grouped(d_model, size, in_bytes):
            reason = refusal(d_model, size, in_bytes)
            raise ConfigError(f"backend=grouped_mm: {reason}; use backend=sorted or auto")


def check_chunks(
    model: PreTrainedModel, sites: Sequence[Site], layers: Sequence[MoEFeedForward]
) -> None:
    """Check that no block calls its FFN in pieces of a text where that would be another model.

    Auxiliary losses and capacities are those of a whole batch, and padding is known of one.

    Raises:
        ConfigError: if one does.
    """
    for site, layer in zip(sites, layers, strict=True):
        size = getattr(model.get_submodule(site.block), "chunk_size_feed_forward", 0)
        if size and (layer.losses.coefficients or layer.capacity != Capacity()):
            raise ConfigError(
                f"chunk_size_feed_forward={size} in the model's configuration: losses of the "
                "routers and capacities need whole texts; load the model with "
                "chunk_size_feed_forward=0"
            )


def take_out_residual_dropout(
    model: PreTrainedModel, sites: Sequence[Site]
) -> tuple[list[Site], list[float]]:
    """Switch off what drops the output of FFNs, where the authors' code has it elsewhere: GPT-2.

    HyperMoE's code drops the output of the experts, not that of the HyperExpert; EMoE's converted
    layer drops neither.

    Args:
        model: unchanged by this.
        sites: those to be converted.

    Returns:
        The sites, which switch it off while they are replaced; the probability of each, 0 where
        there is none.
    """
    changed: list[Site] = []
    dropouts = []
    for site in sites:
        row = FAMILIES.get(site.family)
        place = None if row is None else row.residual_dropout
        probability = 0.0
        if isinstance(site, FFNSite) and place is not None:
            name = f"{site.block}.{place}"
            probability = float(model.get_submodule(name).p)
            site = replace(site, settings=(*site.settings, (f"{name}.p", 0.0)))
        changed.append(site)
        dropouts.append(probability)
    return changed, dropouts


def open_site(model: PreTrainedModel, site: Site, residual_dropout: float = 0.0) -> OpenSite:
    """Read the weights of a site; `residual_dropout` see `OpenSite`."""
    if isinstance(site, FFNSite):
        ffn = site.read(model).of_one_dtype()
        return OpenSite(site.key, site.family, site.stack, ffn, residual_dropout)
    experts = [expert.of_one_dtype() for expert in site.read(model)]
    mixture = PretrainedMixture(experts, site.router_weight(model), router_losses(model.config))
    return OpenSite(site.key, site.family, site.stack, experts[0], mixture=mixture)


def mean_inertia(
    sites: Sequence[OpenSite], layers: Sequence[MoEFeedForward]
) -> tuple[float, float] | None:
    """Measure how alike the neurons of an expert are, and those of random groups.

    Args:
        sites: the dense networks.
        layers: made of them.

    Returns:
        Means over the sites; None where experts are no groups of neurons.
    """
    own = random = 0.0
    for site, layer in zip(sites, layers, strict=True):
        if layer.experts.expert_of_neuron is None:
            return None
        keys_FD = site.ffn.keys.detach().float().cpu().numpy()
        expert_of_neuron = layer.experts.expert_of_neuron.cpu().numpy()
        shuffled = random_clusters(keys_FD, int(expert_of_neuron.max()) + 1, seed=0)
        own += inertia(keys_FD, expert_of_neuron) / len(sites)
        random += inertia(keys_FD, shuffled) / len(sites)
    return own, random


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
    if conversion.method.not_mergeable is not None:
        raise ValueError(conversion.method.not_mergeable)
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        assert isinstance(site, FFNSite)
        site.restore(model, layer.experts.dense(layer.top_k))
    for site in conversion.kept:
        release(model, site)
    remove_hooks(model)
    delattr(model, ATTRIBUTE)


def choose_sites(sites: Sequence[Site], rule: str | Sequence[int]) -> list[Site]:
    """Apply a layer rule to each stack (an encoder-decoder has two).

    Layers are counted among the sites: in a Switch Transformer only some of the blocks have one.

    Args:
        sites: all sites of a model.
        rule: see `select_layers`.

    Returns:
        The chosen sites in their order.

    Raises:
        ConfigError: if the rule does not fit the number of layers, or names some of those that
            share one network.
    """
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        shared = site.shared if isinstance(site, FFNSite) else 1
        stacks.setdefault(site.stack, []).extend([site] * shared)
    try:
        chosen = [own[i] for own in stacks.values() for i in select_layers(rule, len(own))]
    except ValueError as error:
        raise ConfigError(f"method.layers={error}") from None
    counts = Counter(site.key for site in chosen)
    for site in chosen:
        if isinstance(site, FFNSite) and counts[site.key] < site.shared:
            raise ConfigError(
                f"method.layers={show(rule)} names {counts[site.key]} of {site.shared} layers that "
                "share one FFN; use all"
            )
    return [site for site in sites if site.key in counts]
