"""Clusters on disk, found again by the content of the keys they were made from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_runner.files import write_json
from moe_runner.moe.clustering import Assignment, Keys, cluster_all

log = logging.getLogger(__name__)

VERSION = 2  # raised when an algorithm gives other clusters for the same input


class ClusterCache:
    """Remembers which neuron is in which expert.

    Args:
        folder: where the entries are kept; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(
        self,
        keys: Mapping[str, Keys],
        num_experts: int,
        algorithm: str,
        seed: int,
        processes: int = 1,
    ) -> dict[str, Tensor]:
        """Find the clusters of several FFNs; make and keep those that are not there.

        Args:
            keys: rows of the first projections, float32 (F, D), by site key.
            num_experts: E; must divide every F.
            algorithm: a name of `ALGORITHMS`.
            seed: of the algorithm, the same for all.
            processes: that may work at the same time, see `cluster_all`.

        Returns:
            The expert of each neuron, int64 (F,), by site key, in the order of `keys`.

        Raises:
            ValueError: if E does not divide an F, or a key is not finite; it names the site.
        """
        files = {}
        found = {}
        for site, keys_FD in keys.items():
            settings = f"{VERSION} {algorithm} {(*keys_FD.shape, num_experts)} {seed}"
            files[site] = self.file(keys_FD, settings)
            found[site] = read_entry(files[site], len(keys_FD), num_experts)
        missing = {site: keys[site] for site, entry in found.items() if entry is None}
        made = cluster_all(missing, num_experts, algorithm, seed, processes)
        for site, expert_of_neuron_F in zip(missing, made, strict=True):
            found[site] = expert_of_neuron_F
            write_entry(files[site], expert_of_neuron_F)  # at once: the rest may be interrupted
        return {site: torch.from_numpy(entry) for site, entry in found.items()}

    def file(self, keys_FD: Keys, settings: str) -> Path | None:
        """Name the entry of these keys and settings."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(settings.encode())
        digest.update(np.ascontiguousarray(keys_FD).tobytes())
        return self.folder / f"{digest.hexdigest()[:32]}.json"


def checksum(expert_of_neuron_F: Assignment) -> str:
    """Hash an assignment, to notice a damaged entry."""
    return hashlib.sha256(expert_of_neuron_F.astype("<i8").tobytes()).hexdigest()


def write_entry(file: Path | None, expert_of_neuron_F: Assignment) -> None:
    """Keep an assignment, unless nothing is kept."""
    if file is not None:
        entry = {"expert_of_neuron": expert_of_neuron_F.tolist()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**entry, "sha256": checksum(expert_of_neuron_F)})


def read_entry(file: Path | None, num_neurons: int, num_experts: int) -> Assignment | None:
    """Read an entry of the cache.

    Returns:
        int64 (F,), or None if there is none or it is damaged (said in the log; it is made anew).
    """
    if file is None:
        return None
    try:
        entry = json.loads(file.read_text())
        found = np.asarray(entry["expert_of_neuron"], dtype=np.int64)
        if entry["sha256"] != checksum(found):
            raise ValueError("the checksum differs")
        load = np.bincount(found, minlength=num_experts)
        if len(found) != num_neurons or set(load) != {num_neurons // num_experts}:
            raise ValueError("the experts are not of equal size")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        log.warning("the cached clusters %s are damaged (%s); clustering again", file, error)
        return None
    return found
