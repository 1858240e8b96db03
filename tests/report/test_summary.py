"""Aggregation and the table at the end of a command, on hand-made results."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moe_runner.report.summary import aggregate, build_table, headline, mean_ranks
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
