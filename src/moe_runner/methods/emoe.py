"""EMoE and EMoE-learn: the neurons of an FFN in clusters.

EMoE, avg-k gating, no new parameter:

    y = sum over the selected experts i, over the neurons j of i, of act(x . K_j + b_j) V_j, + b_out

EMoE-learn, a cosine router with weights p_i of sum 1, times k so that it starts at the dense scale:

    y = k * sum over the selected experts i of p_i * (sum over the neurons j of i ...), + b_out

Source: EMoE, arXiv:2310.10908.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_runner.config import Clustered, EMoE, EMoELearn, Protocol
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.methods.gmoe import cosine_layer
from moe_runner.methods.reference_code import capacity_of, with_reference_dropout
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import AuxiliaryLosses, MoEFeedForward
from moe_runner.moe.routing import AverageKeyRouter


def assign_neurons(
    ffns: Mapping[str, FFN], method: Clustered, protocol: Protocol, clusters: ClusterCache
) -> dict[str, Tensor]:
    """Choose the expert of each neuron from the pretrained keys.

    Where there is much to do, layers are clustered in as many processes as torch has threads, one
    thread each.

    Args:
        ffns: the dense networks by site key.
        method: its `num_experts`, `clustering` and `cluster_seed` are used.
        protocol: its `contiguous_random` is used.
        clusters: finds or makes the clusters.

    Returns:
        int64 (d_ff,) by site key, values 0..E-1, each equally often.

    Raises:
        ValueError: if the number of experts does not divide d_ff, or a key is not finite.
    """
    keys = {name: ffn.keys.detach().float().cpu().numpy() for name, ffn in ffns.items()}
    algorithm = algorithm_of(method, protocol)
    settings = (method.num_experts, algorithm, method.cluster_seed)
    return clusters.get(keys, *settings, processes=torch.get_num_threads())


def algorithm_of(method: Clustered, protocol: Protocol) -> str:
    """Name the algorithm that groups the neurons."""
    if method.clustering == "random" and protocol.contiguous_random:
        return "contiguous"
    return method.clustering


def emoe_layer(
    ffn: FFN, method: EMoE, expert_of_neuron: Tensor, family: str, protocol: Protocol
) -> MoEFeedForward:
    """Build the MoE layer of one site; no weight changes its value.

    Args:
        ffn: the dense network.
        method: routing options.
        expert_of_neuron: int64 (d_ff,), see `assign_neurons`.
        family: of the backbone.
        protocol: what the reference code adds.

    Returns:
        The layer; with `top_k = num_experts` it is the dense network.
    """
    balance = protocol.fixed_gate_balance_loss
    experts = Experts.split(with_reference_dropout(ffn, family, protocol), expert_of_neuron)
    if protocol.split_output_bias:
        experts.split_output_bias(method.top_k)
    return MoEFeedForward(
        experts,
        AverageKeyRouter(
            method.gate_on,
            normalize=method.normalize_gate,
            gate_noise=protocol.gate_noise,
            differentiable=balance > 0,
        ),
        top_k=method.top_k,
        select=method.select,
        capacity=capacity_of(protocol),
        losses=AuxiliaryLosses({"balance": balance} if balance else {}, "probabilities"),
        backend="masked" if method.gate_on == "inter" else method.backend,  # computes all anyway
    )


def emoe_learn_layer(
    ffn: FFN, method: EMoELearn, expert_of_neuron: Tensor, family: str, protocol: Protocol
) -> MoEFeedForward:
    """Build the MoE layer of one site: clustered experts, a new cosine router.

    Args:
        ffn: the dense network.
        method: routing options.
        expert_of_neuron: int64 (d_ff,), see `assign_neurons`.
        family: of the backbone.
        protocol: what the reference code adds, and whether the weights are multiplied by k.

    Returns:
        The layer; with equal scores and `top_k = num_experts` it is the dense network.
    """
    experts = Experts.split(with_reference_dropout(ffn, family, protocol), expert_of_neuron)
    scale = method.top_k if protocol.scale_by_top_k else 1.0
    return cosine_layer(experts, method, protocol, scale)
