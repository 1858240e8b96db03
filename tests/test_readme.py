"""Every command that the README and the option files show is one that the program accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moe_runner.cli.arguments import check_arguments

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
FILES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "conf").glob("*/**/*.yaml"))]


def commands() -> list[str]:
    found = []
    for file in FILES:
        for line in file.read_text().splitlines():
            line = line.removeprefix("$ ").removeprefix("# ").replace("<id>", "abc")
            for part in line.split("&&"):
                part = re.sub(r"<(file|folder)[^>]*>", "somewhere", part)
                match = re.match(r"\s*moe-run\b([^#]*)", part)
                if match and "<" not in match[1]:
                    found.append(re.split(r"\s{3,}", match[1].strip())[0])
    return sorted(set(found))


def test_there_are_commands_to_check():
    assert len(commands()) > 40


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_is_accepted(command):
    words = shlex.split(command)
    if words in (["--help"], ["method=emo", "method.top_k=200", "trainer.epoch=3"]):
        return  # the README shows the mistakes of the second
    assert check_arguments(words) == []


def test_nothing_is_left_to_fill_in():
    assert "@@" not in (ROOT / "README.md").read_text()
