"""What killed processes leave, and `moe-report clean`: listed, asked for, never behind a link."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from moe_runner.report.command import run
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import RunDone, Store

RUN = "0123456789abcdef"


@pytest.fixture
def store(tmp_path) -> Store:
    folder = tmp_path / "outputs" / "runs" / RUN
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"x" * 2**20)
    (folder / "result.json").write_text("{}")
    status = {
        "state": "running",
        "attempts": 1,
        "host": socket.gethostname(),
        "pid": 1,
        "started": None,
    }
    (folder / "status.json").write_text(json.dumps(status))
    (folder / f".metrics.jsonl.{'a' * 32}.tmp").write_text("half")
    return Store(tmp_path / "outputs")


def clean(store: Store, *words: str) -> int:
    return run(["clean", f"output={store.root.parent}", *words])


@pytest.mark.parametrize("word", ["true", "True", "yes", "1", "on"])
def test_a_dry_run_lists_and_removes_nothing(word, store, capsys):
    assert clean(store, f"dry_run={word}") == 0
    printed = capsys.readouterr().out
    assert RUN in printed
    assert "1.0 MiB of 1 runs would be removed" in printed
    assert len(list(store.folder(RUN).iterdir())) == 4


def test_another_word_is_refused(store, capsys):
    assert clean(store, "dry_run=maybe") == 2
    assert capsys.readouterr().err == "dry_run=maybe is not valid; use true or false\n"
    assert store.folder(RUN).joinpath("checkpoint").is_dir()


def test_it_says_what_was_freed_and_the_status_says_done(store, capsys):
    assert clean(store) == 0
    assert "1.0 MiB removed" in capsys.readouterr().out
    left = sorted(path.name for path in store.folder(RUN).iterdir())
    assert left == [".lock", "result.json", "status.json"]
    assert json.loads((store.folder(RUN) / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("answer", ["", "n", "y"])
def test_on_a_terminal_it_asks(answer, store, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    clean(store)
    assert store.folder(RUN).joinpath("checkpoint").is_dir() == (answer != "y")


def test_what_is_behind_links_stays(store, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    linked = store.folder(RUN) / "checkpoint"
    (linked / "model.safetensors").unlink()
    linked.rmdir()
    linked.symlink_to(outside)
    (store.root / "linked").symlink_to(outside)
    (store.root / "loop").symlink_to(store.root)
    assert clean(store, "yes=true") == 0
    assert (outside / "precious").read_text() == "x"
    printed = capsys.readouterr().out
    assert "linked is a link; what it leads to is not this store's" in printed
    assert linked.is_symlink()


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "done", "of another version": 1}'])
def test_a_damaged_status_is_left_alone_and_named(content, store, capsys):
    (store.folder(RUN) / "status.json").write_text(content)
    assert clean(store) == 0
    assert "left alone: " in (printed := capsys.readouterr().out)
    assert "status.json" in printed
    assert store.folder(RUN).joinpath("checkpoint").is_dir()
    with pytest.raises(StoreError, match="delete it"):
        store.status(RUN)


def test_a_claim_removes_files_of_killed_writes(store):
    with pytest.raises(RunDone), store.claim(RUN, config_yaml="", environment={}):
        pass
    assert not list(store.folder(RUN).glob(".*.tmp"))
    assert json.loads((store.folder(RUN) / "status.json").read_text())["state"] == "done"


def test_files_of_the_cache_are_not_touched(store, tmp_path):
    other = Path(tmp_path / "outputs" / "cache")
    other.mkdir()
    (other / "hashes.json").write_text("{}")
    clean(store)
    assert (other / "hashes.json").exists()
