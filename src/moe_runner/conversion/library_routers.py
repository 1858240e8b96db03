"""The sparse layers of a Switch Transformer that a method leaves to the library.

Under `dense`, `emoe` and their like they follow the protocol as converted layers do: the same
losses of the routers, and neither capacity nor jitter unless the protocol has them. So `dense` and
`moe` on a Switch Transformer are the same model.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moe_runner.backbones.sites import SparseSite
from moe_runner.moe.layer import AuxiliaryLosses
from moe_runner.moe.losses import switch_balance_loss, z_loss
from moe_runner.moe.records import Records, Routing
from moe_runner.options.protocol import Protocol

# What a router of the library holds meanwhile
OURS = ("losses", "attention_mask", "jitter_in_evaluation", "records")


def router_losses(config: Any) -> dict[str, float]:
    """Read the coefficients of a Switch Transformer's losses: 0.001 each in the published ones."""
    return {"switch_balance": config.router_aux_loss_coef, "z": config.router_z_loss_coef}


def follow_protocol(
    model: PreTrainedModel, site: SparseSite, protocol: Protocol
) -> list[RemovableHandle]:
    """Let a sparse layer of the library do what the protocol says, and record its losses.

    Args:
        model: a Switch Transformer.
        site: the layer.
        protocol: `jitter`, `jitter_in_evaluation`, `sequence_capacity` and `switch_losses` are
            read. (What is over the capacity is 0 here, whatever `dropped_tokens` says.)

    Returns:
        The handles of the hooks that record and, in evaluation, jitter.
    """
    layer = model.get_submodule(site.slot)
    router: Any = layer.get_submodule("router")
    router.jitter_noise = protocol.jitter
    router.expert_capacity = protocol.sequence_capacity or sys.maxsize
    stack = site.stack if protocol.switch_losses == "stack" else None
    router.losses = AuxiliaryLosses(router_losses(model.config), stack=stack)
    router.attention_mask = None
    router.records = Records()
    router.jitter_in_evaluation = protocol.jitter_in_evaluation
    handles = [router.register_forward_hook(record)]
    if protocol.jitter and protocol.jitter_in_evaluation:
        handles.append(layer.register_forward_pre_hook(partial(jitter_in_evaluation, router)))
    return handles


def jitter_in_evaluation(router: Any, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Multiply the input of a sparse layer by noise, as its router does in training only."""
    if layer.training:
        return args
    x, noise = args[0], router.jitter_noise
    return (x * torch.empty_like(x).uniform_(1 - noise, 1 + noise), *args[1:])


def record(router: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what a router did, with its losses, where `auxiliary_loss` finds it."""
    scores_TE = output[2].flatten(0, 1)
    index_TK = scores_TE.argmax(1, keepdim=True)
    mask = router.attention_mask
    known = mask is not None and mask.shape == output[2].shape[:2]
    mask_T = mask.to(scores_TE.device).reshape(-1).bool() if known else None
    joint, losses = None, {}
    if router.losses.stack is not None:
        joint = (output[2], output[0].argmax(-1))  # a row of zeros: no room
    else:
        losses = {
            "switch_balance": switch_balance_loss(scores_TE.softmax(-1), index_TK, mask_T),
            "z": z_loss(scores_TE, mask_T),
        }
    differentiable = scores_TE.requires_grad or not router.training
    router.records.keep(Routing(index_TK.detach(), mask_T, losses, differentiable, joint=joint))


def release(model: PreTrainedModel, site: SparseSite) -> None:
    """Give a sparse layer back to the library, as its configuration says."""
    router: nn.Module = model.get_submodule(f"{site.slot}.router")
    router.jitter_noise = model.config.router_jitter_noise
    router.expert_capacity = model.config.expert_capacity
    for name in OURS:
        router.__dict__.pop(name, None)
