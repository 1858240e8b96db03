"""Paired differences: their standard error and interval against scipy and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moe_runner.report.effects import FEWEST, effect


def scores(values) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


def test_of_one_task_it_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(1, 1, 8), generator.normal(0, 1, 8)
    found = effect([scores(ours)], [scores(theirs)])
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval()
    assert found.n == 8
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.error == pytest.approx(stats.sem(ours - theirs))
    reach = (high - low) / 2
    assert found.low == pytest.approx(low, abs=0.05 * reach)  # the bootstrap draws
    assert found.high == pytest.approx(high, abs=0.05 * reach)


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 3), (1, 5), (4, 3)])
def test_without_an_effect_few_are_beyond_noise(tasks, seeds):
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        ours, theirs = generator.normal(size=(2, tasks, seeds))
        wrong += effect([*map(scores, ours)], [*map(scores, theirs)]).beyond_noise
    assert wrong / 400 < 0.075


def test_an_effect_of_one_task_is_noise_among_tasks():
    gains = [[5.0, 5.1, 4.9], [0.0, 0.1, -0.1], [-0.1, 0.1, 0.0], [0.1, -0.1, 0.0]]
    found = effect([*map(scores, gains)], [scores([0, 0, 0])] * 4)
    assert found.mean == pytest.approx(1.25)
    assert not found.beyond_noise  # though its seeds agree to a few hundredths
    assert found.error < 0.05


def test_what_both_have_is_compared():
    found = effect([{0: 1.0, 1: 2.0, 2: 3.0}], [{1: 1.0, 2: 1.0, 3: 9.0}])
    assert (found.n, found.mean) == (2, 1.5)
    assert found.error == pytest.approx(stats.sem([1.0, 2.0]))
    assert (found.low, found.high, found.beyond_noise) == (None, None, False)
    assert FEWEST == 3
    one = effect([{0: 1.0}], [{0: 3.0}])
    assert (one.n, one.mean, one.error) == (1, -2.0, None)
    assert effect([{0: 1.0}], [{1: 1.0}]) is None
    assert effect([{0: math.inf}], [{0: 1.0}]) is None


@pytest.mark.parametrize("gain", [0.02, -3.0, 0.0])
def test_equal_differences_tell_nothing_of_noise(gain):
    theirs = [0.1, 0.3, 0.6]
    found = effect([scores(x + gain for x in theirs)], [scores(theirs)])
    assert found.mean == pytest.approx(gain)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert (found.low, found.high, found.beyond_noise) == (None, None, False)
    moved = effect([scores(x + gain + 1e-3 * x for x in theirs)], [scores(theirs)])
    assert moved.low < moved.mean < moved.high


def test_it_repeats_bit_by_bit():
    ours, theirs = [scores([1, 2, 4])], [scores([1, 1, 1])]
    assert effect(ours, theirs) == effect(ours, theirs)
