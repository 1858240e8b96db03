"""GMoE: copies of an FFN, a cosine router, weights of sum 1.

    y = sum over the selected experts i of p_i * FFN_i(x), p = softmax of the selected scores

All copies are equal at the start, so the layer starts as the dense network.

Source: GMoE, arXiv:2206.04046.
"""

from __future__ import annotations

from moe_runner.config import EMoELearn, GMoE, Protocol
from moe_runner.methods.reference_code import capacity_of, with_reference_dropout
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import AuxiliaryLosses, MoEFeedForward
from moe_runner.moe.routing import CosineRouter


def gmoe_layer(ffn: FFN, method: GMoE, family: str, protocol: Protocol) -> MoEFeedForward:
    """Build the MoE layer of one site.

    Args:
        ffn: the dense network.
        method: routing options.
        family: of the backbone.
        protocol: what the reference code adds; with `split_output_bias` the layer does not start
            as the dense network (its weights sum to 1, and b / k is too small).

    Returns:
        The layer.
    """
    experts = Experts.stack([with_reference_dropout(ffn, family, protocol)] * method.num_experts)
    return cosine_layer(experts, method, protocol)


def cosine_layer(
    experts: Experts, method: GMoE | EMoELearn, protocol: Protocol, scale: float = 1.0
) -> MoEFeedForward:
    """Route to some experts by a new cosine router, with weights of sum 1 times a scale.

    Args:
        experts: copies or clusters.
        method: routing options.
        protocol: what the reference code adds.
        scale: of the weights.

    Returns:
        The layer.
    """
    if protocol.split_output_bias:
        experts.split_output_bias(method.top_k)
    num_experts, _, d_model = experts.keys.shape
    router = CosineRouter(d_model, num_experts, method.router_dim, protocol.gate_noise)
    return MoEFeedForward(
        experts,
        router.to(experts.keys.device),
        top_k=method.top_k,
        weighting="softmax",
        scale=scale,
        capacity=capacity_of(protocol),
        losses=AuxiliaryLosses({"balance": method.balance_loss}, "probabilities"),
        backend=method.backend,
    )
