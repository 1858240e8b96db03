"""Convert a model in place, say what changed, and merge it back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_runner.backbones.sites import FFNSite, find_sites
from moe_runner.config import ConfigError, Dense, EMoE, Method, select_layers
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.methods.emoe import assign_neurons, emoe_layer
from moe_runner.moe.layer import MoEFeedForward

ATTRIBUTE = "moe_runner_conversion"  # where a converted model keeps its Conversion


@dataclass
class Conversion:
    """What `convert` did to a model.

    Args:
        method: how.
        sites: the converted FFN sites.
        layers: the MoE layers, in the order of the sites.
        dense_parameters: of the model before.
        dense_flops: per token before, see `flops_per_token`.
        parameters: of the model after.
        active_parameters: that take part in one token, after.
        flops: per token after.
    """

    method: Method
    sites: list[FFNSite]
    layers: list[MoEFeedForward]
    dense_parameters: int
    dense_flops: int
    parameters: int
    active_parameters: int
    flops: int

    def new_parameters(self, model: nn.Module) -> set[str]:
        """Name the parameters that the dense model does not have (learned routers, copies)."""
        return set()  # the neurons of EMoE are the dense model's own and its router has none


def convert(
    model: PreTrainedModel,
    method: Method,
    *,
    cache: Path | None = None,
    assignments: Mapping[str, Tensor] | None = None,
) -> Conversion:
    """Turn the FFNs of a pretrained model into experts, in place.

    Args:
        model: of a supported family, bare or with a head; not yet converted, no LoRA yet.
        method: what to make of which layers.
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
    dense_parameters, dense_flops = count_parameters(model), flops_per_token(model)
    sites: list[FFNSite] = []
    layers: list[MoEFeedForward] = []
    if isinstance(method, EMoE):
        sites = choose_sites(find_sites(model), method.layers)
        sizes = {site.key: site.read(model).keys.shape[0] for site in sites}
        check_fits(sizes, method, assignments)
        clusters = ClusterCache(cache)
        for site in sites:
            ffn = site.read(model)
            if assignments is None:
                experts = assign_neurons(ffn, method, clusters)
            else:
                experts = assignments[site.key]
            layer = emoe_layer(ffn, method, experts).train(model.training)
            site.replace(model, layer)
            layers.append(layer)
        hand_over_masks(model)
    elif not isinstance(method, Dense):
        raise ValueError(f"no conversion for the method {method!r}")
    conversion = Conversion(
        method=method,
        sites=sites,
        layers=layers,
        dense_parameters=dense_parameters,
        dense_flops=dense_flops,
        parameters=count_parameters(model),
        active_parameters=active_parameters(model),
        flops=flops_per_token(model),
    )
    setattr(model, ATTRIBUTE, conversion)
    return conversion


def merge(model: PreTrainedModel) -> None:
    """Turn a converted model back into the dense one, in place: its class, names, weight order.

    Bit-exact: neurons return to their original index, and nothing is computed.

    Args:
        model: converted by `convert`.

    Raises:
        ValueError: if the model is not converted.
    """
    conversion = conversion_of(model)
    if conversion is None:
        raise ValueError("the model is not converted; there is nothing to merge")
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        site.restore(model, layer.experts.dense(layer.top_k))
    handle = model.__dict__.pop("moe_runner_mask_hook", None)
    if handle is not None:
        handle.remove()
    delattr(model, ATTRIBUTE)


def conversion_of(model: nn.Module) -> Conversion | None:
    """Find what `convert` did to a model; None if it was not converted."""
    return getattr(model, ATTRIBUTE, None)


def choose_sites(sites: Sequence[FFNSite], rule: str | Sequence[int]) -> list[FFNSite]:
    """Apply a layer rule to each stack (an encoder-decoder has two).

    Args:
        sites: all sites of a model.
        rule: see `config.select_layers`.

    Returns:
        The chosen sites in their order.

    Raises:
        ConfigError: if the rule does not fit the number of layers.
    """
    sizes = {site.stack: 0 for site in sites}
    for site in sites:
        sizes[site.stack] += 1
    try:
        chosen = {stack: select_layers(rule, size) for stack, size in sizes.items()}
    except ValueError as error:
        raise ConfigError(f"method.layers={error}") from None
    return [site for site in sites if site.layer in chosen[site.stack]]


def check_fits(
    sizes: Mapping[str, int], method: EMoE, assignments: Mapping[str, Tensor] | None
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


def hand_over_masks(model: PreTrainedModel) -> None:
    """Let every MoE layer know which positions are padding, by one pre-hook on the model.

    A replaced FFN never sees the attention mask, and statistics must leave padding out. The hook is
    on the whole model, so it must be called through `model(...)`.
    """
    parameters = list(inspect.signature(model.forward).parameters)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        conversion = conversion_of(module)  # of this model, which may be a copy of the first
        if conversion is None:
            return
        assert isinstance(module, PreTrainedModel)
        encoder_decoder = module.config.is_encoder_decoder
        for site, layer in zip(conversion.sites, conversion.layers, strict=True):
            own = encoder_decoder and site.stack == "decoder"
            layer.attention_mask = given.get("decoder_attention_mask" if own else "attention_mask")

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    model.moe_runner_mask_hook = handle


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the parameters of a model, tied ones once; only those that train if asked."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def active_parameters(model: nn.Module) -> int:
    """Count the parameters that take part in one token: all but its unselected experts."""
    total = count_parameters(model)
    for layer in moe_layers(model):
        stacked = sum(p.numel() for p in layer.experts.parameters() if p.ndim > 1)
        total -= stacked - stacked * layer.selected() // layer.experts.num_experts
    return total


def flops_per_token(model: nn.Module) -> int:
    """Count the floating point operations of a token's forward pass in products with weights.

    Two per weight. Attention scores, which grow with the length, and embeddings are left out; in
    an encoder-decoder the token passes both stacks. Experts count by what is selected (`masked`
    computes more than that), the router's product included.
    """
    total = 0
    for module in model.modules():
        if isinstance(module, MoEFeedForward):
            stacked = sum(p.numel() for p in module.experts.parameters() if p.ndim == 3)
            num_experts, _, d_model = module.experts.keys.shape
            total += 2 * stacked * module.selected() // num_experts + 2 * num_experts * d_model
        elif isinstance(module, (nn.Linear, Conv1D)):
            total += 2 * module.weight.numel()
    return total


def moe_layers(model: nn.Module) -> list[MoEFeedForward]:
    """List the MoE layers of a model in their order."""
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]
