"""EMoE: the neurons of an FFN in clusters, avg-k gating, no new parameter.

    y = sum over the selected experts i, over the neurons j of i, of act(x . K_j + b_j) V_j, + b_out

Source: EMoE, arXiv:2310.10908.
"""

from __future__ import annotations

from torch import Tensor

from moe_runner.config import EMoE
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import MoEFeedForward


def assign_neurons(ffn: FFN, method: EMoE, clusters: ClusterCache) -> Tensor:
    """Choose the expert of each neuron from the pretrained keys.

    Args:
        ffn: the dense network.
        method: its `num_experts`, `clustering` and `cluster_seed` are used.
        clusters: finds or makes the clusters.

    Returns:
        int64 (d_ff,), values 0..E-1, each equally often.

    Raises:
        ValueError: if the number of experts does not divide d_ff.
    """
    keys_FD = ffn.keys.detach().float().cpu().numpy()
    return clusters.get(keys_FD, method.num_experts, method.clustering, method.cluster_seed)


def emoe_layer(ffn: FFN, method: EMoE, expert_of_neuron: Tensor) -> MoEFeedForward:
    """Build the MoE layer of one site; no weight changes its value.

    Args:
        ffn: the dense network.
        method: routing options.
        expert_of_neuron: int64 (d_ff,), see `assign_neurons`.

    Returns:
        The layer; with `top_k = num_experts` it is the dense network.
    """
    return MoEFeedForward(
        Experts.split(ffn, expert_of_neuron),
        top_k=method.top_k,
        select=method.select,
        gate_on=method.gate_on,
        backend=method.backend,
    )
