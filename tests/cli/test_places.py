"""Folders and files that cannot be: one line, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_runner.cli.arguments import as_meant, check_arguments, for_hydra
from moe_runner.files import blocked, no_place, unusable

LONG = "x" * 300


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("paths.output=FILE", "is a file; use a folder"),
        ("paths.output=FILE/sub", "is a file; use a folder"),
        ("paths.cache=FILE", "is a file; use a folder"),
        (f"paths.output={LONG}", "cannot be looked at: File name too long"),
        (f"task.data_dir={LONG}", "cannot be looked at: File name too long"),
        (f"task.ood_dir={LONG}", "cannot be looked at: File name too long"),
        ("model.path=~no_such_user/x", "cannot be looked at: Could not determine home"),
        ("paths.models=~no_such_user/x", "cannot be looked at: Could not determine home"),
        ("model.package=../x", "is not the name of a Python package"),
        ("hydra.run.dir=FILE", "is a file; use a folder"),
        ("hydra.run.dir=/proc/x", "use a folder that can be written to"),
        ("search.seeds=[0,1,0]", "has 0 twice; leave one out"),
        ("task.members=[rte,rte]", "has rte twice; leave one out"),
        ("task.max_length=3", "leaves no token of a text"),
        ("model.d_model=64", "contradicts"),
        ("model.family=gpt2", "holds a model of type bert"),
        ("study=null", "is so without it; leave it out"),
        ("study=nope", "is not an option; use one of (all, "),
    ],
)
def test_what_cannot_be_is_one_line(word, words, tmp_path):
    (tmp_path / "file").write_text("")
    word = word.replace("FILE", str(tmp_path / "file"))
    (word,) = as_meant([word])
    lines = [line for line in check_arguments([word, "task=glue_mini/rte"]) if words in line]
    if word.startswith("study"):
        lines = [line for line in check_arguments([word]) if words in line]
    assert len(lines) >= 1
    assert all("\n" not in line for line in lines)


def test_rates_that_are_searched_must_be_there():
    (line,) = check_arguments(["search=paper", "tuning.learning_rates=[]"])
    assert line == (
        "tuning.learning_rates=[] is empty, and search=paper tries each of them; give some, or use "
        "search=single"
    )


def test_a_folder_is_usable_if_it_or_the_nearest_one_can_be_written_to(tmp_path):
    assert unusable(tmp_path / "a" / "b") is None
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert unusable(Path("/proc/x")) is not None
    assert blocked(Path("/proc/x")) is None
    assert no_place("k", str(tmp_path / "missing")) is None
    assert "embedded null byte" in (no_place("k", "a\0b") or "")


def folders_of(words: list[str]) -> list[str]:
    return [word for word in for_hydra(words) if word.startswith("hydra.")]


def test_hydra_makes_its_folder_elsewhere_where_nothing_is_run_or_written(tmp_path):
    assert folders_of([f"paths.output={tmp_path}"]) == []
    dry = folders_of([f"paths.output={tmp_path}", "dry_run=true", "-m"])
    assert [word.partition("=")[0] for word in dry] == ["hydra.run.dir", "hydra.sweep.dir"]
    assert len(folders_of(["paths.output=/proc/x"])) == 2
    assert folders_of(["dry_run=true", "hydra.run.dir=mine"]) == ["hydra.run.dir=mine"]
    words = for_hydra(["-m", "dry_run=true", "seed=0,1"])
    assert words[0] == "-m"  # beside the other overrides: argparse takes them as one list
    assert words[-2:] == ["dry_run=true", "seed=0,1"]


def test_home_is_not_read_in_option_files():
    assert check_arguments(["paths.output='~/x'"]) == [  # as a file has it
        "paths.output=~/x: ~ is not read here; write the folder out"
    ]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "words",
    ["moe-run dry_run=true", "moe-run --version", "moe-report tasks"],
)
def test_a_reader_who_has_enough_gets_no_error(words, buffered):
    """The pipe is closed before a word is written: `| true`."""
    here, there = os.pipe()
    os.close(here)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    name, *rest = words.split()
    command = [Path(sys.executable).with_name(name), *rest]
    done = subprocess.run(
        [sys.executable, *([] if buffered else ["-u"]), *command],
        stdout=there, stderr=subprocess.PIPE, text=True, timeout=60, env=environment,
    )  # fmt: skip
    os.close(there)
    assert (done.returncode, done.stderr) == (141, "")


def test_quoted_folders_are_looked_at_without_their_quotes(tmp_path):
    (tmp_path / "a file").write_text("")
    (line,) = check_arguments([f"hydra.run.dir='{tmp_path}/a file'"])
    assert line == f"hydra.run.dir={tmp_path}/a file: {tmp_path}/a file is a file; use a folder"
    assert check_arguments([f"hydra.run.dir='{tmp_path}/b'"]) == []
