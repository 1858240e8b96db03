"""How alike the keys of a pretrained backbone are, for its model card."""

import platform
import re
from pathlib import Path

import numpy as np
from k_means_constrained import KMeansConstrained
from torch import Tensor

NUM_EXPERTS = (64, 16)  # of the clustering table


def inertia(keys_FD: np.ndarray, num_experts: int) -> float:
    """Return the mean squared distance of unit-length keys to their expert's centre."""
    keys_FD = keys_FD / np.linalg.norm(keys_FD, axis=1, keepdims=True)
    size = len(keys_FD) // num_experts
    clusters = KMeansConstrained(
        num_experts, size_min=size, size_max=size, n_init=1, random_state=0
    ).fit(keys_FD)
    return float(clusters.inertia_) / len(keys_FD)


def shuffled(keys_FD: np.ndarray) -> np.ndarray:
    """Permute each column over the neurons by itself: same values, no neuron alike by training."""
    return np.random.default_rng(0).permuted(keys_FD, axis=0)


def arrays(keys: list[Tensor]) -> list[np.ndarray]:
    """Return copies of the keys of every layer, float64 (d_ff, d_model)."""
    return [key.detach().double().numpy().copy() for key in keys]


def clustering_table(trained: list[np.ndarray], initial: list[np.ndarray]) -> tuple[str, float]:
    """Return a Markdown table of inertias, and the mean ratio of pretrained to shuffled."""
    lines = ["| experts | layer | pretrained | shuffled | initial | pretrained / shuffled |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    ratios = []
    for num_experts in NUM_EXPERTS:
        rows = [
            [inertia(keys, num_experts) for keys in (new, shuffled(new), old)]
            for new, old in zip(trained, initial, strict=True)
        ]
        for layer, row in [*enumerate(rows), ("mean", np.mean(rows, axis=0))]:
            numbers = " | ".join(f"{value:.4f}" for value in (*row, row[0] / row[1]))
            lines.append(f"| {num_experts} | {layer} | {numbers} |")
        ratios += [row[0] / row[1] for row in rows]
    return "\n".join(lines), float(np.mean(ratios))


def processor() -> str:
    """Return the processor's name as Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()
