"""Upcycling with plain adapters: one per expert, or one for all tokens.

    y = sum over the selected experts i of G_i(x) FFN_i(x) + sum over them of A_i(x), or + A(x)
    A(x) = ReLU(x D + c) P + d

Source: ours, HyperMoE's parameter-matched control.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from moe_runner.methods.building import OpenSite
from moe_runner.methods.moe.layers import upcycle
from moe_runner.methods.moe_adapter.options import MoEAdapter
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import MoEFeedForward, SideExperts
from moe_runner.options.protocol import Protocol


def build(
    sites: Sequence[OpenSite], method: MoEAdapter, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers; see `upcycle`."""

    def adapters(site: OpenSite, num_experts: int) -> SideExperts:
        keys = site.ffn.keys
        count = 1 if method.shared else num_experts
        own = [bottleneck(keys.shape[1], method.width) for _ in range(count)]
        return SideExperts(Experts.stack(own))

    return upcycle(sites, method, protocol, adapters)


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
