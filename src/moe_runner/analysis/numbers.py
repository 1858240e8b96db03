"""The figures of an analysis, as pure functions of arrays. No torch."""

# T tokens, E experts, K selected experts of a token, V values of something known of a token

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SHUFFLES = 5  # to see what a figure is by chance
UNSEEN = 1.0  # pseudo-count per class, so that a class that an expert never takes has a finite lift


def shares(chosen_TE: Bools) -> Floats:
    """Divide the choices among the experts.

    Args:
        chosen_TE: selected experts, bool (T, E), with at least one True.

    Returns:
        float (E,), of sum 1.
    """
    load_E = chosen_TE.sum(0).astype(np.float64)
    return load_E / load_E.sum()


def entropy(counts: NDArray[np.generic], axis: int = -1) -> Floats:
    """Compute the entropy of counts or shares along an axis, in nats; 0 where there is none."""
    numbers = np.asarray(counts, dtype=np.float64)
    total = numbers.sum(axis, keepdims=True)
    p = numbers / np.where(total > 0, total, 1.0)
    return np.asarray(0.0 - (p * np.log(np.where(p > 0, p, 1.0))).sum(axis))  # never -0.0


def evenness(load_E: NDArray[np.generic]) -> float:
    """Measure how evenly experts are used: entropy of the shares by its maximum, 0 to 1."""
    return float(entropy(load_E)) / np.log(len(load_E)) if len(load_E) > 1 else 0.0


def joint_counts(chosen_TE: Bools, value_T: Ints) -> tuple[Ints, Ints]:
    """Count which experts take the tokens of each value.

    Args:
        chosen_TE: selected experts, bool (T, E).
        value_T: of each token, int64 (T,).

    Returns:
        The values that occur, sorted, int64 (V,), and the choices, int64 (V, E).
    """
    values_V, place_T = np.unique(value_T, return_inverse=True)
    counts_VE = np.zeros((len(values_V), chosen_TE.shape[1]), dtype=np.int64)
    np.add.at(counts_VE, place_T, chosen_TE.astype(np.int64))
    return values_V, counts_VE


def mutual_information(counts_VE: NDArray[np.generic]) -> float:
    """Compute the mutual information of two variables from their joint counts, in nats."""
    both = entropy(np.ravel(counts_VE))
    return max(0.0, float(entropy(counts_VE.sum(0)) + entropy(counts_VE.sum(1)) - both))


def normalised_mutual_information(counts_VE: NDArray[np.generic]) -> float:
    """Divide the mutual information by the mean of the two entropies.

    Args:
        counts_VE: how often value and expert meet, (V, E). With K selected experts each choice
            counts, and the figure stays below 1 however well the value tells the selection.

    Returns:
        0 (independent) to 1 (each tells the other); 0 if neither varies.
    """
    mean = (float(entropy(counts_VE.sum(0))) + float(entropy(counts_VE.sum(1)))) / 2
    return mutual_information(counts_VE) / mean if mean > 0 else 0.0


def explained(chosen_TE: Bools, value_T: Ints) -> float:
    """Tell how much of the uncertainty, whether a token goes to an expert, a value takes away.

    Args:
        chosen_TE: selected experts, bool (T, E).
        value_T: of each token, int64 (T,).

    Returns:
        Sum over the experts of I(selected; value), by that of H(selected): 0 to 1 for any K. 1 if
        the value tells the selection; NaN if every token has the same selection.
    """
    _, counts_VE = joint_counts(chosen_TE, value_T)
    tokens_V = np.unique(value_T, return_counts=True)[1].astype(np.float64)
    before = binary_entropy(chosen_TE.mean(0)).sum()
    left_VE = binary_entropy(counts_VE / tokens_V[:, None])
    left = (tokens_V[:, None] * left_VE).sum() / tokens_V.sum()
    return max(0.0, 1 - float(left / before)) if before > 1e-12 else float("nan")


def binary_entropy(p: NDArray[np.generic]) -> Floats:
    """Compute the entropy of yes and no, elementwise, in nats."""
    return entropy(np.stack([p, 1 - np.asarray(p, dtype=np.float64)], -1))


@dataclass(frozen=True)
class Information:
    """What something known of the tokens tells of their experts; `explained` as there.

    Args:
        nmi: normalised mutual information.
        nmi_by_chance: the same where the values are shuffled: what few tokens make of nothing.
        explained: share of the selection's uncertainty that the value takes away.
        explained_by_chance: the same where the values are shuffled.
    """

    nmi: float
    nmi_by_chance: float
    explained: float
    explained_by_chance: float


def information(chosen_TE: Bools, value_T: Ints, unit_T: Ints | None = None) -> Information:
    """Measure what a value tells of the experts, and what it would tell by chance.

    Args:
        chosen_TE: selected experts, bool (T, E).
        value_T: of each token, int64 (T,).
        unit_T: tokens of one number have the same value and are shuffled together: the text that
            each is in, for the text's label. None: each is by itself.
    """
    rng = np.random.default_rng(0)
    unit_T = np.arange(len(value_T)) if unit_T is None else unit_T
    _, first, place_T = np.unique(unit_T, return_index=True, return_inverse=True)
    own = value_T[first]
    chance = []
    for _ in range(SHUFFLES):
        shuffled_T = rng.permutation(own)[place_T]
        chance.append((nmi_of(chosen_TE, shuffled_T), explained(chosen_TE, shuffled_T)))
    nmi_by_chance, explained_by_chance = np.mean(chance, axis=0)
    return Information(
        nmi_of(chosen_TE, value_T),
        float(nmi_by_chance),
        explained(chosen_TE, value_T),
        float(explained_by_chance),
    )


def nmi_of(chosen_TE: Bools, value_T: Ints) -> float:
    """Compute the normalised mutual information of experts and values, see there."""
    return normalised_mutual_information(joint_counts(chosen_TE, value_T)[1])


def lift(counts_VE: Ints) -> Floats:
    """Compare how often an expert takes a value with how often all experts do.

    Args:
        counts_VE: choices, int64 (V, E).

    Returns:
        log2 of P(value | expert) / P(value), float (V, E); `UNSEEN` pseudo-choices per value,
        spread as the values are, keep it finite. 0 for an expert without a token.
    """
    p_V1 = counts_VE.sum(1, keepdims=True) / counts_VE.sum()
    added = UNSEEN * len(counts_VE)
    within_VE = (counts_VE + added * p_V1) / (counts_VE.sum(0) + added)
    return np.asarray(np.log2(within_VE / p_V1))


def distinctive(counts_VE: Ints, expert: int, count: int) -> list[int]:
    """Find the values that tell most that a choice is an expert's: frequent and rare elsewhere.

    Args:
        counts_VE: choices, int64 (V, E).
        expert: 0..E-1.
        count: at most so many.

    Returns:
        Rows, by n log(P(value | expert) / P(value)), the largest first; only where that is above 0.
    """
    own_V = counts_VE[:, expert].astype(np.float64)
    if own_V.sum() == 0:
        return []
    ratio_V = (own_V / own_V.sum()) / (counts_VE.sum(1) / counts_VE.sum())
    weight_V = own_V * np.log(np.where(ratio_V > 0, ratio_V, 1.0))
    order = np.argsort(-weight_V, kind="stable")[:count]
    return [int(v) for v in order if weight_V[v] > 1e-9]


def held(energy_TE: NDArray[np.floating], chosen_TE: Bools) -> tuple[float, float]:
    """Tell how much of the dense activation the selected experts hold, and the best could.

    Args:
        energy_TE: squared length of each expert's activations, float (T, E), at least 0.
        chosen_TE: selected experts, bool (T, E), K of each token.

    Returns:
        Share of the squared length of all activations in the selected experts, and in those K that
        have most of it; means over the tokens that have any activation. K experts at random hold
        K / E.
    """
    energy_TE = np.asarray(energy_TE, dtype=np.float64)
    total_T = energy_TE.sum(1)
    active = total_T > 0
    if not active.any():
        return 0.0, 0.0
    energy_TE, chosen_TE, total_T = energy_TE[active], chosen_TE[active], total_T[active]
    ranked_TE = -np.sort(-energy_TE, axis=1)
    best_TE = np.arange(energy_TE.shape[1]) < chosen_TE.sum(1, keepdims=True)
    selected = (energy_TE * chosen_TE).sum(1) / total_T
    return float(selected.mean()), float(((ranked_TE * best_TE).sum(1) / total_T).mean())


def change(before_TE: Bools, after_TE: Bools) -> tuple[float, float]:
    """Measure which choices of the same tokens are not what they were.

    Args:
        before_TE: selected experts, bool (T, E).
        after_TE: the same of another model.

    Returns:
        The fraction of choices that changed, 0 to 1, and what it would be if the two selections had
        their loads but nothing else in common.
    """
    choices = before_TE.sum()
    kept = (before_TE & after_TE).sum() / choices
    by_chance = (before_TE.sum(0) * after_TE.mean(0)).sum() / choices
    return 1 - float(kept), 1 - float(by_chance)


def moved(before_TE: Bools, after_TE: Bools) -> Floats:
    """Tell where the tokens of each expert went.

    Returns:
        Share of the tokens that had expert e before and have expert f after, float (E, E); a row
        sums to K, or is NaN for an expert that had no token.
    """
    counts = before_TE.astype(np.float64).T @ after_TE.astype(np.float64)
    had_E1 = before_TE.sum(0)[:, None].astype(np.float64)
    return np.asarray(counts / np.where(had_E1 > 0, had_E1, np.nan))


def cosines(rows: NDArray[np.floating]) -> Floats:
    """Compute the cosine of every two rows, float (N, N); 0 with a row of zeros."""
    rows = np.asarray(rows, dtype=np.float64)
    return from_gram(rows @ rows.T)


def from_gram(gram_EE: NDArray[np.floating]) -> Floats:
    """Turn scalar products of every two vectors into cosines; 0 with a vector of length 0."""
    gram_EE = np.asarray(gram_EE, dtype=np.float64)
    length_E = np.sqrt(np.diag(gram_EE).clip(min=0))
    inverse_E = np.divide(1.0, length_E, out=np.zeros_like(length_E), where=length_E > 0)
    return np.asarray((gram_EE * inverse_E[:, None] * inverse_E).clip(-1, 1))


def between(square_NN: Floats) -> Floats:
    """Take what stands between two different ones of a symmetric matrix, float (N (N - 1) / 2,)."""
    return np.asarray(square_NN[np.triu_indices(len(square_NN), 1)])


def neighbours_together(cosine_EE: Floats) -> Ints:
    """Order experts so that alike ones stand side by side: each next is most like the last."""
    left = list(range(len(cosine_EE)))
    order = [left.pop(0)]
    while left:
        nearest = max(left, key=lambda e: float(cosine_EE[order[-1], e]))
        left.remove(nearest)
        order.append(nearest)
    return np.array(order, dtype=np.int64)
