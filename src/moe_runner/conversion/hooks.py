"""The hooks of a converted model: masks and records of MoE layers, gradients for idle experts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moe_runner.conversion.counts import library_experts
from moe_runner.conversion.record import Conversion, Site, conversion_of
from moe_runner.moe.records import Records

HOOKS = "moe_runner_hooks"  # where a converted model keeps the handles of its hooks


def follow_passes(model: PreTrainedModel) -> None:
    """Let every MoE layer know when a forward pass begins and ends, and what is padding in it.

    A replaced FFN never sees the attention mask, and statistics must leave padding out. A layer
    that a pass skips must not keep the record of the one before. The hooks are on the whole model,
    so it must be called through `model(...)`; `generate` calls an encoder by itself, which has
    hooks of its own.
    """
    parameters = tuple(inspect.signature(model.forward).parameters)
    begin = partial(begin_model, parameters)
    keep(model, model.register_forward_pre_hook(begin, with_kwargs=True))
    keep(model, model.register_forward_hook(end_model))
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        keep(model, encoder.register_forward_pre_hook(begin_encoder, with_kwargs=True))
        keep(model, encoder.register_forward_hook(end_encoder))


def begin_model(
    parameters: Sequence[str], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let the MoE layers of a model know that its forward pass begins, and their masks.

    Args:
        parameters: names of what `forward` takes, in their order.
        model: converted, or a copy of one; nothing is done without its conversion.
        args: given to `forward` by place.
        kwargs: by name.
    """
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    if (conversion := conversion_of(model)) is None:
        return
    assert isinstance(model, PreTrainedModel)
    whole, own = token_mask(given.get("attention_mask")), decoder_mask(given)
    for site, layer in recording_layers(model, conversion):
        decodes = model.config.is_encoder_decoder and site.stack == "decoder"
        layer.attention_mask = own if decodes else whole
        if decodes or given.get("encoder_outputs") is None:  # else it was called before
            layer.records.begin_pass()


def end_model(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Let the MoE layers of a model know that its forward pass ends."""
    if (conversion := conversion_of(model)) is not None:
        for _, layer in recording_layers(model, conversion):
            layer.records.end_pass()


def recording_layers(model: nn.Module, conversion: Conversion) -> list[tuple[Site, Any]]:
    """List the layers of a model that leave records, kept routers of the library included."""
    pairs: list[tuple[Site, Any]] = [*zip(conversion.sites, conversion.layers, strict=True)]
    for kept in conversion.kept:
        pairs.append((kept, model.get_submodule(f"{kept.slot}.router")))
    return pairs


def token_mask(mask: Any) -> Tensor | None:
    """Give a mask that tells which positions are padding, (B, L); None for others.

    `generate` with a static cache hands over what the layers' attention is made of: a mask of four
    dimensions, or one of each kind of layer in a dictionary.
    """
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def decoder_mask(given: dict[str, Any]) -> Tensor | None:
    """Find which positions of a decoder are no padding, (B, L); None where nothing tells it.

    That is its own mask, else that of its labels. A classifier (T5's, BART's) has one label per
    text and gives its decoder the encoder's input, shifted: as many positions as there are tokens.

    Args:
        given: the arguments of the model's forward pass, by name.
    """
    if (own := given.get("decoder_attention_mask")) is not None:
        return token_mask(own)
    labels, mask = given.get("labels"), token_mask(given.get("attention_mask"))
    if labels is not None and labels.ndim == 2 and not labels.is_floating_point():
        return labels != -100
    made = given.get("decoder_input_ids") is None and given.get("decoder_inputs_embeds") is None
    return mask if made else None


def begin_encoder(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the MoE layers of an encoder know that its forward pass begins, and its mask."""
    for layer in encoder_layers(encoder):
        layer.records.begin_pass()
        if "attention_mask" in kwargs:
            layer.attention_mask = token_mask(kwargs["attention_mask"])


def end_encoder(encoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Let the MoE layers of an encoder know that its forward pass ends."""
    for layer in encoder_layers(encoder):
        layer.records.end_pass()


def encoder_layers(encoder: nn.Module) -> list[Any]:
    """List the layers of an encoder that leave records."""
    return [
        layer for layer in encoder.modules() if isinstance(getattr(layer, "records", None), Records)
    ]


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


def keep(model: nn.Module, handle: RemovableHandle) -> None:
    """Remember a hook, for `merge` to remove it."""
    model.__dict__.setdefault(HOOKS, []).append(handle)


def remove_hooks(model: nn.Module) -> None:
    """Take away all that `keep` remembers."""
    for handle in model.__dict__.pop(HOOKS, []):
        handle.remove()
