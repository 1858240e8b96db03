"""`moe-report` as a user types it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_runner.options.folders import option_folders
from moe_runner.registry import SUITES
from moe_runner.report.command import COMMANDS, run
from moe_runner.report.task_list import option_files


@pytest.fixture(autouse=True)
def no_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # it is set by the command, for good
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


def lines(capsys, *words: str) -> list[list[str]]:
    """Run the command, and take the cells of its table."""
    assert run(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_every_option_has_its_place(capsys):
    rows = lines(capsys, "tasks")
    shown = {row[1] for row in rows} | {name for row in rows for name in row[0].split(", ")}
    files = option_files(option_folders())
    assert set(files) <= shown
    assert {suite for suite, _ in files.values()} == set(SUITES)


def test_every_source_and_licence_is_told(capsys):
    rows = {row[1]: row for row in lines(capsys, "tasks") if row[1]}
    untold = [name for name, row in rows.items() if "unknown" in (row[4], row[5])]
    assert untold == ["glue/rte"]  # no licence of RTE is known


def test_a_line_has_metric_size_source_licence_and_place(capsys):
    rows = {row[1]: row[2:] for row in lines(capsys, "tasks")}
    assert rows["glue/qqp"] == [
        "accuracy + f1", "363,846 / 40,430", "nyu-mll/glue", "Quora,", "no",
    ]  # fmt: skip
    assert rows["glue_mini/rte"] == ["accuracy", "2,000 / 400", "generated", "MIT", "generated"]
    assert rows["wikitext2"][:2] == ["perplexity", "unknown / 3,760"]


def test_a_folder_is_looked_into(capsys, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("a\n")
    words = ["tasks", "language_modelling", f"data_dir={tmp_path}"]
    rows = {row[1]: row for row in lines(capsys, *words)}
    assert rows["text"][-1] == "data_dir; without test"
    assert "glue/cola" not in rows


def test_a_named_suite_shows_its_recipe(capsys):
    rows = lines(capsys, "tasks", "language_modelling")
    assert [
        "wikitext2", "full 20, lora 20, lora_block 20", "1e-05", "-", "4", "4", "-", "0", "0",
    ] in rows  # fmt: skip


def test_a_copy_in_the_cache_of_the_hub_is_seen(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--nyu-mll--glue" / "snapshots" / "main" / "cola"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(b"")
    rows = {row[1]: row for row in lines(capsys, "tasks", "glue")}
    assert rows["glue/cola"][-1] == "cache of the Hub"
    assert rows["glue/rte"][-1] == "no"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["tsks"],
            "tsks is not an option of moe-report; did you mean tasks? (tasks, tables,",
        ),
        (
            ["tasks", "gleu"],
            "gleu is not an option of moe-report tasks; did you mean glue? (classification,",
        ),
        (["tasks", "x=1"], "x=1 is not an option of moe-report tasks; use one of (data_dir="),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, text, capsys):
    assert run(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(text)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_help_names_every_subcommand(capsys):
    assert run([]) == run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"moe-report {name} " in text for name in COMMANDS)
    assert run(["tasks", "--help"]) == 0
    assert "data_dir=/data/glue" in capsys.readouterr().out


def test_it_imports_nothing_heavy_and_asks_no_network():
    code = (
        "import sys\n"
        "sys.argv = ['moe-report', 'tasks']\n"
        "from moe_runner.report.command import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'urllib3', 'hydra'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "glue_mini/cola" in done.stdout
    assert done.stderr == ""
