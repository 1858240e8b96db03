"""GMoE: copies of an FFN, a cosine router, weights of sum 1.

    y = sum over the selected experts i of p_i * FFN_i(x), p = softmax of the selected scores

All copies are equal at the start, so the layer starts as the dense network.

Source: GMoE, arXiv:2206.04046.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_runner.methods.building import OpenSite, check_top_k
from moe_runner.methods.cosine import cosine_layer
from moe_runner.methods.gmoe.options import GMoE
from moe_runner.methods.neurons import Neurons
from moe_runner.methods.reference_code import (
    protocol_of_family,
    with_reference_dropout,
    with_whole_bias,
)
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.options.protocol import Protocol


def build(
    sites: Sequence[OpenSite], method: GMoE, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers: copies, new routers.

    With `protocol.split_output_bias` they do not start as the dense networks (the weights have the
    sum 1, and b / k is too small); `whole_vision_bias` takes that back on images.

    Args:
        sites: what is converted, in the order of the layers.
        method: routing options.
        protocol: what the reference code adds.
        neurons: shares neurons among experts.

    Returns:
        A layer per site.

    Raises:
        ConfigError: if top_k does not fit the number of experts.
    """
    check_top_k(method.top_k, method.num_experts)
    layers = []
    for site in sites:
        own = protocol_of_family(protocol, site.family)
        ffn = with_reference_dropout(site.ffn, site.family, own)
        layers.append(
            cosine_layer(
                Experts.stack([ffn] * method.num_experts),
                with_whole_bias(own, site.family),
                top_k=method.top_k,
                router_dim=method.router_dim,
                balance_loss=method.balance_loss,
                backend=method.backend,
            )
        )
    return layers
