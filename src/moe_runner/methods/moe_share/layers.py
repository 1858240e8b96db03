"""MoE-Share: the mean of the routed experts and of one more copy that every token passes.

    y = (sum over the selected experts i of G_i(x) FFN_i(x) + FFN_0(x)) / 2

Source: MoE-Share in HyperMoE, arXiv:2402.12656, which does not define it: this form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_runner.methods.building import OpenSite
from moe_runner.methods.moe.layers import upcycle
from moe_runner.methods.moe_share.options import MoEShare
from moe_runner.methods.neurons import Neurons
from moe_runner.moe.experts import Experts
from moe_runner.moe.layer import MoEFeedForward, SideExperts
from moe_runner.options.protocol import Protocol


def build(
    sites: Sequence[OpenSite], method: MoEShare, protocol: Protocol, neurons: Neurons
) -> list[MoEFeedForward]:
    """Build the MoE layers; see `upcycle`."""

    def shared(site: OpenSite, num_experts: int) -> SideExperts:
        return SideExperts(Experts.stack([site.ffn]), scale=0.5)

    return upcycle(sites, method, protocol, shared, scale=0.5)
