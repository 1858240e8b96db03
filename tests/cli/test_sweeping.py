"""The count of a search's trials, which Hydra hands over one by one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from moe_runner.cli import sweeping
from moe_runner.options.folders import option_folders
from moe_runner.runs.store import Store
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


@pytest.fixture
def announced(tmp_path, monkeypatch):
    """Announce a sweep of two seeds in an empty folder; the tally, if there is one."""
    monkeypatch.setattr(sweeping, "_announced", ["of the sweep before"])
    monkeypatch.chdir(tmp_path)

    def announce(output):
        jobs = [["task=glue_mini/cola", f"paths.output={output}", f"seed={n}"] for n in (0, 1)]
        sweeping.announce(jobs, option_folders())
        return next(iter(sweeping._announced), None)

    return announce


def test_a_sweep_counts_in_the_store_that_the_environment_names(announced, tmp_path, monkeypatch):
    monkeypatch.setenv("MYOUT", str(tmp_path / "mine"))
    looked = []
    monkeypatch.setattr(sweeping, "Store", lambda root: looked.append(root) or Store(root))
    assert len(announced("${oc.env:MYOUT}").runs) == 2
    assert set(looked) == {tmp_path / "mine"}
    assert [path.name for path in tmp_path.iterdir() if "$" in path.name] == []


@pytest.mark.parametrize("output", ["${oc.env:NOT_SET}", "${paths.models}/x", "${now:%Y}"])
def test_a_sweep_that_hydra_alone_can_resolve_is_not_counted(output, announced, tmp_path):
    assert announced(output) is None
    assert list(tmp_path.iterdir()) == []
