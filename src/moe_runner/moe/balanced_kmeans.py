"""Balanced k-means by exchanges: E groups of equal size with a low sum of squared distances.

Equal sizes leave the objective of k-means a simple form: for groups of N keys it is the sum of
all |key|^2 minus (the sum over the groups of |sum of its keys|^2) / N. A few steps of k-means make
a rough grouping (`initial_groups`), then pairs of experts exchange neurons as long as the inertia
falls (`exchange`). Every grouping on the way is an equal one, so the assignment problem of
balanced k-means need not be solved. Only NumPy is needed.
"""

# F neurons (d_ff), D d_model, E experts, N = F / E neurons of an expert, P pairs of experts

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Assignment = NDArray[np.int64]

TRIES = 8  # keys drawn for each that k-means++ chooses
MEANS_STEPS = 10  # of k-means before the exchanges
# A start takes about 4 ns x F x D x E. Small FFNs get several: with few experts, some starts end 2%
# higher than others there; from the size of MiniLM on (1536 x 384), 0.3% at most.
MOST_STARTS = 4
WORK_OF_ALL_STARTS = 10e6  # F x D x E


def balanced_kmeans(keys_FD: NDArray[np.float64], num_experts: int, seed: int) -> Assignment:
    """Group keys into experts of equal size, the best of a few starts.

    Args:
        keys_FD: finite, float64 (F, D).
        num_experts: E; divides F.
        seed: of the initialisation.

    Returns:
        The expert of each neuron, int64 (F,), values 0..E-1, each of them F / E times.
    """
    if num_experts == len(keys_FD):
        return np.arange(num_experts, dtype=np.int64)
    x_FD = standardize(keys_FD)
    rng = np.random.default_rng(seed)
    starts = int(np.clip(WORK_OF_ALL_STARTS // (x_FD.size * num_experts), 1, MOST_STARTS))
    found = [exchange(x_FD, initial_groups(x_FD, num_experts, rng)) for _ in range(starts)]
    members_EN = max(found, key=lambda members_EN: sum_of_squares(x_FD[members_EN].sum(1)))
    expert_of_neuron_F = np.empty(len(x_FD), dtype=np.int64)
    expert_of_neuron_F[members_EN] = np.arange(num_experts)[:, None]
    return expert_of_neuron_F


def standardize(keys_FD: NDArray[np.float64]) -> Floats:
    """Move the mean to 0 and the mean square of the length to 1.

    Neither changes which grouping is best; float32 then suffices for keys that are all alike.
    """
    x_FD = keys_FD - keys_FD.mean(0)
    scale = float(np.sqrt(np.einsum("fd,fd->", x_FD, x_FD) / len(x_FD)))
    return (x_FD / (scale or 1.0)).astype(np.float32)


def initial_groups(x_FD: Floats, num_experts: int, rng: np.random.Generator) -> Assignment:
    """Group the keys by k-means with a quick balanced assignment, from a greedy k-means++ start.

    Returns:
        The neurons of each expert, int64 (E, N).
    """
    centre_ED = distant_keys(x_FD, num_experts, rng)
    for _ in range(1 + MEANS_STEPS):
        members_EN = fill(squared_distances(x_FD, squares(x_FD), centre_ED))
        centre_ED = x_FD[members_EN].mean(1)
    return members_EN


def distant_keys(x_FD: Floats, number: int, rng: np.random.Generator) -> Floats:
    """Choose keys by greedy k-means++.

    Each is the best of a few drawn with a chance that grows with the distance from those before.
    """
    chosen: list[int] = []
    squares_F = squares(x_FD)
    nearest_F = np.full(len(x_FD), np.float32(1e9))
    for _ in range(number):
        weights_F = np.maximum(nearest_F, 1e-9, dtype=np.float64)  # all may be 0: duplicates
        tries_T = rng.choice(len(x_FD), TRIES, p=weights_F / weights_F.sum())
        nearest_FT = np.minimum(
            nearest_F[:, None], squared_distances(x_FD, squares_F, x_FD[tries_T])
        )
        best = int(nearest_FT.sum(0).argmin())
        nearest_F = nearest_FT[:, best]
        chosen.append(int(tries_T[best]))
    return x_FD[chosen]


def squared_distances(x_FD: Floats, squares_F: Floats, centre_ED: Floats) -> Floats:
    """Measure from every key to every centre, float32 (F, E); rounding may leave it below 0."""
    return squares_F[:, None] - 2 * (x_FD @ centre_ED.T) + squares(centre_ED)


def squares(x_FD: Floats) -> Floats:
    """Square the length of every row."""
    return np.einsum("fd,fd->f", x_FD, x_FD)


def sum_of_squares(sums_ED: Floats) -> float:
    """Square and sum all elements, in float64."""
    return float(np.square(sums_ED, dtype=np.float64).sum())


def fill(distance_FE: Floats) -> Assignment:
    """Let neurons, those nearest to an expert first, join the nearest expert that has room.

    Returns:
        The neurons of each expert, int64 (E, N).
    """
    num_neurons, num_experts = distance_FE.shape
    members: list[list[int]] = [[] for _ in range(num_experts)]
    for neuron in np.argsort(distance_FE.min(1), kind="stable"):
        expert = int(distance_FE[neuron].argmin())
        members[expert].append(neuron)
        if len(members[expert]) == num_neurons // num_experts:
            distance_FE[:, expert] = np.inf
    return np.array(members)


def exchange(x_FD: Floats, members_EN: Assignment) -> Assignment:
    """Let pairs of experts exchange neurons until no pair gains by its two most eager ones.

    In a round an expert takes part in one pair at most, so what the pairs gain adds up.

    Args:
        x_FD: standardized keys.
        members_EN: the neurons of each expert.

    Returns:
        The neurons of each expert, int64 (E, N).
    """
    members_EN = members_EN.copy()
    sums_ED = x_FD[members_EN].sum(1)
    scores_FE = x_FD @ sums_ED.T
    squares_F = squares(x_FD)
    experts_E = np.arange(len(members_EN))
    tolerance = 1e-5 * members_EN.shape[1]  # above rounding: what is gained by no change at all
    total, before = sum_of_squares(sums_ED), -np.inf
    while total > before + tolerance:  # must rise by so much, so it ends
        # How much more neuron n of expert e is drawn to another expert than to e without itself.
        pull_ENE = scores_FE[members_EN]
        pull_ENE -= (pull_ENE[experts_E, :, experts_E] - squares_F[members_EN])[:, :, None]
        changed: list[int] = []
        for a, b in promising_pairs(x_FD, members_EN, pull_ENE, tolerance):
            order_a = np.argsort(-pull_ENE[a, :, b], kind="stable")
            order_b = np.argsort(-pull_ENE[b, :, a], kind="stable")
            most = max(1, int((pull_ENE[a, order_a, b] + pull_ENE[b, order_b, a] > 0).sum()))
            from_a, from_b = members_EN[a, order_a[:most]], members_EN[b, order_b[:most]]
            # What sums_ED[a] gains if the first, the first two, ... are exchanged, and by how much
            # the inertia falls, times N / 2: half of what |sums_ED[a]|^2 + |sums_ED[b]|^2 grows by.
            shift_ND = np.cumsum(x_FD[from_b] - x_FD[from_a], axis=0)
            gain_N = shift_ND @ (sums_ED[a] - sums_ED[b]) + squares(shift_ND)
            best = int(gain_N.argmax())
            if gain_N[best] > tolerance:
                members_EN[a, order_a[: best + 1]] = from_b[: best + 1]
                members_EN[b, order_b[: best + 1]] = from_a[: best + 1]
                sums_ED[a] += shift_ND[best]
                sums_ED[b] -= shift_ND[best]
                changed += [a, b]
        scores_FE[:, changed] = x_FD @ sums_ED[changed].T
        before, total = total, sum_of_squares(sums_ED)
    return members_EN


def promising_pairs(
    x_FD: Floats, members_EN: Assignment, pull_ENE: Floats, tolerance: float
) -> list[tuple[int, int]]:
    """Pair experts by what they gain if each gives the other the neuron most drawn to it.

    Returns:
        Pairs without a common expert, best first.
    """
    keenest_EE = pull_ENE.argmax(1)
    pull_EE = pull_ENE.max(1)
    pull_EE += pull_EE.T.copy()
    # Two neurons that change places also lose each other's pull, twice their product, which is
    # at least -2 x the largest square: most pairs need not be looked at.
    least = tolerance - 2 * float(squares(x_FD).max())
    a_P, b_P = np.nonzero(np.triu(pull_EE > least, k=1))
    i_P = members_EN[a_P, keenest_EE[a_P, b_P]]
    j_P = members_EN[b_P, keenest_EE[b_P, a_P]]
    gain_P = pull_EE[a_P, b_P] - 2 * row_products(x_FD, i_P, j_P)
    pairs: list[tuple[int, int]] = []
    free_E = np.ones(len(members_EN), dtype=bool)
    for p in np.argsort(-gain_P, kind="stable"):
        a, b = int(a_P[p]), int(b_P[p])
        if gain_P[p] > tolerance and free_E[a] and free_E[b]:
            free_E[[a, b]] = False
            pairs.append((a, b))
    return pairs


def row_products(x_FD: Floats, i_P: Assignment, j_P: Assignment) -> Floats:
    """Multiply key i by key j for each pair, in pieces: there may be millions of pairs."""
    product_P = np.empty(len(i_P), dtype=np.float32)
    for first in range(0, len(i_P), 4096):
        piece = slice(first, first + 4096)
        product_P[piece] = np.einsum("pd,pd->p", x_FD[i_P[piece]], x_FD[j_P[piece]])
    return product_P
