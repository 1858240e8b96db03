"""EMoE-learn: the neurons of an FFN in clusters, routed by a learned cosine router.

    y = k * sum over the selected experts i of p_i * (sum over the neurons j of i ...), + b_out

The weights p_i have the sum 1; times k the layer starts at the dense scale.

Source: EMoE, arXiv:2310.10908, ablation EMoE-learn.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_runner.methods.building import OpenSite
from moe_runner.methods.cosine import cosine_layer
from moe_runner.methods.emoe_learn.options import EMoELearn
from moe_runner.methods.neurons import Neurons
from moe_runner.methods.reference_code import (
    algorithm_of,
    protocol_of_family,
    with_reference_dropout,
)
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.options.protocol import Protocol


def build(
    sites: Sequence[OpenSite], method: EMoELearn, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers: clustered experts, new routers.

    With equal scores and `top_k = num_experts` a layer is the dense network.

    Args:
        sites: what is converted, in the order of the layers.
        method: routing options.
        protocol: what the reference code adds.
        neurons: shares neurons among experts.

    Returns:
        A layer per site.

    Raises:
        ConfigError: if the experts do not fit a site.
    """
    assignments = neurons.share(sites, method, algorithm_of(method.clustering, protocol))
    layers = []
    for site, expert_of_neuron in zip(sites, assignments, strict=True):
        own = protocol_of_family(protocol, site.family)
        ffn = with_reference_dropout(site.ffn, site.family, own)
        layers.append(
            cosine_layer(
                Experts.split(ffn, expert_of_neuron),
                own,
                top_k=method.top_k,
                router_dim=method.router_dim,
                balance_loss=method.balance_loss,
                scale=method.top_k if own.scale_by_top_k else 1.0,
                backend=method.backend,
            )
        )
    return layers
