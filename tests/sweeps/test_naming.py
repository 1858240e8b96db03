"""Runs of a sweep are named by what differs, and counted with the time left for all."""

from __future__ import annotations

import pytest

from moe_runner.options.folders import option_folders
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.naming import names_of, shared_by
from moe_runner.sweeps.plan import make_plan
from moe_runner.sweeps.tally import Tally


@pytest.fixture
def runs(tmp_path):
    def build(*choices):
        found = {}
        for each in choices:
            common = {"paths.output": str(tmp_path), "task": "glue_mini/cola"}
            plan = make_plan(compose_settings(option_folders(), {**common, **each}))
            found |= {run.id: run for run in plan.runs}
        return found

    return build


def test_names_say_what_differs_and_the_rest_is_said_once(runs):
    both = runs({"method": "dense"}, {"method": "emoe"}, {"method": "emoe", "seed": 1})
    assert list(names_of(both).values()) == [
        "dense cola seed 0",
        "emoe cola seed 0",
        "emoe cola seed 1",
    ]
    assert shared_by(both) == (
        "3 runs, all with model bert_tiny, tuning full, protocol paper, suite glue_mini, lr 0.0005"
    )


def test_settings_are_named_only_where_the_axes_are_not_enough(runs):
    found = runs(
        {"method": "dense"},
        {"method": "emoe", "method.top_k": 8},
        {"method": "emoe", "method.top_k": 16},
    )
    assert list(names_of(found).values()) == [
        "dense cola",
        "emoe cola top_k=8",
        "emoe cola top_k=16",
    ]


def test_an_only_run_has_its_label(runs):
    (run,) = runs({"method": "dense"}).values()
    assert names_of({run.id: run}) == {run.id: run.label}
    assert "lr 0.0005 seed 0" in run.label


def test_the_time_left_is_that_of_alike_runs_and_what_is_done_takes_none(runs):
    found = runs(
        {"task": "glue_mini/cola"}, {"task": "glue_mini/rte"},
        {"task": "glue_mini/cola", "seed": 1}, {"task": "glue_mini/rte", "seed": 1},
        {"task": "glue_mini/sst2"},
    )  # fmt: skip
    first, second, third, done, last = found.values()
    count = Tally(found, {done.id})
    common, line = count.begin(first).splitlines()
    assert common.startswith("5 runs, all with ")
    assert line == f"[1/5] emoe cola seed 0  ({first.id})"
    count.end(10.0)
    assert count.begin(second) == f"[2/5] emoe rte seed 0  ({second.id})  30 s left"
    count.end(30.0)
    assert count.begin(third).endswith("  30 s left")  # cola: 10 s, sst2: 20 s on average
    count.end(10.0)
    count.begin(done)
    count.end(0.0)
    assert count.seconds.keys() == {first.id, second.id, third.id}
    assert count.begin(last).startswith("[5/5] ")
    count.end(20.0)
    assert count.left == []


def test_a_run_that_failed_says_nothing_about_the_time_left(runs):
    first, second, third = runs({"seed": 0}, {"seed": 1}, {"seed": 2}).values()
    count = Tally({run.id: run for run in (first, second, third)}, set())
    count.begin(first)
    count.end(None)
    assert count.begin(second).endswith(f"({second.id})")
    count.end(10.0)
    assert count.begin(third).endswith("  10 s left")
