"""The sparse layers of a Switch Transformer that a method leaves to the library.

Under `dense`, `emoe` and their like they follow the protocol as converted layers do: the same
losses of the routers, and neither capacity nor jitter unless the protocol has them. So `dense` and
`moe` on a Switch Transformer are the same model.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_runner.backbones.sites import SparseSite
from moe_runner.moe.layer import AuxiliaryLosses, Routing
from moe_runner.moe.losses import switch_balance_loss, z_loss
from moe_runner.options.protocol import Protocol


def router_losses(config: Any) -> dict[str, float]:
    """Read the coefficients of a Switch Transformer's losses: 0.001 each in the published ones."""
    return {"switch_balance": config.router_aux_loss_coef, "z": config.router_z_loss_coef}


def follow_protocol(model: PreTrainedModel, site: SparseSite, protocol: Protocol) -> Any:
    """Let a sparse layer of the library do what the protocol says, and record its losses.

    Args:
        model: a Switch Transformer.
        site: the layer.
        protocol: `jitter` and `sequence_capacity` are read. (What is over the capacity is 0 here,
            whatever `dropped_tokens` says.)

    Returns:
        The handle of the hook that records.
    """
    router = model.get_submodule(f"{site.slot}.router")
    router.jitter_noise = protocol.jitter
    router.expert_capacity = protocol.sequence_capacity or sys.maxsize
    router.losses = AuxiliaryLosses(router_losses(model.config))
    router.attention_mask = None
    return router.register_forward_hook(record)


def record(router: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what a router did, with its losses, where `auxiliary_loss` finds it."""
    scores_TE = output[2].flatten(0, 1)
    index_TK = scores_TE.argmax(1, keepdim=True)
    mask = router.attention_mask
    known = mask is not None and mask.shape == output[2].shape[:2]
    mask_T = mask.reshape(-1).bool() if known else None
    losses = {
        "switch_balance": switch_balance_loss(scores_TE.softmax(-1), index_TK, mask_T),
        "z": z_loss(scores_TE, mask_T),
    }
    differentiable = scores_TE.requires_grad or not router.training
    router.routing = Routing(index_TK.detach(), mask_T, losses, differentiable)


def release(model: PreTrainedModel, site: SparseSite) -> None:
    """Give a sparse layer back to the library, as its configuration says."""
    router: nn.Module = model.get_submodule(f"{site.slot}.router")
    router.jitter_noise = model.config.router_jitter_noise
    router.expert_capacity = model.config.expert_capacity
    for name in ("losses", "attention_mask", "routing"):
        router.__dict__.pop(name, None)
