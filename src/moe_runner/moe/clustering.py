"""Group the neurons of a feed-forward network into experts of equal size.

Neither torch nor anything else slow to import, so that worker processes start quickly.
"""

# F neurons (d_ff), D d_model, E experts

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from moe_runner.moe.balanced_kmeans import Assignment, balanced_kmeans

Keys = NDArray[np.floating]

log = logging.getLogger(__name__)

# F x D x E of all layers from which on processes are used: some seconds of work, where they take
# about one to start.
WORK_FOR_PROCESSES = 1e9


def constrained_kmeans(keys_FD: Keys, num_experts: int, seed: int) -> Assignment:
    """Cluster the unit-length keys by k-means under the constraint of equal sizes.

    The same keys, E and seed give the same clusters, in this process or a worker, whatever its
    number of threads: BLAS is held to one. Another CPU or NumPy may round and so cluster otherwise.

    Args:
        keys_FD: rows of the first projection, float (F, D).
        num_experts: E; must divide F.
        seed: of the initialisation, at least 0.

    Returns:
        The expert of each neuron, int64 (F,), values 0..E-1, each of them F / E times.

    Raises:
        ValueError: if E does not divide F, or a key is not finite.

    Source: EMoE, arXiv:2310.10908, section 3 (balanced k-means on normalised keys). The objective
    is theirs; they minimise it with the library k-means-constrained, which alternates means and a
    minimum-cost flow. Exchanges end lower (scripts/bench_clustering.py), since they count that a
    mean moves along with the neuron.
    """
    from threadpoolctl import threadpool_limits

    neurons_per_expert(len(keys_FD), num_experts)
    unit_FD = unit_keys(keys_FD)
    with threadpool_limits(1, user_api="blas"):
        return balanced_kmeans(unit_FD, num_experts, seed)


def random_clusters(keys_FD: Keys, num_experts: int, seed: int) -> Assignment:
    """Deal the neurons to the experts at random: the ablation of clustering.

    Args:
        keys_FD: float (F, D); only the number of rows is used.
        num_experts: E; must divide F.
        seed: of the permutation.

    Returns:
        The expert of each neuron, int64 (F,), values 0..E-1, each of them F / E times.

    Raises:
        ValueError: if E does not divide F.
    """
    return np.random.default_rng(seed).permutation(contiguous_clusters(keys_FD, num_experts, seed))


def contiguous_clusters(keys_FD: Keys, num_experts: int, seed: int) -> Assignment:
    """Give every expert a block of neighbouring neurons: the ablation as the reference code has it.

    Args:
        keys_FD: float (F, D); only the number of rows is used.
        num_experts: E; must divide F.
        seed: not used; the order of pretrained neurons is arbitrary, which is all the chance there
            is.

    Returns:
        The expert of each neuron, int64 (F,), in rising order, each of 0..E-1 F / E times.

    Raises:
        ValueError: if E does not divide F.
    """
    size = neurons_per_expert(len(keys_FD), num_experts)
    return np.repeat(np.arange(num_experts, dtype=np.int64), size)


ALGORITHMS: dict[str, Callable[[Keys, int, int], Assignment]] = {
    "constrained_kmeans": constrained_kmeans,
    "random": random_clusters,
    "contiguous": contiguous_clusters,
}


def cluster_all(
    keys: Mapping[str, Keys], num_experts: int, algorithm: str, seed: int, processes: int = 1
) -> Iterator[Assignment]:
    """Cluster several FFNs, in processes if that is worth it; the result does not depend on them.

    Args:
        keys: rows of the first projections, float (F, D), by a name that errors mention.
        num_experts: E; must divide every F.
        algorithm: a name of `ALGORITHMS`.
        seed: of the algorithm, the same for all.
        processes: that may work at the same time, one thread each.

    Yields:
        The expert of each neuron, int64 (F,), in the order of `keys`, each as soon as it is known.

    Raises:
        ValueError: if E does not divide an F, or a key is not finite.
    """
    work = sum(keys_FD.size * num_experts for keys_FD in keys.values())
    processes = min(processes, len(keys))
    if algorithm != "constrained_kmeans" or work < WORK_FOR_PROCESSES:
        processes = 1
    else:
        sizes = " or ".join(str(size) for size in sorted({len(k) for k in keys.values()}))
        log.info(
            "clustering %d FFNs of %s neurons into %d experts (processes: %d)",
            *(len(keys), sizes, num_experts, processes),
        )
    if processes == 1:
        for name, keys_FD in keys.items():
            yield cluster_named(name, keys_FD, num_experts, algorithm, seed)
        return
    from joblib import Parallel, delayed

    # loky: neither a fork of a process with threads, nor a second run of the user's main module.
    yield from Parallel(n_jobs=processes, backend="loky", return_as="generator")(
        delayed(cluster_named)(name, keys_FD, num_experts, algorithm, seed)
        for name, keys_FD in keys.items()
    )


def cluster_named(
    name: str, keys_FD: Keys, num_experts: int, algorithm: str, seed: int
) -> Assignment:
    """Cluster one FFN; an error says which."""
    try:
        return ALGORITHMS[algorithm](keys_FD, num_experts, seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def neurons_per_expert(num_neurons: int, num_experts: int) -> int:
    """Divide the neurons among the experts.

    Raises:
        ValueError: if the division leaves a rest.
    """
    if num_experts < 1 or num_neurons % num_experts:
        raise ValueError(f"num_experts={num_experts} does not divide the {num_neurons} neurons")
    return num_neurons // num_experts


def unit_keys(keys_FD: Keys) -> NDArray[np.float64]:
    """Scale every key to length 1, so that clusters follow directions; a zero key stays zero.

    Args:
        keys_FD: rows of the first projection, float (F, D).

    Returns:
        float64 (F, D).

    Raises:
        ValueError: if a key is not finite.
    """
    keys_FD = np.asarray(keys_FD, dtype=np.float64)
    length_F = np.sqrt(np.einsum("fd,fd->f", keys_FD, keys_FD))
    if not np.isfinite(length_F).all():
        bad = np.flatnonzero(~np.isfinite(length_F))
        raise ValueError(f"{len(bad)} keys are not finite, the first is that of neuron {bad[0]}")
    return keys_FD / np.where(length_F > 0, length_F, 1.0)[:, None]


def inertia(keys_FD: Keys, expert_of_neuron_F: Assignment) -> float:
    """Sum the squared distances of the unit-length keys to the mean of their expert.

    Args:
        keys_FD: rows of the first projection, float (F, D).
        expert_of_neuron_F: int64 (F,), not negative; experts may be of any size.

    Returns:
        The objective of k-means, 0 to F; lower: more alike.

    Raises:
        ValueError: if a key is not finite.
    """
    x_FD = unit_keys(keys_FD)
    load_E = np.bincount(expert_of_neuron_F)
    member_EF = np.arange(len(load_E))[:, None] == expert_of_neuron_F
    mean_ED = (member_EF / np.maximum(load_E, 1)[:, None]) @ x_FD
    x_FD -= mean_ED[expert_of_neuron_F]  # rather than |x|^2 - |mean|^2: no cancellation near 0
    return float(np.einsum("fd,fd->", x_FD, x_FD))
