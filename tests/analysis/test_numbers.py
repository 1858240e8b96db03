"""The figures of an analysis against known values, other implementations and their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from moe_runner.analysis import numbers


def one_of(expert_T: np.ndarray, num_experts: int) -> np.ndarray:
    """Select one expert of each token, bool (T, E)."""
    return np.eye(num_experts, dtype=bool)[expert_T]


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def top_k(rng, tokens: int, num_experts: int, k: int) -> np.ndarray:
    """Select k experts of each token at random, bool (T, E)."""
    order = rng.random((tokens, num_experts)).argsort(1)
    return order < k


def test_shares_sum_to_one_and_count_each_choice():
    chosen = np.array([[1, 1, 0], [1, 0, 1]], dtype=bool)
    assert numbers.shares(chosen).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(("load", "expected"), [([5, 5, 5, 5], 1.0), ([7, 0, 0, 0], 0.0)])
def test_evenness_is_one_for_an_even_load_and_zero_for_a_single_expert(load, expected):
    assert numbers.evenness(np.array(load)) == pytest.approx(expected, abs=1e-12)


def test_entropy_of_one_value_is_zero_without_a_sign():
    assert math.copysign(1, float(numbers.entropy(np.array([3, 0])))) == 1


def test_nmi_is_one_for_a_bijection():
    value = np.array([7, 3, 9, 9, 7, 3, 3])
    expert = np.searchsorted([3, 7, 9], value)
    found = numbers.information(one_of(expert, 4), value)
    assert found.nmi == pytest.approx(1, abs=1e-12)
    assert found.explained == pytest.approx(1, abs=1e-12)


def test_nmi_is_zero_for_independent_values_and_experts():
    value, expert = (a.ravel() for a in np.meshgrid(np.arange(5), np.arange(4)))
    assert numbers.nmi_of(one_of(expert, 4), value) == pytest.approx(0, abs=1e-12)
    assert numbers.explained(one_of(expert, 4), value) == pytest.approx(0, abs=1e-12)


def test_a_random_choice_explains_no_more_than_chance(rng):
    found = numbers.information(top_k(rng, 2000, 8, 2), rng.integers(0, 50, 2000))
    assert 0 < found.nmi < 0.02
    assert found.nmi == pytest.approx(found.nmi_by_chance, rel=0.15)
    assert found.explained == pytest.approx(found.explained_by_chance, rel=0.15)


def test_nmi_of_one_expert_each_equals_scikit_learns(rng):
    value = rng.integers(0, 12, 500)
    expert = np.where(rng.random(500) < 0.6, value % 5, rng.integers(0, 5, 500))
    expected = normalized_mutual_info_score(value, expert)
    assert numbers.nmi_of(one_of(expert, 5), value) == pytest.approx(expected, abs=1e-12)


def test_explained_sums_the_information_of_every_expert(rng):
    value = rng.integers(0, 6, 400)
    chosen = top_k(rng, 400, 5, 2)
    chosen[value == 2] = [True, True, False, False, False]
    information = sum(mutual_info_score(value, chosen[:, e]) for e in range(5))
    entropy = sum(mutual_info_score(chosen[:, e], chosen[:, e]) for e in range(5))
    assert numbers.explained(chosen, value) == pytest.approx(information / entropy, abs=1e-12)


def test_a_value_that_tells_several_experts_explains_all_though_its_nmi_is_below_one():
    value = np.array([0, 1, 2, 3] * 10)
    chosen = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=bool)[value]
    assert numbers.explained(chosen, value) == pytest.approx(1, abs=1e-12)
    assert numbers.nmi_of(chosen, value) == pytest.approx(0.5, abs=1e-12)


def test_nothing_is_explained_where_every_token_has_the_same_experts():
    chosen = np.array([[True, True, False]] * 6)
    assert math.isnan(numbers.explained(chosen, np.arange(6)))


def test_values_of_a_unit_are_shuffled_together(rng):
    """50 texts of 20 tokens, each with an expert of its own: labels seem to tell, and do not."""
    text = np.repeat(np.arange(50), 20)
    label = rng.integers(0, 2, 50)[text]
    chosen = one_of(text % 10, 10)
    together = numbers.information(chosen, label, text)
    apart = numbers.information(chosen, label)
    assert together.nmi == pytest.approx(together.nmi_by_chance, rel=0.5)
    assert apart.nmi > 10 * apart.nmi_by_chance


def test_lift_is_finite_and_near_the_plain_ratio():
    counts = np.array([[300, 0, 0], [100, 600, 0]])
    found = numbers.lift(counts)
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(math.log2(0.75 / 0.3), abs=0.01)
    assert found[1, 1] == pytest.approx(math.log2(1 / 0.7), abs=0.01)
    assert found[0, 1] < -5
    assert found[:, 2].tolist() == [0, 0]


def test_distinctive_values_are_frequent_and_rare_elsewhere():
    counts = np.array([[50, 50], [40, 0], [1, 0], [0, 30]])
    assert numbers.distinctive(counts, 0, 4) == [1, 2]
    assert numbers.distinctive(counts, 0, 1) == [1]
    assert numbers.distinctive(counts, 1, 4) == [3, 0]
    assert numbers.distinctive(np.array([[2, 0]]), 1, 4) == []


def test_held_by_hand():
    energy = np.array([[6.0, 3.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    chosen = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 0]], dtype=bool)
    selected, best = numbers.held(energy, chosen)
    assert selected == pytest.approx((0.7 + 0.5) / 2)
    assert best == pytest.approx((0.9 + 0.75) / 2)


def test_the_best_hold_at_least_what_the_selected_hold_and_all_hold_all(rng):
    energy = rng.random((200, 8)).astype(np.float32)
    for k in range(1, 9):
        selected, best = numbers.held(energy, top_k(rng, 200, 8, k))
        assert 0 <= selected <= best <= 1 + 1e-12
    assert (selected, best) == (pytest.approx(1), pytest.approx(1))
    assert numbers.held(np.zeros((3, 2)), top_k(rng, 3, 2, 1)) == (0, 0)


def test_random_experts_hold_k_of_e(rng):
    energy = rng.random((20_000, 8)) ** 4
    assert numbers.held(energy, top_k(rng, 20_000, 8, 3))[0] == pytest.approx(3 / 8, abs=0.01)


def test_change_is_none_of_the_same_and_its_chance_that_of_shuffled_tokens(rng):
    before, after = top_k(rng, 500, 6, 2), top_k(rng, 500, 6, 2)
    after[:, 0] |= before[:, 0]
    after[(after.sum(1) == 3), 1:] = False  # uneven, of any K
    assert numbers.change(before, before)[0] == 0
    shuffled = [numbers.change(before, rng.permutation(after))[0] for _ in range(300)]
    assert numbers.change(before, after)[1] == pytest.approx(np.mean(shuffled), abs=0.005)


def test_moved_tells_where_tokens_went():
    before = one_of(np.array([0, 0, 0, 1]), 3)
    after = one_of(np.array([0, 2, 2, 1]), 3)
    found = numbers.moved(before, after)
    np.testing.assert_allclose(found[0], [1 / 3, 0, 2 / 3])
    np.testing.assert_allclose(found[1], [0, 1, 0])
    assert np.isnan(found[2]).all()


def test_cosines_of_known_vectors():
    found = numbers.cosines(np.array([[1, 0], [2, 0], [0, 3], [-1, 0], [0, 0]]))
    assert found[0].tolist() == [1, 1, 0, -1, 0]
    assert numbers.between(found[:3, :3]).tolist() == [1, 0, 0]


def test_neighbours_are_put_together(rng):
    groups = np.array([0, 1, 0, 1, 0, 1])
    cosine = (groups[:, None] == groups).astype(float)
    order = numbers.neighbours_together(cosine)
    assert sorted(order.tolist()) == list(range(6))
    assert groups[order].tolist() == [0, 0, 0, 1, 1, 1]
