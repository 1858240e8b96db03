"""The count of a search's trials, which Hydra hands over one by one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from moe_runner.cli import sweeping
from moe_runner.options.folders import option_folders
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan

LAUNCHERS = {
    "here": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "elsewhere": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
}


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Begin and end a trial as a job does; the seed is what the search chooses."""
    monkeypatch.setattr(sweeping, "_announced", [])
    job = SimpleNamespace(node=None)
    monkeypatch.setattr(sweeping, "HydraConfig", SimpleNamespace(get=lambda: job.node))
    monkeypatch.setattr(sweeping, "in_a_sweep", lambda: "num" in job.node.job)
    done: set[str] = set()
    monkeypatch.setattr(sweeping, "done_of", lambda runs, settings: done & set(runs))

    def carry_out(seed, number, *, trials=4, sampler="TPESampler", launcher="here", seconds=10.0):
        job.node = OmegaConf.create(
            {
                "job": {} if number is None else {"num": number},
                "sweeper": {"n_trials": trials, "sampler": {"_target_": f"optuna.{sampler}"}},
                "launcher": {"_target_": LAUNCHERS[launcher]},
            }
        )
        choices = {"paths.output": str(tmp_path), "task": "glue_mini/cola", "seed": seed}
        settings = compose_settings(option_folders(), choices)
        plan = make_plan(settings)
        tally, (run,) = sweeping.tally_of(plan, settings), plan.runs
        line = tally.begin(run)
        tally.end(seconds)
        done.add(run.id)
        return line.replace(f"  ({run.id})", "").replace(run.label, "label")

    return carry_out


def test_trials_are_counted_and_what_is_left_takes_as_long_as_they_did(trial):
    assert [trial(seed, number) for number, seed in enumerate([0, 1, 1, 2])] == [
        "[1/4] label",
        "[2/4] emoe cola seed 1  30 s left",
        "[3/4] emoe cola seed 1  10 s left",  # the same again takes no time
        "[4/4] emoe cola seed 2  10 s left",
    ]
    assert trial(5, 0) == "[1/4] label"  # of another search in this process


def test_processes_of_their_own_know_the_number_and_no_time(trial):
    assert trial(0, 2, launcher="elsewhere") == "[3/4] label"
    assert trial(1, 3, launcher="elsewhere") == "[4/4] label"


def test_a_grid_may_have_fewer_points_than_trials(trial):
    assert trial(0, 0, sampler="GridSampler") == "[1] label"
    assert trial(1, 1, sampler="GridSampler") == "[2] emoe cola seed 1"


def test_one_run_with_a_sweeper_that_is_not_used_is_one_run(trial):
    assert trial(0, None) == "[1/1] label"
