"""Sparse upcycling and what HyperMoE compares with it: copies of an FFN, a noisy top-k router.

    moe:          y = sum over the selected experts i of G_i(x) FFN_i(x)
    moe_share:    y = (that + FFN_0(x)) / 2, FFN_0 one more copy that every token passes
    moe_adapter:  y = that + sum over the selected i of A_i(x), or + A(x)
    hypermoe:     y = that + Ehat(x), see `moe.hypernet`

    A(x) = ReLU(x D + c) P + d

G is the softmax of the selected scores; with one selected expert p / p.detach(), of value 1. All
copies are equal and what is added starts at zero (or is the same copy), so a layer starts as the
dense network. On a Switch Transformer experts and router are the pretrained ones and G_i is the
probability.

Source: sparse upcycling, arXiv:2212.05055; HyperMoE, arXiv:2402.12656. The forms of `moe_share` and
`moe_adapter` are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe_runner.config import NUM_COPIES, HyperMoE, MoE, MoEAdapter, MoEShare, Protocol
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.hypernet import HyperExpert, HyperNetwork
from moe_runner.moe.layer import AuxiliaryLosses, Capacity, MoEFeedForward, SideExperts
from moe_runner.moe.routing import LinearRouter, NoisyTopKRouter

BALANCE = 0.01  # HyperMoE's GPT-2 code: times CV^2 of importance plus CV^2 of load


def upcycled_layer(
    ffn: FFN, method: MoE, protocol: Protocol, beside: SideExperts | HyperExpert | None
) -> MoEFeedForward:
    """Build the MoE layer of a dense FFN site.

    Args:
        ffn: the dense network.
        method: routing options.
        protocol: what HyperMoE's reference code does.
        beside: see `beside`.

    Returns:
        The layer.
    """
    num_experts = method.num_experts or NUM_COPIES
    balance = BALANCE if method.balance_loss is None else method.balance_loss
    return MoEFeedForward(
        Experts.stack([ffn] * num_experts),
        NoisyTopKRouter(ffn.keys.shape[1], num_experts).to(ffn.keys.device),
        weighting="softmax",
        straight_through=protocol.straight_through,
        losses=AuxiliaryLosses({"balance": balance}, "selected", protocol.load_threshold),
        **common(method, beside),
    )


def switch_layer(
    ffns: list[FFN],
    router_weight: Tensor,
    coefficients: dict[str, float],
    method: MoE,
    protocol: Protocol,
    beside: SideExperts | HyperExpert | None,
) -> MoEFeedForward:
    """Build the MoE layer of a sparse layer of a Switch Transformer: its experts, its router.

    Args:
        ffns: its experts.
        router_weight: float (E, d_model).
        coefficients: of the losses `switch_balance` and `z`.
        method: routing options.
        protocol: what HyperMoE's reference code does.
        beside: see `beside`.

    Returns:
        The layer.
    """
    if method.balance_loss is not None:
        coefficients = {**coefficients, "switch_balance": method.balance_loss}
    return MoEFeedForward(
        Experts.stack(ffns),
        LinearRouter(router_weight),
        weighting="probability",
        capacity=Capacity(per_sequence=protocol.sequence_capacity, dropped=protocol.dropped_tokens),
        losses=AuxiliaryLosses(coefficients),
        jitter=protocol.jitter,
        **common(method, beside),
    )


def common(method: MoE, beside: SideExperts | HyperExpert | None) -> dict[str, Any]:
    """Collect the settings of a layer that follow from the method alone."""
    return {
        "top_k": method.top_k,
        "scale": 0.5 if isinstance(method, MoEShare) else 1.0,
        "beside": beside,
        "beside_weighted": isinstance(method, HyperMoE) and method.inside,
        "backend": method.backend,
    }


def make_beside(
    method: MoE, ffn: FFN, num_experts: int, layer: int, hypernet: HyperNetwork | None
) -> SideExperts | HyperExpert | None:
    """Make what stands beside the routed experts of one layer.

    Args:
        method: says what.
        ffn: the dense network, or an expert of a Switch Transformer.
        num_experts: E.
        layer: index of the layer among those that share the hypernetwork.
        hypernet: of HyperMoE.

    Returns:
        A shared expert, adapters, a HyperExpert, or None.
    """
    device = ffn.keys.device
    if isinstance(method, MoEShare):
        return SideExperts(Experts.stack([ffn]), scale=0.5)
    if isinstance(method, MoEAdapter):
        count = 1 if method.shared else num_experts
        adapters = [bottleneck(ffn.keys.shape[1], method.width) for _ in range(count)]
        return SideExperts(Experts.stack(adapters)).to(device)
    if isinstance(method, HyperMoE):
        assert hypernet is not None
        return HyperExpert(
            hypernet,
            layer,
            num_experts,
            embedding_dim=method.embedding_dim,
            aggregate=method.aggregate,
        ).to(device)
    return None


def make_hypernet(method: HyperMoE, d_model: int, num_layers: int) -> HyperNetwork:
    """Make the hypernetwork that the layers share."""
    return HyperNetwork(
        d_model,
        num_layers,
        width=method.width,
        selection_dim=method.embedding_dim,
        layer_dim=method.layer_dim,
        hidden_dim=method.embedding_dim,
    )


def bottleneck(d_model: int, width: int) -> FFN:
    """Make an adapter A(x) = ReLU(x D + c) P + d; P, c and d are zero, so it starts as nothing."""
    keys = nn.Linear(d_model, width).weight.detach()
    return FFN(
        keys=keys.requires_grad_(),
        values=torch.zeros(width, d_model, requires_grad=True),
        activation=torch.relu,
        key_bias=torch.zeros(width, requires_grad=True),
        output_bias=torch.zeros(d_model, requires_grad=True),
    )
