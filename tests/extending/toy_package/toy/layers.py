"""The layers of the method `toy`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moe_runner.methods.building import OpenSite
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import LinearRouter
from moe_runner.options.protocol import Protocol
from toy_package.toy.options import Toy


def build(
    sites: Sequence[OpenSite], method: Toy, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build a layer per site; all copies are equal, so it starts as the dense network."""
    layers = []
    for site in sites:
        keys = site.ffn.keys
        rows = 0.02 * torch.randn(method.num_experts, keys.shape[1], device=keys.device)
        layers.append(
            MoEFeedForward(
                Experts.stack([site.ffn] * method.num_experts),
                LinearRouter(rows.requires_grad_()),
                top_k=method.top_k,
                weighting="softmax",
                backend=method.backend,
            )
        )
    return layers
