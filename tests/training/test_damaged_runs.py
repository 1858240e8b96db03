"""What is left of a run, damaged: a checkpoint to go on from, and a kept run to evaluate again."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from moe_runner.options.errors import ConfigError
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import Store
from moe_runner.train import evaluate_stored
from moe_runner.training import fit
from moe_runner.training.execute import execute


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Folders of runs by what became of them, for copies: each is trained once."""
    made: dict[str, Path] = {}

    def copy(name: str, train, output: Path) -> None:
        if name not in made:
            train()
            made[name] = tmp_path_factory.mktemp(name)
            shutil.copytree(output, made[name], dirs_exist_ok=True)
        else:
            shutil.copytree(made[name], output, dirs_exist_ok=True)

    return copy


@pytest.fixture
def stopped(once, make_settings, only_run, monkeypatch):
    """The settings, run and folder of a run that failed after its second epoch."""
    settings = make_settings(epochs=2)
    run, store = only_run(settings), Store(Path(settings.paths.output))

    def train():
        with monkeypatch.context() as patch:
            patch.setattr(fit, "evaluate_ood", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                execute(run, settings, store)

    once("stopped", train, Path(settings.paths.output))
    folders = sorted(store.folder(run.id).glob("checkpoint/checkpoint-*"), key=step_of)
    shutil.rmtree(folders.pop())  # as if it had been stopped between two epochs
    return settings, run, store, folders[-1]


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_that_holds_code_is_named_and_never_run(name, stopped, tmp_path):
    settings, run, store, folder = stopped
    bomb = tmp_path / "went off"
    torch.save({"state": Bomb(bomb)}, folder / name)
    with pytest.raises(ValueError, match="is damaged") as told:
        execute(run, settings, store)
    line = str(told.value)
    assert line.startswith(f"{folder} is damaged (")
    assert line.endswith("goes on from the one before, or from the start")
    assert "\n" not in line
    assert len(line.replace(str(folder), "")) < 250
    assert not bomb.exists()
    shutil.rmtree(folder)  # as the line says
    assert execute(run, settings, store).resumed_at_update == 0


def test_a_pickle_for_weights_is_passed_over_and_never_run(stopped, tmp_path, caplog):
    settings, run, store, folder = stopped
    bomb = tmp_path / "went off"
    (folder / "trained.safetensors").write_bytes(pickle.dumps(Bomb(bomb)))
    assert execute(run, settings, store).resumed_at_update == 0
    assert f"{folder} is passed over" in caplog.text
    assert not bomb.exists()


@pytest.fixture
def kept(once, make_settings, only_run):
    """The settings and the folder of a kept run."""
    settings = dataclasses.replace(make_settings(epochs=1), keep_model="best")
    run, output = only_run(settings), Path(settings.paths.output)
    once("kept", lambda: execute(run, settings, Store(output)), output)
    return dataclasses.replace(settings, evaluate=run.id), Store(output).folder(run.id)


def changed(tree: dict, **changes) -> bytes:
    return yaml.safe_dump({**tree, **changes}).encode()


DAMAGE = {
    "empty": (lambda tree: b"", "is damaged (it holds no mapping)"),
    "cut off": (lambda tree: b"method: {name: [", "is damaged ("),
    "no UTF-8": (lambda tree: b"\xff\xfe", "is damaged ("),
    "a list": (lambda tree: b"[]", "is damaged (it holds no mapping)"),
    "null": (lambda tree: b"null", "is damaged (it holds no mapping)"),
    "deep": (lambda tree: b"[" * 20_000, "is damaged ("),
    "no method": (lambda tree: changed(tree, method=None), "is damaged (no method)"),
    "a list of methods": (
        lambda tree: changed(tree, method={"name": ["dense"]}), "unknown to this version",
    ),
    "no trainer": (lambda tree: changed(tree, trainer=[1]), "is damaged (no trainer)"),
    "seed": (lambda tree: changed(tree, seed="x"), "(seed is 'x', not a whole number)"),
    "data": (lambda tree: changed(tree, data={"train": 5}), "(data.train is 5, not text)"),
    "other": (lambda tree: changed(tree, seed=7), "is of the run"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_kept_run_with_a_damaged_config_is_one_line(how, kept):
    settings, folder = kept
    file, (change, said) = folder / "config.yaml", DAMAGE[how]
    file.write_bytes(change(yaml.safe_load(file.read_text())))
    with pytest.raises(ConfigError) as told:
        evaluate_stored(settings)
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert folder.name in str(told.value)


def test_a_kept_run_without_a_config_is_one_line(kept):
    settings, folder = kept
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError) as told:
        evaluate_stored(settings)
    assert str(told.value) == (
        f"{folder} has no config.yaml, which says what was run; run its command again with "
        "keep_model=best rerun=true"
    )
    (folder / "config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"config.yaml cannot be read \(Is a directory\); run"):
        evaluate_stored(settings)


@pytest.mark.parametrize("content", [None, b"", b"12345678{}", b"\xff" * 9])
def test_kept_weights_that_cannot_be_loaded_are_one_line(content, kept):
    settings, folder = kept
    file = folder / "checkpoint" / "best" / "trained.safetensors"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="best cannot be loaded .*keep_model=best rerun=true$"):
        evaluate_stored(settings)


def test_earlier_scores_that_are_damaged_are_told_before_the_work(kept, monkeypatch):
    settings, folder = kept
    monkeypatch.setattr("moe_runner.training.evaluate.build", lambda *_: pytest.fail("worked"))
    (folder / "ood.json").write_text("[")
    with pytest.raises(StoreError, match=r"ood\.json is not readable .*; delete it$"):
        evaluate_stored(settings)
