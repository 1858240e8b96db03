"""The end of a command: what became of its runs is what the store says."""

from __future__ import annotations

import dataclasses

import pytest

from moe_runner.cli.ending import Command, end
from moe_runner.options.folders import option_folders
from moe_runner.runs.environment import environment
from moe_runner.runs.store import Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan
from tests.cli.test_handover import finish


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def plans(tmp_path):
    """The plan of each of four seeds."""
    common = {"task": "glue_mini/cola", "method": "dense", "paths.output": str(tmp_path)}
    return [
        make_plan(compose_settings(option_folders(), {**common, "seed": seed})) for seed in range(4)
    ]


@pytest.fixture
def runs(plans):
    return [run for plan in plans for run in plan.runs]


def fail(store: Store, run) -> None:
    claim = store.claim(run.id, config_yaml="", environment=environment(1))
    with pytest.raises(RuntimeError), claim:
        raise RuntimeError("out of memory")


def test_every_run_is_told_once_with_its_reason(store, runs, capsys):
    done, failed, other, never = runs
    finish(store, done)
    fail(store, failed)
    seen = []
    wanted = [(run, store) for run in (*runs, done, failed)]
    code = end(wanted, seen.extend, reasons={other.id: "no data"}, word="not done")
    assert code == 1
    assert [result.id for result in seen] == [done.id]
    assert capsys.readouterr().err.splitlines() == [
        f"not done: {failed.label} ({failed.id}): RuntimeError: out of memory",
        f"not done: {other.label} ({other.id}): no data",
        f"not done: {never.label} ({never.id}): pending",
    ]


def test_a_run_that_another_command_finished_meanwhile_is_done(store, runs, capsys):
    finish(store, runs[0])
    seen = []
    assert end([(runs[0], store)], seen.extend, reasons={runs[0].id: "is busy"}) == 0
    assert len(seen) == 1
    assert capsys.readouterr().err == ""


def test_a_damaged_result_is_a_run_that_failed(store, runs, capsys):
    finish(store, runs[0])
    (store.folder(runs[0].id) / "result.json").write_text("{")
    assert end([(runs[0], store)], lambda _: None, reasons={}) == 1
    assert f"delete it and run {runs[0].id} again" in capsys.readouterr().err


def test_a_mistake_of_the_user_wins_over_a_failure(store, runs):
    fail(store, runs[0])
    assert end([(runs[0], store)], lambda _: None, reasons={}, mistakes=1) == 2
    assert end([], lambda _: None, reasons={}, mistakes=1) == 2


def test_processes_that_follow_the_leader_tell_nothing(store, runs, monkeypatch, capsys):
    fail(store, runs[0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert end([(runs[0], store)], lambda _: pytest.fail("shown"), reasons={}) == 0
    assert capsys.readouterr().err == ""


def test_jobs_together_have_one_table_and_a_job_alone_its_baselines(store, plans, runs, capsys):
    for run in runs:
        finish(store, run)
    together = Command([(plan, store) for plan in plans], together=True, quiet=True)
    assert together.end() == 0
    table = capsys.readouterr().out
    assert table.count("matthews") == 1
    assert table.splitlines()[-1] == f"results: {store.root}/<id>/result.json"
    assert "25.0 ± 0.0" in table
    emoe = make_plan(
        compose_settings(
            option_folders(), {"task": "glue_mini/cola", "paths.output": str(store.root.parent)}
        )
    )
    finish(store, emoe.runs[0])
    alone = Command([(emoe, store)])
    assert alone.end() == 0
    table = capsys.readouterr().out
    assert "dense bert_tiny" in table
    assert "emoe bert_tiny" in table
    assert Command([(emoe, store)], quiet=True).end() == 0
    assert Command().end() == 0
    assert capsys.readouterr().out == ""


def test_a_damaged_baseline_hides_no_table(store, plans, runs, capsys):
    words = {"task": "glue_mini/cola", "paths.output": str(store.root.parent)}
    emoe = make_plan(compose_settings(option_folders(), words))
    finish(store, emoe.runs[0])
    finish(store, runs[0])
    (store.folder(runs[0].id) / "result.json").write_text("{")
    twice = dataclasses.replace(emoe, runs=emoe.runs * 2)
    assert Command([(twice, store)]).end() == 0
    text = capsys.readouterr().out
    assert "emoe bert_tiny" in text
    assert "dense bert_tiny" not in text
    assert text.count("no dense baseline") == 1
    assert f"delete it and run {runs[0].id} again" in " ".join(text.split())
