"""A layer `for_inference`: what needs no gradient, no loss and no record of training takes less.

Three ways past the general forward pass, each equal to it up to the order of the sums: every expert
selected with weight 1 is the dense network; the C++ kernel takes routing and experts in one call;
and, where PyTorch alone is there, one token reads its own experts only (`one_token`).
"""

# T tokens, D d_model, E experts, K selected experts

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_runner.moe.experts import Stack
from moe_runner.moe.kernel_experts import fits, kernel, kernel_layer

if TYPE_CHECKING:
    from moe_runner.moe.layer import MoEFeedForward

MOSTLY = 0.75  # share of selected experts above which computing all of them is as fast


def infer(layer: MoEFeedForward, x_TD: Tensor) -> tuple[Tensor, Tensor] | None:
    """Compute a layer without a gradient, if nothing about it needs the general forward pass.

    Args:
        layer: in evaluation mode.
        x_TD: tokens, float (T, D).

    Returns:
        Output, float (T, D), and selection, int64 (T, K), the most fitting first (in the order of
        their numbers where all are selected); None if the general forward pass must be taken.
    """
    experts = layer.experts
    bias = experts.output_bias
    if (
        layer.beside is not None
        or layer.losses.coefficients
        or layer.losses.stack is not None
        or layer.capacity.factor is not None
        or layer.capacity.per_sequence is not None
        or layer.jitter_in_evaluation
        or layer.backend != "auto"
        or (bias is not None and bias.ndim == 2)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x_TD.device.type)
        or x_TD.dtype != experts.keys.dtype
    ):
        return None
    num_experts, selected = experts.num_experts, layer.selected()
    if selected == num_experts and layer.weighting == "ones":
        every_TE = torch.arange(num_experts, device=x_TD.device).expand(len(x_TD), -1)
        if len(x_TD) == 1 and fits(x_TD, stack := experts.tensors()):  # reads memory faster
            output_TD = kernel(x_TD, every_TE, None, stack)
            return output_TD if bias is None else output_TD + bias, every_TE
        return dense(layer, x_TD), every_TE
    stack = experts.tensors()
    if selected > MOSTLY * num_experts or not fits(x_TD, stack):
        return None
    watched = layer.router._forward_hooks or layer.router._forward_pre_hooks
    gates = None if watched else getattr(layer.router, "matrix", no_matrix)(experts)
    router = layer.router(x_TD, experts).noisy if gates is None else gates
    if router.dtype != torch.float32:
        return None
    output_TD, index_TK, _ = kernel_layer(
        x_TD, router, stack, bias, scored=gates is None, top_k=layer.top_k, select=layer.select,
        weighting=layer.weighting, scale=layer.scale,
    )  # fmt: skip
    return output_TD, index_TK


def backend_of(x_TD: Tensor, index_TK: Tensor, experts: Stack) -> str | None:
    """Choose a back end of the general forward pass, without a gradient; None: as in training.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K).
        experts: their tensors.
    """
    if index_TK.shape[1] <= MOSTLY * experts.num_experts and fits(x_TD, experts):
        return "kernel"
    return "one_token" if len(x_TD) == 1 else None


def no_matrix(experts: object) -> None:
    """Stand for the `matrix` of a router whose scores are not one product."""


def dense(layer: MoEFeedForward, x_TD: Tensor) -> Tensor:
    """Compute every expert with weight 1, float (T, D): the dense network, in another order."""
    experts = layer.experts
    hidden_TN = experts.tensors().activations(x_TD).flatten(1)
    values_ND = experts.values.flatten(0, 1)
    if experts.output_bias is None:
        return hidden_TN @ values_ND
    return torch.addmm(experts.output_bias, hidden_TN, values_ND)
