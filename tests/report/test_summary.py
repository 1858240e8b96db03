"""Aggregation and the table at the end of a command, on hand-made results."""

from __future__ import annotations

import io
import itertools
import random
from fractions import Fraction

import pytest
from rich.console import Console

from moe_runner.report.summary import aggregate, build_table, headline, mean_ranks, ranks_of
from moe_runner.runs.result import Result
from tests.results import make_result, scores


def result(
    method="emoe",
    task="cola",
    primary=0.5,
    seed=0,
    rate=1e-3,
    ood=None,
    further=None,
    suite="glue",
    **settings,
) -> Result:
    sets = {} if ood is None else ood
    return make_result(
        {"method": method, "suite": suite, "task": task, "learning_rate": rate, "seed": seed},
        primary,
        settings={"method.top_k": 16, "trainer.epochs": 10, **settings},
        id_metrics={"validation": scores(primary), **(further or {})},
        ood_metrics={k: None if v is None else scores(v) for k, v in sets.items()},
    )


def text(*args) -> str:
    stream = io.StringIO()
    Console(width=140, file=stream).print(build_table(*args))
    return stream.getvalue()


def test_the_best_rate_is_chosen_by_the_mean_over_seeds_and_ood_is_read_there():
    results = [
        result(primary=0.9, rate=1e-3, seed=0, ood={"a": 0.1}),
        result(primary=0.1, rate=1e-3, seed=1, ood={"a": 0.1}),
        result(primary=0.6, rate=2e-3, seed=0, ood={"a": 0.3}),
        result(primary=0.8, rate=2e-3, seed=1, ood={"a": 0.5}),
    ]
    cell = aggregate(results)
    assert cell.learning_rate == 2e-3
    assert cell.mean == pytest.approx(0.7)
    assert cell.std == pytest.approx(0.1)  # of the population, not of a sample
    assert cell.ood == {"a": pytest.approx(0.4)}
    assert cell.n == 2


def test_a_set_that_no_run_has_is_not_available():
    rows = [result(ood={"imdb": None, "yelp": 0.25}, further={"validation_mismatched": None})]
    shown = text(rows, {})
    assert "imdb not available, yelp 25.0" in shown
    assert "50.0 (mismatched not available)" in shown


def test_mean_ranks_share_ties_and_skip_sets_that_one_system_lacks():
    cells = {
        ("cola", "x"): aggregate([result(ood={"a": 0.9, "b": 0.5, "c": 0.1})]),
        ("cola", "y"): aggregate([result(ood={"a": 0.1, "b": 0.5, "c": None})]),
    }
    # a: 1 and 2; b: tied at 1.5; c is not ranked
    assert mean_ranks(cells) == {"x": 1.25, "y": 1.75}
    assert mean_ranks({("cola", "x"): cells["cola", "x"]}) == {}


@pytest.mark.parametrize("lower", [False, True])
def test_ranks_of_simulated_ties_are_those_of_exact_fractions(lower):
    """Accuracies of some examples over seeds: many means are equal as fractions, not as floats."""
    rng = random.Random(0)
    split_by_floats = ties = 0
    for _ in range(2000):
        examples = rng.choice([3, 7, 49, 200, 277, 408, 1043, 5463])
        seeds = rng.choice([2, 3, 5, 9])
        rights: dict[str, list[int]] = {}
        total = rng.randrange(examples)
        for name in "abcde":
            own = [rng.randrange(examples + 1) for _ in range(seeds)]
            if rng.random() < 0.5:  # the same sum in another way
                own = split(rng, total, seeds, examples)
            rights[name] = own
        exact = {n: Fraction(sum(own), seeds * examples) for n, own in rights.items()}
        floats = {n: sum(k / examples for k in own) / seeds for n, own in rights.items()}
        for one, other in itertools.combinations("abcde", 2):
            ties += exact[one] == exact[other]
            split_by_floats += exact[one] == exact[other] and floats[one] != floats[other]
        expected = {}
        for name, score in exact.items():
            better = sum(s < score if lower else s > score for s in exact.values())
            equal = sum(s == score for s in exact.values())
            expected[name] = better + (equal + 1) / 2
        assert ranks_of(floats, lower=lower) == expected
    assert ties > 1000
    assert split_by_floats > 50  # so comparing floats would not do


def split(rng: random.Random, total: int, parts: int, most: int) -> list[int]:
    """Split a whole number into parts of at most so much."""
    own = []
    for left in range(parts, 0, -1):
        part = rng.randint(max(0, total - most * (left - 1)), min(most, total))
        part = total if left == 1 else part
        own.append(part)
        total -= part
    return own


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.1 + 0.2, 0.3, 0.2], [1.5, 1.5, 3]),
        ([1e4 / 3, 1e4 / 3 + 1e-11, 7.0], [1.5, 1.5, 3]),  # perplexities
        ([0.5, 0.5 - 1e-7, 0.5 - 2e-7], [1, 2, 3]),  # one example of ten million
        ([0.0, 5e-17, -5e-17], [2, 2, 2]),
        ([-0.2], [1]),
    ],
)
def test_ranks_by_hand(scores, ranks):
    names = [str(i) for i in range(len(scores))]
    assert list(ranks_of(dict(zip(names, scores, strict=True)), lower=False)[n] for n in names) == (
        ranks
    )


def test_the_table_has_averages_for_systems_with_all_tasks_only():
    rows = [
        result("dense", "cola", 0.4, ood={"a": 0.2}),
        result("emoe", "cola", 0.6, ood={"a": 0.4}),
        result("dense", "rte", 0.6),
    ]
    shown = text(rows, {"qqp": "no data"})
    average = next(line for line in shown.splitlines() if "average" in line)
    assert "dense bert_tiny" in average
    assert "50.0" in average
    assert "no data" in next(line for line in shown.splitlines() if "qqp" in line)
    assert "chosen on the ID set shown" in shown


def test_runs_with_other_settings_are_other_systems_not_seeds():
    rows = [
        result(primary=0.2, **{"method.top_k": 16}),
        result(primary=0.6, **{"method.top_k": 32}),
        result(task="rte", primary=0.8, **{"method.top_k": 16, "trainer.epochs": 3}),
    ]
    shown = text(rows, {})
    assert "emoe bert_tiny top_k=16" in shown
    assert "emoe bert_tiny top_k=32" in shown
    assert "±" not in shown
    assert "epochs" not in shown  # the tasks have their own; within a task they are equal


def test_tasks_of_two_suites_stay_apart():
    shown = text([result(primary=0.3), result(primary=0.6, suite="glue_mini")], {})
    assert "glue/cola" in shown
    assert "glue_mini/cola" in shown
    assert "±" not in shown


def test_a_perplexity_is_shown_as_it_is_and_the_lower_one_is_better():
    def of(method: str, perplexity: float, test: float, other: float, rate=1e-3) -> Result:
        return make_result(
            {"method": method, "task": "text", "learning_rate": rate},
            perplexity,
            metrics=("perplexity",),
            id_metrics={
                "validation": scores(perplexity),
                "test": scores(test, perplexity=test),
            },
            ood_metrics={"other": scores(other, perplexity=other), "choice": scores(other / 100)},
            best_epoch=2.0,
        )

    results = [of("dense", 62.237, 61.5, 90.0), of("moe", 60.0, 59.0, 80.0)]
    shown = text(results, {})
    assert "62.24 (test 61.50)" in shown
    assert "other 90.00, choice 90.0" in shown
    assert headline(results[0]) == (
        "perplexity 62.24 at epoch 2; out of domain: other 90.00, choice 90.0; 1 s"
    )
    cells = {("text", row.axes.method): aggregate([row]) for row in results}
    # moe has the better (lower) perplexity and the worse share of right choices
    assert mean_ranks(cells) == {"dense": 1.5, "moe": 1.5}
    rates = [of("moe", 70.0, 1.0, 1.0), of("moe", 60.0, 1.0, 1.0, rate=1.0)]
    assert aggregate(rates).mean == 60.0
