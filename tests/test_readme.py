"""Every command that README, docs and option files show is one that the program accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moe_runner.backbones.weights import ASSETS
from moe_runner.cli.arguments import check_arguments

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").glob("**/*.md")) if page.stem != "extending"]
FILES = [ROOT / "README.md", *PAGES, *sorted((ROOT / "conf").glob("*/**/*.yaml"))]
LONGEST = 200  # lines of the README

A_MODEL = f"model.path={ASSETS / 'bert_tiny'}"
OF_THE_HUB = {  # the config.json of Qwen2.5-0.5B, as far as it is read
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "vocab_size": 151936, "max_position_embeddings": 32768,
}  # fmt: skip


def commands() -> list[str]:
    found = []
    for file in FILES:
        for line in file.read_text().splitlines():
            line = line.removeprefix("$ ").removeprefix("# ").replace("<id>", "abc")
            for part in line.split("&&"):
                part = part.replace("model=auto model.path=<folder>", f"model=auto {A_MODEL}")
                part = re.sub(r"model.path=<folder>", "", part)
                part = re.sub(r"<(file|folder)[^>]*>", "somewhere", part)
                match = re.match(r"\s*moe-run\b([^#]*)", part)
                if match and "<" not in match[1]:
                    found.append(re.split(r"\s{3,}", match[1].strip())[0])
    return sorted(set(found))


def test_there_are_commands_to_check():
    assert len(commands()) > 40


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_is_accepted(command, monkeypatch):
    monkeypatch.setattr("moe_runner.options.auto.model_config", lambda *_: OF_THE_HUB)
    words = shlex.split(command)
    if words in (["--help"], ["method=emo", "method.top_k=200", "trainer.epoch=3"]):
        return  # the second is shown with its mistakes
    assert check_arguments(words) == []


def test_the_readme_is_short_and_nothing_is_left_to_fill_in():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST
    assert "@@" not in text


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    places = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [place for place in places if not (page.parent / place).exists()] == []
