"""The hooks of a converted model: masks for the MoE layers, gradients for idle experts."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moe_runner.conversion.counts import library_experts
from moe_runner.conversion.record import Site, conversion_of

HOOKS = "moe_runner_hooks"  # where a converted model keeps the handles of its hooks


def hand_over_masks(model: PreTrainedModel) -> None:
    """Let every MoE layer know which positions are padding, by one pre-hook on the model.

    A replaced FFN never sees the attention mask, and statistics must leave padding out. The hook is
    on the whole model, so it must be called through `model(...)`; `generate` calls an encoder by
    itself, which has a hook of its own.
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
        own = decoder_mask(given)
        for site, layer in pairs:
            decodes = module.config.is_encoder_decoder and site.stack == "decoder"
            layer.attention_mask = own if decodes else given.get("attention_mask")

    keep(model, model.register_forward_pre_hook(hook, with_kwargs=True))
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        keep(model, encoder.register_forward_pre_hook(hand_over_own_mask, with_kwargs=True))


def decoder_mask(given: dict[str, Any]) -> Tensor | None:
    """Find which positions of a decoder are no padding, (B, L); None where nothing tells it.

    That is its own mask, else that of its labels. A classifier (T5's, BART's) has one label per
    text and gives its decoder the encoder's input, shifted: as many positions as there are tokens.

    Args:
        given: the arguments of the model's forward pass, by name.
    """
    if (own := given.get("decoder_attention_mask")) is not None:
        return own
    labels, mask = given.get("labels"), given.get("attention_mask")
    if labels is not None and labels.ndim == 2 and not labels.is_floating_point():
        return labels != -100
    made = given.get("decoder_input_ids") is None and given.get("decoder_inputs_embeds") is None
    return mask if made else None


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


def keep(model: nn.Module, handle: RemovableHandle) -> None:
    """Remember a hook, for `merge` to remove it."""
    model.__dict__.setdefault(HOOKS, []).append(handle)


def remove_hooks(model: nn.Module) -> None:
    """Take away all that `keep` remembers."""
    for handle in model.__dict__.pop(HOOKS, []):
        handle.remove()
