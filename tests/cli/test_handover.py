"""An ordinary sweep whose jobs run elsewhere: what is handed over, what is reported."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe_runner.cli.handover import Handover
from moe_runner.cli.launching import writes_logs
from moe_runner.options.folders import CONF, option_folders
from moe_runner.runs.environment import environment
from moe_runner.runs.store import Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan
from tests.results import make_result

FOLDERS = option_folders()
SEEDS = [["seed=0"], ["seed=1"], ["seed=2"]]


def runs_of(output):
    """The run of each seed."""
    common = {"task": "glue_mini/cola", "method": "dense", "paths.output": str(output)}
    settings = [compose_settings(FOLDERS, {**common, "seed": seed}) for seed in range(len(SEEDS))]
    return [run for each in settings for run in make_plan(each).runs]


def finish(store, run) -> None:
    with store.claim(run.id, config_yaml="", environment=environment(1)) as folder:
        folder.finish(make_result(run.axes(), 0.25, id=run.id, settings=run.settings()))


@pytest.fixture
def hand_over(tmp_path):
    """Sweep over the seeds with a launcher whose jobs do what is asked of them."""
    silenced = []  # of the last sweep, by job: whether it is to tell nothing

    def build(do, *words, logs=False):
        seen = []

        def launch(batch, initial_job_idx):
            given = [[word for word in job if word != "quiet=true"] for job in batch]
            seen.extend(given)
            silenced[:] = ["quiet=true" in job for job in batch]
            return [SimpleNamespace(return_value=do(overrides)) for overrides in given]

        def composed(overrides):
            common = ["task=glue_mini/cola", "method=dense", f"paths.output={tmp_path}", *words]
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return compose("config", [*common, *overrides])

        handover = Handover(SimpleNamespace(launch=launch), composed, logs=logs)
        handover.launch(SEEDS, 0)
        return seen, handover.command.end()

    build.silenced = silenced
    return build


def test_what_is_done_is_not_handed_over_and_all_are_in_one_table(hand_over, tmp_path, capsys):
    store, runs = Store(tmp_path), runs_of(tmp_path)
    finish(store, runs[1])

    def do(overrides):
        finish(store, runs[SEEDS.index(overrides)])
        return 0.25

    assert hand_over(do) == ([["seed=0"], ["seed=2"]], 0)
    text = capsys.readouterr()
    before, common, *ends = text.err.splitlines()
    assert before.startswith(f"done before: {runs[1].label}  ({runs[1].id}): matthews 25.0")
    assert common.startswith("2 runs, all with model bert_tiny")
    assert [line.split("  ")[:4] for line in ends] == [
        ["[1/2]", "done", "dense cola seed 0", "matthews 25.0"],
        ["[2/2]", "done", "dense cola seed 2", "matthews 25.0"],
    ]
    assert hand_over.silenced == [True, True]
    row = next(line for line in text.out.splitlines() if "cola" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "cola", "matthews ↑", "dense bert_tiny", "25.0 ± 0.0", "", "3",
    ]  # fmt: skip
    assert hand_over(do) == ([], 0)
    assert hand_over(lambda _: 0.25, "rerun=true") == (SEEDS, 0)


def test_a_run_that_failed_elsewhere_is_told_and_the_exit_code_is_1(hand_over, tmp_path, capsys):
    store, runs = Store(tmp_path), runs_of(tmp_path)

    def do(overrides):
        if overrides != ["seed=1"]:
            finish(store, runs[SEEDS.index(overrides)])
            return 0.25
        claim = store.claim(runs[1].id, config_yaml="", environment=environment(1))
        with pytest.raises(RuntimeError), claim:
            raise RuntimeError("out of memory")
        return math.nan

    assert hand_over(do) == (SEEDS, 1)
    failed = f"failed: {runs[1].label} ({runs[1].id}): RuntimeError: out of memory"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == failed
    assert [line for line in lines if "out of memory" in line] == [failed]  # told once


def test_what_cannot_be_planned_here_is_for_the_job_to_tell(hand_over, capsys):
    assert hand_over(lambda _: math.nan, "task.data_dir=/nowhere", "task=glue/cola") == (SEEDS, 2)
    assert hand_over.silenced == [False, False, False]


def test_a_dry_run_hands_nothing_over(hand_over, tmp_path, capsys):
    assert hand_over(None, "dry_run=true") == ([], 0)
    text = capsys.readouterr().out
    assert all(run.id in text for run in runs_of(tmp_path))


def test_jobs_with_logs_of_their_own_tell_everything_there(hand_over, tmp_path):
    store, runs = Store(tmp_path), runs_of(tmp_path)

    def do(overrides):
        finish(store, runs[SEEDS.index(overrides)])
        return 0.25

    assert hand_over(do, logs=True) == (SEEDS, 0)
    assert hand_over.silenced == [False] * len(SEEDS)


@pytest.mark.parametrize(
    ("target", "logs"),
    [
        ("hydra_plugins.moe_slurm_launcher.launcher.MoESlurmLauncher", True),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", True),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", False),
        ("hydra_plugins.moe_ray_launcher.launcher.MoERayLauncher", False),
    ],
)
def test_which_launchers_write_logs(target, logs):
    assert writes_logs(OmegaConf.create({"launcher": {"_target_": target}})) is logs


def test_the_runs_of_every_store_are_shown(tmp_path, capsys):
    places = [tmp_path / "first", tmp_path / "second"]

    def launch(batch, initial_job_idx):
        for place in places:
            finish(Store(place), runs_of(place)[0])
        return [SimpleNamespace(return_value=0.25) for _ in batch]

    def composed(overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", ["task=glue_mini/cola", "method=dense", *overrides])

    handover = Handover(SimpleNamespace(launch=launch), composed)
    handover.launch([[f"paths.output={place}"] for place in places], 0)
    assert handover.command.end() == 0
    text = capsys.readouterr()
    assert [line for line in text.err.splitlines() if "done" in line and "[1/1]" in line][1:]
    assert [place for place in places if str(place) not in text.out] == []
