"""Tab completion, as the shells ask for it: `-sc query=<shell>`, the line in COMP_LINE."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hydra._internal.core_plugins.bash_completion import BashCompletion

from moe_runner.cli.completion import completed
from moe_runner.options.files import OptionFiles
from moe_runner.options.folders import option_folders

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")


def ask(line: str, monkeypatch, shell: str = BashCompletion.provides()) -> list[str] | None:
    monkeypatch.setenv("COMP_LINE", line)
    found = completed(["-sc", f"query={shell}"])
    return None if found is None else found.split()


@pytest.mark.parametrize("typed", ["task=glue_mini/", "method=emoe task=glue_mini/"])
def test_members_of_a_suite_are_completed(typed, monkeypatch):
    assert set(ask(f"moe-run {typed}", monkeypatch)) == {f"task=glue_mini/{each}" for each in GLUE}
    assert ask(f"moe-run {typed}co", monkeypatch) == ["task=glue_mini/cola"]


def test_a_complete_suite_goes_on_to_its_members_and_a_part_of_its_name_does_not(monkeypatch):
    found = ask("moe-run task=glue_mini", monkeypatch)
    assert found[0] == "task=glue_mini"
    assert set(found[1:]) == {f"task=glue_mini/{each}" for each in GLUE}
    assert ask("moe-run task=glue_min", monkeypatch) == ["task=glue_mini"]


def test_the_second_of_several_is_completed_and_none_comes_twice(monkeypatch):
    found = ask("moe-run -m method=dense,em", monkeypatch)
    assert found == ["method=dense,emoe", "method=dense,emoe_learn"]
    assert "method=dense,emoe,emoe" not in ask("moe-run -m method=dense,emoe,", monkeypatch)
    assert "method=dense,emoe,gmoe" in ask("moe-run -m method=dense,emoe,", monkeypatch)


def test_every_option_of_a_group_is_offered(monkeypatch):
    options = OptionFiles.find(option_folders()).options["method"]
    assert ask("moe-run method=", monkeypatch, "fish") == [f"method={name}" for name in options]


@pytest.mark.parametrize("line", ["moe-run method.to", "moe-run meth", "moe-run seed=", "moe-run "])
def test_other_words_are_left_to_hydra(line, monkeypatch):
    assert ask(line, monkeypatch) is None


def test_the_command_answers_a_shell():
    command = [sys.executable, "-m", "moe_runner.train", "-sc", "query=bash"]
    for line, word in (
        ("moe-run task=glue_mini/c", "task=glue_mini/cola"),  # ours
        ("moe-run method.num_ex", "method.num_experts="),  # Hydra's
    ):
        answer = subprocess.run(
            command,
            env=os.environ | {"COMP_LINE": line},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.split() == [word]
