"""GMoE: copies of an FFN, a cosine router, weights of sum 1.

    y = sum over the selected experts i of p_i * FFN_i(x), p = softmax of the selected scores

All copies are equal at the start, so the layer starts as the dense network.

Source: GMoE, arXiv:2206.04046.
"""

from __future__ import annotations

from moe_runner.config import GMoE, Protocol
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
    if protocol.split_output_bias:
        experts.split_output_bias(method.top_k)
    return MoEFeedForward(
        experts,
        CosineRouter(
            ffn.keys.shape[1], method.num_experts, method.router_dim, protocol.gate_noise
        ).to(ffn.keys.device),
        top_k=method.top_k,
        weighting="softmax",
        capacity=capacity_of(protocol),
        losses=AuxiliaryLosses({"balance": method.balance_loss}, "probabilities"),
        backend=method.backend,
    )
