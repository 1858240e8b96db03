"""Clusters on disk, found again by the content of the keys they were made from."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_runner.files import write_json
from moe_runner.moe.clustering import ALGORITHMS, Assignment, Keys

log = logging.getLogger(__name__)

VERSION = 1  # raised when an algorithm gives other clusters for the same input


class ClusterCache:
    """Remembers which neuron is in which expert.

    Args:
        folder: where the entries are kept; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, keys_FD: Keys, num_experts: int, algorithm: str, seed: int) -> Tensor:
        """Find the clusters of these keys, or make and keep them.

        Args:
            keys_FD: rows of the first projection, float32 (F, D).
            num_experts: E; must divide F.
            algorithm: a name of `ALGORITHMS`.
            seed: of the algorithm.

        Returns:
            The expert of each neuron, int64 (F,).

        Raises:
            ValueError: if E does not divide F.
        """
        shape = (*keys_FD.shape, num_experts)
        file = self.file(keys_FD, f"{VERSION} {algorithm} {shape} {seed}")
        found = None if file is None else read_entry(file, len(keys_FD), num_experts)
        if found is None:
            found = ALGORITHMS[algorithm](keys_FD, num_experts, seed)
            if file is not None:
                entry = {"expert_of_neuron": found.tolist(), "sha256": checksum(found)}
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, entry)
        return torch.from_numpy(found)

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


def read_entry(file: Path, num_neurons: int, num_experts: int) -> Assignment | None:
    """Read an entry of the cache.

    Returns:
        int64 (F,), or None if there is none or it is damaged (said in the log; it is made anew).
    """
    try:
        entry = json.loads(file.read_text())
        found = np.asarray(entry["expert_of_neuron"], dtype=np.int64)
        load = np.bincount(found, minlength=num_experts)
        if entry["sha256"] != checksum(found):
            raise ValueError("the checksum differs")
        if len(found) != num_neurons or set(load) != {num_neurons // num_experts}:
            raise ValueError("the experts are not of equal size")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("the cached clusters %s are damaged (%s); clustering again", file, error)
        return None
    return found
