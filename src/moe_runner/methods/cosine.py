"""Experts behind a new cosine router: what GMoE and EMoE-learn share."""

from __future__ import annotations

from moe_runner.methods.reference_code import capacity_of, load_of
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import AuxiliaryLosses, MoEFeedForward
from moe_runner.moe.routing import CosineRouter
from moe_runner.options.method import Backend
from moe_runner.options.protocol import Protocol


def cosine_layer(
    experts: Experts,
    protocol: Protocol,
    *,
    top_k: int,
    router_dim: int,
    balance_loss: float,
    backend: Backend,
    scale: float = 1.0,
) -> MoEFeedForward:
    """Route to some experts by a new cosine router, with weights of sum 1 times a scale.

    A single selected expert has weight 1 (p / p.detach(), so that the router learns), or with
    `protocol.one_expert_weight=probability` its probability p among all: Tutel, on which EMoE's
    code is built, divides by the sum of the selected ones for more than one only.

    Args:
        experts: copies or clusters.
        protocol: what the reference code adds in this family.
        top_k: experts per token.
        router_dim: in which the router compares tokens and experts.
        balance_loss: coefficient of CV^2 of importance plus CV^2 of load.
        backend: that computes the experts.
        scale: of the weights.

    Returns:
        The layer.
    """
    if protocol.split_output_bias:
        experts.split_output_bias(top_k)
    num_experts, _, d_model = experts.keys.shape
    as_it_is = top_k == 1 and protocol.one_expert_weight == "probability"
    router = CosineRouter(d_model, num_experts, router_dim, protocol.gate_noise)
    return MoEFeedForward(
        experts,
        router.to(experts.keys),
        top_k=top_k,
        weighting="probability" if as_it_is else "softmax",
        scale=scale,
        capacity=capacity_of(protocol),
        losses=AuxiliaryLosses({"balance": balance_loss}, "probabilities", load_of(protocol)),
        backend=backend,
    )
