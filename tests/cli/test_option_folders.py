"""Options from outside: a method of an installed package, its files in the package or elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TOY = Path(__file__).parents[1] / "extending" / "toy_package"
SOURCE = Path(__file__).parents[2] / "src"

TASK = """\
# moe-run task=glue_mini/few
defaults: [glue_mini, _self_]
members: [cola, rte]
limit: 64
eval_limit: 32
"""
STUDY = """\
# @package _global_
hydra: {mode: MULTIRUN}
study:
  title: the toy beside the dense model
  paper: ours
  rows: [method]
  columns: [task]
  grids:
    mini:
      common: {task: glue_mini/few, trainer.max_steps: 2, threads: 1}
      blocks:
        - {method: [dense, toy], task.members: [[cola]]}
"""

CALLS = """\
import contextlib, io, json, os, sys

from moe_runner.report.command import run
from moe_runner.train import main

answers = []
for line, words in json.loads(sys.argv[1]):
    os.environ["COMP_LINE"] = line
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if words[0] == "moe-report":
                code = run(words[1:])
            else:
                sys.argv = words
                main()
        except SystemExit as exit:
            code = exit.code
    answers.append([code, out.getvalue(), err.getvalue()])
answers.append([0, "torch" in sys.modules, ""])
print(json.dumps(answers))
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def lay_out(site: Path) -> None:
    """Install the method `toy` into a folder, as pip does, without option files."""
    package, info = site / "toy_package", site / "toy_package-1.0.dist-info"
    shutil.copytree(TOY / "toy", package / "toy")
    (package / "__init__.py").touch()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[moe_runner.methods]\ntoy = toy_package.toy.options:Toy\n"
    )


def write_options(folder: Path) -> None:
    """Write option files: of the method, a task that stands on ours, a study."""
    files = {"task/glue_mini/few": TASK, "study/toys": STUDY}
    files["method/toy"] = (TOY / "conf" / "method" / "toy.yaml").read_text()
    for name, text in files.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


class Place:
    """A folder with the toy installed, in which commands are run.

    Args:
        site: the folder.
        own: option folder for `--config-dir`; empty: they are in the package.
    """

    def __init__(self, site: Path, own: str) -> None:
        self.site, self.own = site, own
        path = os.pathsep.join([str(site), str(SOURCE)])
        self.environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def python(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *words], cwd=self.site, env=self.environment, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip

    def moe_run(self, *words: str) -> list[str]:
        return ["moe-run", *(["--config-dir", self.own] if self.own else []), *words]

    def moe_report(self, *words: str) -> list[str]:
        return ["moe-report", *words, *([f"config_dir={self.own}"] if self.own else [])]

    def answers(self, *calls: list[str], line: str = "") -> list[Answer]:
        """Give what commands print, one after the other in one process without torch."""
        done = self.python("-c", CALLS, json.dumps([[line, words] for words in calls]))
        assert done.returncode == 0, done.stderr
        *found, torch = (Answer(*each) for each in json.loads(done.stdout))
        assert torch.out is False
        return found


@pytest.fixture(scope="module", params=["entry point", "--config-dir"])
def place(request, tmp_path_factory) -> Place:
    site = tmp_path_factory.mktemp("site")
    lay_out(site)
    inside = request.param == "entry point"
    write_options(site / "toy_package" / "conf" if inside else site / "own_conf")
    return Place(site, "" if inside else "own_conf")


@pytest.mark.long
def test_checks_and_composing_know_the_options(place):
    info, plan, config, typo, key, size = place.answers(
        place.moe_run("--info", "defaults", "method=toy", "task=glue_mini/few"),
        place.moe_run(
            "-m", "method=dense,toy", "task=glue_mini/few", "hydra/launcher=joblib", "dry_run=true"
        ),
        place.moe_run("method=toy", "method.top_k=1", "task=glue_mini/few", "--cfg", "job"),
        place.moe_run("method=tyo"),
        place.moe_run("method=toy", "method.num_expert=3"),
        place.moe_run("method=toy", "method.top_k=5"),
    )
    assert info.code == 0, info.err
    assert "task/glue_mini" in info.out  # that few stands on
    assert plan.code == 0, plan.err
    assert [line.split()[2:5] for line in plan.out.splitlines() if "pending" in line] == [
        [method, "bert_tiny", f"glue_mini/{task}"]
        for method in ("dense", "toy")
        for task in ("cola", "rte")
    ]
    assert config.code == 0, config.err
    assert "name: toy\n  num_experts: 4\n  top_k: 1\n" in config.out
    assert "limit: 64" in config.out
    assert typo.code == key.code == size.code == 2
    assert typo.err.startswith("method=tyo is not an option; did you mean toy? (dense, emoe, ")
    assert key.err == (
        "method.num_expert=3 is not an option of method=toy; did you mean method.num_experts?\n"
    )
    assert size.err == "method.top_k=5 is more than method.num_experts=4; use 1 to 4\n"


@pytest.mark.long
def test_help_and_reports_list_the_options(place):
    text, tasks, status = place.answers(
        place.moe_run("--help"),
        place.moe_report("tasks", "glue_mini"),
        place.moe_report("status", "study=toys", "output=none"),
    )
    assert text.code == tasks.code == status.code == 0
    groups = dict(line.split(": ", 1) for line in text.out.splitlines() if ": " in line)
    assert "toy" in groups["method"].split(", ")
    assert "glue_mini/few" in tasks.out
    assert "toys" in status.out


@pytest.mark.parametrize(
    ("word", "completed"),
    [
        ("method=to", "method=toy"),
        ("task=glue_mini/few task.eval_l", "task.eval_limit="),
        ("study=to", "study=toys"),
    ],
)
def test_tab_completes_the_options(word, completed, place):
    flags = ["--config-dir", "own_conf"] if place.own else []
    (found,) = place.answers(
        ["moe-run", "-sc", "query=bash"], line=" ".join(["moe-run", *flags, word])
    )
    assert found.out.split() == [completed]


@pytest.mark.long
@pytest.mark.parametrize("place", ["--config-dir"], indirect=True)  # Hydra has to hand it on
def test_a_study_of_the_folder_is_carried_out_by_other_processes(place):
    words = place.moe_run(
        "study=toys", "device=cpu", "paths.output=own", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
    )  # fmt: skip
    done = place.python("-m", "moe_runner.train", *words[1:])
    assert done.returncode == 0, done.stderr
    assert len(list(place.site.glob("own/runs/*/result.json"))) == 2
    assert "the toy beside the dense model" in done.stdout


def test_an_option_of_ours_is_refused_in_any_command(tmp_path):
    lay_out(tmp_path)
    file = tmp_path / "toy_package" / "conf" / "method" / "emoe.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("name: emoe\n")
    place = Place(tmp_path, "")
    found = place.answers(
        place.moe_run("method=dense", "dry_run=true"), place.moe_run("--help"),
        place.moe_report("status"),
    )  # fmt: skip
    for answer in found:
        assert answer.code == 2
        assert answer.err.startswith("method=emoe is there twice: ")
        assert answer.err.endswith(f" and {file}; rename one file\n")
