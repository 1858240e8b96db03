"""Mistakes in a user's own option files: one line that names the file, before Hydra reads it."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from moe_runner.cli.arguments import check_arguments
from moe_runner.cli.launching import not_swept
from moe_runner.files import read_yaml

STUDY = """\
study:
  {title: a, paper: ours, rows: [method], columns: [task], grids: {mini: {blocks: [{seed: 0}]}}}
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"name: emoe\ntop_k: [1\nx: 2\n", ":3 is not YAML (expected ',' or ']', but got ':')"),
        (b"a: b: c\n", ":1 is not YAML (mapping values are not allowed here); mend it"),
        (b"a: 1\na: 2\n", ":2 is not YAML (found duplicate key a); mend it"),
        (b"a: \xff\n", " is not YAML ("),
        (b"- a\n- b\n", " is no mapping; write a line `<option>: <value>` for each option"),
        (b"5\n", " is no mapping; write a line `<option>: <value>` for each option"),
    ],
)
@pytest.mark.parametrize("group", ["method", "model", "study"])
def test_a_file_that_is_no_mapping_is_told_in_one_line(text, problem, group, tmp_path):
    file = tmp_path / group / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(text)
    lines = check_arguments(["--config-dir", str(tmp_path), f"{group}=mine"])
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}{problem}")


def test_every_broken_file_of_a_sweep_is_told(tmp_path):
    (tmp_path / "method").mkdir()
    for name in ("one", "two"):
        (tmp_path / "method" / f"{name}.yaml").write_text("a: b: c\n")
    lines = check_arguments(["-m", "--config-dir", str(tmp_path), "method=dense,one,two"])
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines] == ["one.yaml", "two.yaml"]


def test_an_empty_file_has_no_options_and_one_that_is_not_there_is_another_error(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("", "{file} does not say that it is a sweep; add the line hydra: {{mode: MULTIRUN}}"),
        (
            "hydra: {mode: MULTIRUN}\n",
            "study=mine is a sweep of its own; leave out hydra/sweeper and hydra.mode",
        ),
    ],
)
def test_a_study_that_is_no_sweep_says_what_its_file_lacks(head, problem, tmp_path):
    file = tmp_path / "study" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(head + STUDY)
    source = {"path": str(tmp_path), "provider": "command-line"}
    node = OmegaConf.create({"runtime": {"config_sources": [source]}})
    assert not_swept("mine", node) == problem.format(file=file)
