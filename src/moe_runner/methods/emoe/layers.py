"""EMoE: the neurons of an FFN in clusters, avg-k gating, no new parameter.

    y = sum over the selected experts i, over the neurons j of i, of act(x . K_j + b_j) V_j, + b_out

Source: EMoE, arXiv:2310.10908.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from moe_runner.methods.building import OpenSite
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.neurons import Neurons
from moe_runner.methods.reference_code import (
    algorithm_of,
    capacity_of,
    load_of,
    protocol_of_family,
    with_reference_dropout,
)
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import AuxiliaryLosses, MoEFeedForward
from moe_runner.moe.routing import AverageKeyRouter
from moe_runner.options.protocol import Protocol

log = logging.getLogger(__name__)


def build(
    sites: Sequence[OpenSite], method: EMoE, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers of all sites; no weight changes its value.

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
    if method.gate_on in ("up", "inter"):
        log.warning(
            "method.gate_on=%s: means of signed values say little of a gated FFN; on SmolLM2 such "
            "experts were worse than random ones routed on the gate (perplexity 340 to 377 against "
            "110 to 134 with half of them). The paper's is method.gate_on=gate",
            method.gate_on,
        )
    assignments = neurons.share(sites, method, algorithm_of(method.clustering, protocol))
    return [
        emoe_layer(site, method, assignment, protocol_of_family(protocol, site.family))
        for site, assignment in zip(sites, assignments, strict=True)
    ]


def emoe_layer(
    site: OpenSite, method: EMoE, expert_of_neuron: Tensor, protocol: Protocol
) -> MoEFeedForward:
    """Build the MoE layer of one site.

    Args:
        site: the dense network.
        method: routing options.
        expert_of_neuron: int64 (d_ff,), values 0..E-1.
        protocol: what the reference code adds in this family.

    Returns:
        The layer; with `top_k = num_experts` it is the dense network.
    """
    balance = protocol.fixed_gate_balance_loss
    ffn = with_reference_dropout(site.ffn, site.family, protocol)
    experts = Experts.split(ffn, expert_of_neuron)
    if protocol.split_output_bias:
        experts.split_output_bias(method.top_k)
    return MoEFeedForward(
        experts,
        AverageKeyRouter(
            method.gate_on,
            normalize=method.normalize_gate,
            normalize_token=method.normalize_gate and protocol.normalize_token,
            gate_noise=protocol.gate_noise,
            differentiable=balance > 0,
        ),
        top_k=method.top_k,
        select=method.select,
        capacity=capacity_of(protocol),
        losses=AuxiliaryLosses(
            {"balance": balance} if balance else {}, "probabilities", load_of(protocol)
        ),
        backend="masked" if method.computes_all else method.backend,
    )
