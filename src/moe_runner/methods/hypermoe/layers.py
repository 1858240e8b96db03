"""HyperMoE: upcycling with a HyperExpert, generated from the embeddings of the unselected experts.

    y = sum over the selected experts i of G_i(x) FFN_i(x) + Ehat(x), see `moe.hypernet`

Source: HyperMoE, arXiv:2402.12656.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from moe_runner.methods.building import OpenSite
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.methods.moe.layers import upcycle
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.hypernet import HyperExpert, HyperNetwork, lr_scale, start_as_gpt2
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.options.protocol import Protocol


def build(
    sites: Sequence[OpenSite], method: HyperMoE, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers; all share one hypernetwork, or those of a stack; see `upcycle`."""

    def owner(site: OpenSite) -> str:
        return site.stack if protocol.hypernet_per_stack else ""

    sharing = Counter(map(owner, sites))
    hypernets: dict[str, HyperNetwork] = {}
    made: dict[str, list[HyperExpert]] = {}

    def hyper_expert_of(site: OpenSite, num_experts: int) -> HyperExpert:
        own = owner(site)
        as_gpt2 = protocol.hypernet_start == "authors" and site.mixture is None  # not their Switch
        if own not in hypernets:
            hypernets[own] = HyperNetwork(
                site.ffn.keys.shape[1],
                sharing[own],
                width=method.width,
                selection_dim=method.embedding_dim,
                layer_dim=method.layer_dim,
                hidden_dim=method.embedding_dim,
                bias_fan=protocol.hypernet_start == "paper",
            )
            if as_gpt2:
                start_as_gpt2(hypernets[own])
        others = made.setdefault(own, [])
        hyper_expert = HyperExpert(
            hypernets[own],
            len(others),  # index among the layers that share it
            num_experts,
            embedding_dim=method.embedding_dim,
            aggregate=method.aggregate,
        )
        if as_gpt2:
            for part in (hyper_expert.embeddings, hyper_expert.first, hyper_expert.second):
                start_as_gpt2(part)
        others.append(hyper_expert)
        return hyper_expert

    layers = upcycle(sites, method, protocol, hyper_expert_of, beside_weighted=method.inside)
    for hyper_experts in made.values():
        scale = method.hypernet_lr_scale
        scale = lr_scale(hyper_experts, method.top_k) if scale == "auto" else scale
        for hyper_expert in hyper_experts:
            hyper_expert.lr_scale = float(scale)
    return layers
