"""Which expert each neuron of an FFN belongs to: by clustering, or as it was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from moe_runner.methods.building import OpenSite
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.options.errors import ConfigError


class Clustered(Protocol):
    """The options of a method whose experts are groups of neurons."""

    @property
    def num_experts(self) -> int:
        """E, which must divide d_ff."""

    @property
    def top_k(self) -> int:
        """Experts per token."""

    @property
    def cluster_seed(self) -> int | None:
        """Seed of the algorithm; None: left to a run, see `Method.seeded`."""


class Neurons:
    """Shares the neurons of FFNs equally among experts.

    Args:
        clusters: finds or makes clusters.
        given: int64 (d_ff,) by site key: an assignment that is taken over; None: clustered.
    """

    def __init__(self, clusters: ClusterCache, given: Mapping[str, Tensor] | None = None) -> None:
        self.clusters, self.given = clusters, given

    def share(self, sites: Sequence[OpenSite], method: Clustered, algorithm: str) -> list[Tensor]:
        """Choose the expert of each neuron from the pretrained keys.

        Where there is much to do, sites are clustered in as many processes as torch has threads,
        one thread each.

        Args:
            sites: dense networks.
            method: its number of experts E and cluster_seed are used, its top_k is checked.
            algorithm: `constrained_kmeans`, `random` or `contiguous`.

        Returns:
            For each site int64 (d_ff,), values 0..E-1, each equally often.

        Raises:
            ConfigError: if E does not divide a d_ff, top_k does not fit, or there is no seed.
            ValueError: if a key is not finite, or the given assignment is not that of the sites.
        """
        num_experts = method.num_experts
        check_fits({site.key: len(site.ffn.keys) for site in sites}, num_experts, method.top_k)
        if self.given is not None:
            check_assignment(self.given, sites, num_experts)
            return [self.given[site.key] for site in sites]
        if method.cluster_seed is None:
            raise ConfigError(
                "method.cluster_seed=null is the seed of a run, and this is none; give a number"
            )
        keys = {site.key: site.ffn.keys.detach().float().cpu().numpy() for site in sites}
        found = self.clusters.get(
            keys, num_experts, algorithm, method.cluster_seed, processes=torch.get_num_threads()
        )
        return [found[site.key] for site in sites]


def check_fits(sizes: Mapping[str, int], num_experts: int, top_k: int) -> None:
    """Check the sizes before anything is replaced.

    Args:
        sizes: d_ff by site key.
        num_experts: E.
        top_k: experts per token.

    Raises:
        ConfigError: if they do not fit, one line per problem.
    """
    problems = [
        f"num_experts={num_experts} does not divide d_ff={d_ff}"
        for d_ff in dict.fromkeys(sizes.values())
        if num_experts < 1 or d_ff % num_experts
    ]
    if not 1 <= top_k <= num_experts:
        problems.append(f"top_k={top_k} does not fit num_experts={num_experts}")
    if problems:
        raise ConfigError(*problems)


def check_assignment(
    given: Mapping[str, Tensor], sites: Sequence[OpenSite], num_experts: int
) -> None:
    """Check that an assignment shares the neurons of just these sites equally.

    Raises:
        ValueError: if it does not.
    """
    sizes = {site.key: len(site.ffn.keys) for site in sites}
    if odd := sizes.keys() ^ given.keys():
        raise ValueError(f"the assignments are not those of the sites: {', '.join(sorted(odd))}")
    for key, d_ff in sizes.items():
        load = torch.bincount(given[key], minlength=num_experts)
        if len(given[key]) != d_ff or set(load.tolist()) != {d_ff // num_experts}:
            raise ValueError(
                f"the assignment of {key} does not share {d_ff} neurons equally among "
                f"{num_experts} experts"
            )
