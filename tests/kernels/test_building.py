"""Builds of the C++ kernel: found for what is here only, explained where missing, never half there.

Nothing is compiled here; `tests/moe/test_kernel.py` does.
"""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moe_runner.kernels import building
from moe_runner.kernels.__main__ import main
from moe_runner.moe import kernel_experts


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(building, "cache_folder", lambda: tmp_path)
    kernel_experts.load.cache_clear()
    yield tmp_path
    kernel_experts.load.cache_clear()


def pretend(facts: dict[str, str], content: str = "no library") -> Path:
    folder = building.folder_of(facts)
    folder.mkdir(parents=True)
    (folder / building.LIBRARY).write_text(content)
    (folder / building.FACTS).write_text(json.dumps(facts))
    return folder / building.LIBRARY


def test_nothing_is_built_until_it_is(cache, capsys):
    assert building.library() is None
    assert main(["status"]) == 1
    assert "is not built; `python -m moe_runner.kernels build`" in capsys.readouterr().out
    file = pretend(building.facts())
    assert building.library() == file
    assert main(["status"]) == 0
    assert capsys.readouterr().out == f"built: {file}\n"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("torch", "another version of torch"),
        ("source", "another version of its source"),
        ("processor", "another processor"),
    ],
)
def test_a_build_for_something_else_is_not_taken_and_the_warning_names_it(
    name, cause, cache, caplog
):
    pretend(building.facts() | {name: "another"})
    (cache / "damaged").mkdir()
    (cache / "damaged" / building.FACTS).write_text("{")
    assert building.library() is None
    with caplog.at_level(logging.INFO):
        assert not kernel_experts.load()
        assert not kernel_experts.load()
    (record,) = caplog.records  # once per process
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"the C++ kernel was built for {cause}; build it anew: python -m moe_runner.kernels build"
    )


def test_a_changed_source_is_another_build(cache, tmp_path, monkeypatch):
    pretend(building.facts())
    changed = tmp_path / "experts.cpp"
    changed.write_bytes(building.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(building, "SOURCE", changed)
    assert building.library() is None
    assert "another version of its source" in building.why_missing()


def test_without_a_build_one_line_says_so(cache, caplog):
    with caplog.at_level(logging.INFO):
        assert not kernel_experts.load()
        assert not kernel_experts.load()
    assert [record.getMessage() for record in caplog.records] == [building.why_missing()]


def test_a_damaged_library_is_a_warning_and_no_kernel(cache, caplog):
    pretend(building.facts())
    assert not kernel_experts.load()
    assert "cannot be loaded" in caplog.text
    assert "build it anew" in caplog.text.lower()


def test_without_a_compiler_the_command_says_which(cache, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["build"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no C++ compiler `no-such-compiler`; install g++" in error
    assert list(cache.rglob("*")) == []


def test_a_compiler_that_fails_leaves_what_was_there(cache, tmp_path, capsys, monkeypatch):
    file = pretend(building.facts(), "the old one")
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'experts.cpp:1: error: no such thing' >&2\nexit 3\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    assert main(["build"]) == 2
    assert "ended with code 3: experts.cpp:1: error: no such thing" in capsys.readouterr().err
    assert file.read_text() == "the old one"
    assert sorted(path.name for path in file.parent.iterdir()) == ["build.json", "experts.so"]


def test_the_folder_is_that_of_the_user(monkeypatch, tmp_path):
    code = "from moe_runner.kernels.building import cache_folder; print(cache_folder())"
    for given, expected in ((str(tmp_path), tmp_path), ("", Path.home() / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == str(expected / "moe-runner" / "kernels"), done.stderr


def test_a_wrong_subcommand_is_named(capsys):
    assert main(["make"]) == 2
    assert capsys.readouterr().err == "make is not a subcommand; use build or status\n"


def test_to_look_for_a_build_loads_no_torch():
    code = (
        "import sys, moe_runner.kernels.building as b; b.why_missing(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
