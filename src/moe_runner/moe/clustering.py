"""Group the neurons of a feed-forward network into experts of equal size."""

# F neurons (d_ff), D d_model, E experts

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.floating]
Assignment = NDArray[np.int64]


def unit_keys(keys_FD: Keys) -> NDArray[np.float64]:
    """Scale every key to length 1, so that clusters follow directions; a zero key stays zero.

    Args:
        keys_FD: rows of the first projection, float (F, D).

    Returns:
        float64 (F, D).
    """
    keys = np.asarray(keys_FD, dtype=np.float64)
    length = np.linalg.norm(keys, axis=1, keepdims=True)
    return keys / np.where(length > 0, length, 1.0)


def constrained_kmeans(keys_FD: Keys, num_experts: int, seed: int) -> Assignment:
    """Cluster the unit-length keys by k-means under the constraint of equal sizes.

    Args:
        keys_FD: rows of the first projection, float (F, D).
        num_experts: E; must divide F.
        seed: of the initialisation.

    Returns:
        The expert of each neuron, int64 (F,), values 0..E-1, each of them F / E times.

    Raises:
        ValueError: if E does not divide F.

    Source: EMoE, arXiv:2310.10908, section 3 (balanced k-means on normalised keys); the solver is
    k-means-constrained (minimum-cost flow) with its own ten initialisations.
    """
    from k_means_constrained import KMeansConstrained  # imports scipy and ortools: slow

    size = neurons_per_expert(keys_FD.shape[0], num_experts)
    if num_experts == 1:
        return np.zeros(keys_FD.shape[0], dtype=np.int64)
    solver = KMeansConstrained(
        num_experts, size_min=size, size_max=size, max_iter=1000, random_state=seed
    )
    return np.asarray(solver.fit_predict(unit_keys(keys_FD)), dtype=np.int64)


def random_clusters(keys_FD: Keys, num_experts: int, seed: int) -> Assignment:
    """Deal the neurons to the experts at random: the ablation of clustering.

    Args:
        keys_FD: float (F, D); only the number of rows is used.
        num_experts: E; must divide F.
        seed: of the permutation. (The reference code takes contiguous blocks, without a seed.)

    Returns:
        The expert of each neuron, int64 (F,), values 0..E-1, each of them F / E times.

    Raises:
        ValueError: if E does not divide F.
    """
    size = neurons_per_expert(keys_FD.shape[0], num_experts)
    experts = np.repeat(np.arange(num_experts, dtype=np.int64), size)
    return np.random.default_rng(seed).permutation(experts)


ALGORITHMS = {"constrained_kmeans": constrained_kmeans, "random": random_clusters}


def neurons_per_expert(num_neurons: int, num_experts: int) -> int:
    """Divide the neurons among the experts.

    Raises:
        ValueError: if the division leaves a rest.
    """
    if num_experts < 1 or num_neurons % num_experts:
        raise ValueError(f"num_experts={num_experts} does not divide the {num_neurons} neurons")
    return num_neurons // num_experts


def inertia(keys_FD: Keys, expert_of_neuron_F: Assignment) -> float:
    """Sum the squared distances of the unit-length keys to the mean of their expert.

    Args:
        keys_FD: rows of the first projection, float (F, D).
        expert_of_neuron_F: int64 (F,).

    Returns:
        The objective of k-means, 0 to F; lower: more alike.
    """
    keys = unit_keys(keys_FD)
    total = 0.0
    for expert in np.unique(expert_of_neuron_F):
        members = keys[expert_of_neuron_F == expert]
        total += float(((members - members.mean(0)) ** 2).sum())
    return total
