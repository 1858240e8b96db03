"""Sweeps that are disturbed: every run ends done, once, with the numbers of a quiet sweep."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from moe_runner import train
from moe_runner.cli.ending import end
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.runs.store import RunBusy, Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training import fit
from moe_runner.training.execute import execute

RUNS, KILLS, WORKERS = 24, 20, 2
METHODS = (Dense(), EMoE(num_experts=4, top_k=2), EMoE(num_experts=4, top_k=1))


def sweep_of(settings):
    """Plan 24 runs: three methods, eight seeds."""
    return [
        run
        for method in METHODS
        for seed in range(RUNS // len(METHODS))
        for run in make_plan(dataclasses.replace(settings, method=method, seed=seed)).runs
    ]


def in_folder(settings, name: str):
    output = str(Path(settings.paths.output) / name)
    paths = dataclasses.replace(settings.paths, output=output)
    return dataclasses.replace(settings, paths=paths)


def work(runs, settings) -> None:
    """Do what a worker of a sweep does: every run that is not done and not busy."""
    store = Store(Path(settings.paths.output))
    for run in runs:
        try:
            execute(run, settings, store)
        except RunBusy:
            continue


def executed(run, settings):
    """Carry out one run in the settings' own folder."""
    return execute(run, settings, Store(Path(settings.paths.output)))


def forked(runs, settings) -> int:
    """Start a worker from this warm process; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        work(runs, settings)
    finally:
        os._exit(0)


def numbers(store: Store, runs) -> dict[str, object]:
    """What must be the same: all but times, memory and where a run was taken up again."""
    kept = ("primary", "id_metrics", "ood_metrics", "learning_curve", "best_epoch", "updates")
    return {run.id: {name: getattr(store.result(run.id), name) for name in kept} for run in runs}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more than one thread does not survive a fork
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_twenty_kills_change_nothing(make_settings):
    settings = make_settings(epochs=1, save_steps=3)
    quiet, loud = in_folder(settings, "quiet"), in_folder(settings, "loud")
    runs = sweep_of(settings)
    assert len({run.id for run in runs}) == RUNS
    work(runs, quiet)
    store, rng = Store(Path(loud.paths.output)), random.Random(0)
    workers = [forked(runs, loud) for _ in range(WORKERS)]
    kills = 0
    try:
        while not all(store.result(run.id) for run in runs):
            time.sleep(rng.uniform(0.05, 0.6))
            if kills < KILLS:
                victim = rng.randrange(WORKERS)
                os.kill(workers[victim], signal.SIGKILL)
                os.waitpid(workers[victim], 0)
                workers[victim] = forked(runs, loud)
                kills += 1
            for place, pid in enumerate(workers):  # one that left others' busy runs behind
                if os.waitpid(pid, os.WNOHANG)[0]:
                    workers[place] = forked(runs, loud)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert kills == KILLS
    assert numbers(store, runs) == numbers(Store(Path(quiet.paths.output)), runs)
    attempts = [store.status(run.id).attempts for run in runs]
    assert {store.status(run.id).state for run in runs} == {"done"}
    assert RUNS < sum(attempts) <= RUNS + KILLS  # no run was repeated but those that were killed


@pytest.mark.long
def test_two_sweeps_at_once_do_no_run_twice(make_settings):
    settings = make_settings(epochs=1)
    runs = sweep_of(settings)[:6]
    workers = [forked(runs, settings) for _ in range(2)]
    for pid in workers:
        os.waitpid(pid, 0)
    work(runs, settings)  # those that were busy when both looked
    store = Store(Path(settings.paths.output))
    assert [store.status(run.id).attempts for run in runs] == [1] * len(runs)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (FloatingPointError("the loss is nan at update 3"), "FloatingPointError: the loss is nan"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ValueError("anything"), "ValueError: anything"),
    ],
    ids=["out of memory", "nan", "full disk", "other"],
)
def test_a_run_that_fails_is_recorded_and_the_sweep_goes_on(
    error, reason, make_settings, monkeypatch, capsys
):
    settings = make_settings(epochs=1)
    runs = sweep_of(settings)[:2]
    store, reasons = Store(Path(settings.paths.output)), {}
    carry_out = fit.carry_out

    def failing(run, folder, resources):
        if run.id == runs[0].id:
            raise error
        return carry_out(run, folder, resources)

    monkeypatch.setattr(fit, "carry_out", failing)
    results = [train.attempt(run, settings, store, reasons) for run in runs]
    assert results[0] is None
    assert results[1] is not None
    assert store.status(runs[0].id).state == "failed"
    assert reason in (store.folder(runs[0].id) / "error.txt").read_text()
    assert reasons == {}  # the store knows
    assert end([(run, store) for run in runs], print, reasons=reasons) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    (line,) = failed  # told once
    assert line.startswith(f"failed: {runs[0].label}")
    assert reason in line
    monkeypatch.setattr(fit, "carry_out", carry_out)
    assert train.attempt(runs[0], settings, store, reasons) is not None  # the next call does it


def test_ctrl_c_leaves_a_run_interrupted_and_it_goes_on(make_settings, monkeypatch):
    settings = make_settings(epochs=2)
    (run,) = sweep_of(settings)[:1]
    store = Store(Path(settings.paths.output))
    whole = execute(run, in_folder(settings, "whole"), Store(Path(settings.paths.output) / "whole"))
    step, seen = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 15:  # in the second epoch
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(run, settings, store)
    assert store.status(run.id).state == "interrupted"
    assert not (store.folder(run.id) / "error.txt").exists()
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    result = execute(run, settings, store)
    assert result.resumed_at_update == 12
    assert result.learning_curve == whole.learning_curve


def test_a_truncated_result_is_named_and_its_run_can_be_done_again(make_settings):
    settings = make_settings(epochs=1)
    (run,) = sweep_of(settings)[:1]
    store = Store(Path(settings.paths.output))
    whole = execute(run, settings, store)
    file = store.folder(run.id) / "result.json"
    file.write_text(json.dumps(whole.to_json())[:100])
    with pytest.raises(train.StoreError, match=f"delete it and run {run.id} again"):
        store.result(run.id)
    file.unlink()
    again = execute(run, settings, store)
    assert again.learning_curve == whole.learning_curve


def test_a_truncated_checkpoint_is_passed_over(make_settings, monkeypatch):
    settings = make_settings(epochs=3)
    (run,) = sweep_of(settings)[:1]
    whole = execute(run, in_folder(settings, "whole"), Store(Path(settings.paths.output) / "whole"))
    store, step, seen = Store(Path(settings.paths.output)), torch.optim.AdamW.step, []

    def killed(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 30:
            raise RuntimeError("killed")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        execute(run, settings, store)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    newest = store.folder(run.id) / "checkpoint" / "checkpoint-24" / "trainer_state.json"
    newest.write_text(newest.read_text()[:50])
    result = execute(run, settings, store)
    assert result.resumed_at_update == 12
    assert result.learning_curve == whole.learning_curve
