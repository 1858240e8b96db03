"""Sparse upcycling: copies of an FFN, a noisy top-k router, and perhaps something beside them.

    y = sum over the selected experts i of G_i(x) FFN_i(x), + what stands beside

G is the softmax of the selected scores; with one selected expert p / p.detach(), of value 1. All
copies are equal and what is added starts at zero (or is the same copy), so a layer starts as the
dense network. On a Switch Transformer experts and router are the pretrained ones and G_i is the
probability.

Source: sparse upcycling, arXiv:2212.05055; HyperMoE, arXiv:2402.12656.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from moe_runner.methods.building import OpenSite, PretrainedMixture, as_site, check_top_k
from moe_runner.methods.moe.options import NUM_EXPERTS, MoE
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.experts import Experts
from moe_runner.moe.hypernet import HyperExpert
from moe_runner.moe.layer import AuxiliaryLosses, Capacity, MoEFeedForward, SideExperts
from moe_runner.moe.routing import LinearRouter, NoisyTopKRouter
from moe_runner.options.errors import ConfigError
from moe_runner.options.protocol import Protocol

BALANCE = 0.01  # HyperMoE's GPT-2 code: times CV^2 of importance plus CV^2 of load

Beside = Callable[[OpenSite, int], SideExperts | HyperExpert]  # (site, E) -> what stands beside


def build(
    sites: Sequence[OpenSite], method: MoE, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers; see `upcycle`."""
    return upcycle(sites, method, protocol)


def upcycle(
    sites: Sequence[OpenSite],
    method: MoE,
    protocol: Protocol,
    beside: Beside | None = None,
    **settings: Any,
) -> list[MoEFeedForward]:
    """Build the MoE layers: copies, or the experts of a Switch Transformer.

    Args:
        sites: what is converted, in the order of the layers.
        method: routing options.
        protocol: what HyperMoE's reference code does.
        beside: makes what stands beside the routed experts of a site.
        **settings: of every layer, see `MoEFeedForward`.

    Returns:
        A layer per site.

    Raises:
        ConfigError: if the number of experts and top_k do not fit.
    """
    own = [len(site.mixture.experts) for site in sites if site.mixture is not None]
    if own and method.num_experts is not None:
        raise ConfigError(
            f"num_experts={method.num_experts} cannot be chosen: the model has {own[0]} experts of "
            "its own; use null"
        )
    copies = NUM_EXPERTS if method.num_experts is None else method.num_experts
    check_top_k(method.top_k, own[0] if own else copies)
    layers = []
    for site in sites:
        num_experts = copies if site.mixture is None else len(site.mixture.experts)
        common = {
            "top_k": method.top_k,
            "beside": None if beside is None else as_site(beside(site, num_experts), site),
            "backend": method.backend,
            **settings,
        }
        if site.mixture is None:
            layers.append(copied_layer(site, num_experts, method, protocol, common))
        else:
            layers.append(switch_layer(site, site.mixture, method, protocol, common))
    return layers


def copied_layer(
    site: OpenSite, num_experts: int, method: MoE, protocol: Protocol, common: dict[str, Any]
) -> MoEFeedForward:
    """Build the MoE layer of a dense FFN: copies, a new router.

    Args:
        site: the dense network.
        num_experts: E.
        method: its coefficient of the balance loss is used.
        protocol: what HyperMoE's reference code does.
        common: settings that all layers share.
    """
    ffn = site.ffn
    balance = BALANCE if method.balance_loss is None else method.balance_loss
    load: Literal["published", "hypermoe"] = (
        "published" if protocol.load_threshold == "scores" else "hypermoe"
    )
    return MoEFeedForward(
        Experts.stack([ffn] * num_experts),
        as_site(NoisyTopKRouter(ffn.keys.shape[1], num_experts), site),
        weighting="softmax",
        straight_through=protocol.straight_through,
        losses=AuxiliaryLosses({"balance": balance}, "selected", load),
        output_dropout=site.residual_dropout,
        **common,
    )


def switch_layer(
    site: OpenSite,
    mixture: PretrainedMixture,
    method: MoE,
    protocol: Protocol,
    common: dict[str, Any],
) -> MoEFeedForward:
    """Build the MoE layer of a sparse layer of a Switch Transformer: its experts, its router.

    Args:
        site: of the layer.
        mixture: what it consists of.
        method: its coefficient of the balance loss is used.
        protocol: what HyperMoE's reference code does.
        common: settings that all layers share.
    """
    losses = dict(mixture.losses)
    if method.balance_loss is not None:
        losses["switch_balance"] = method.balance_loss
    return MoEFeedForward(
        Experts.stack(mixture.experts),
        LinearRouter(mixture.router_weight),
        weighting="probability",
        capacity=Capacity(per_sequence=protocol.sequence_capacity, dropped=protocol.dropped_tokens),
        losses=AuxiliaryLosses(
            losses, stack=site.stack if protocol.switch_losses == "stack" else None
        ),
        jitter=protocol.jitter,
        jitter_in_evaluation=protocol.jitter_in_evaluation,
        **common,
    )
