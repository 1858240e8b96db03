"""`moe-report runs`, `show`, `compare` and `page`: runs of one's own."""

from __future__ import annotations

import csv

import pytest

from moe_runner.report import command
from moe_runner.report.stored import differing, rows_of, same, shortest, varied
from moe_runner.runs.result import Checkpoint, write_result
from moe_runner.runs.store import Store
from tests.report.test_beside import plan, study  # noqa: F401
from tests.results import make_result, scores

GRID = study(
    {"method": "dense", "task": "glue_mini/rte", "seed": [0, 1, 2]},
    {"method": "emoe", "method.top_k": [16, 32], "task": "glue_mini/rte", "seed": [0, 1, 2]},
    {"method": "dense", "task": "glue_mini/cola", "seed": 0},
)


@pytest.fixture
def place(tmp_path, plan):  # noqa: F811
    """A store of ten runs, of which that on cola is not done."""
    store = Store(tmp_path / "out")
    for job in plan(GRID).jobs:
        run = job.run
        folder = store.folder(run.id)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(run.to_yaml())
        if run.task_name == "cola":
            continue
        gain = {"dense": 0.0}.get(run.method.name, 0.1)
        primary = 0.5 + gain + 0.01 * run.seed
        curve = tuple(
            Checkpoint(step, step / 8, 0.7, primary - 0.1 * (8 - step), {}) for step in (4, 8)
        )
        result = make_result(
            run.axes(), primary, id=run.id, settings=run.settings(), metrics=("accuracy",),
            id_metrics={"validation": scores(primary, accuracy=primary)},
            ood_metrics={"far": scores(0.4, accuracy=0.4), "gone": None}, learning_curve=curve,
        )  # fmt: skip
        write_result(folder / "result.json", result)
    return store


@pytest.fixture
def report(place, capsys, monkeypatch):
    """Run a subcommand; its exit code and what it printed."""

    def run(*words: str, width: int = 150) -> tuple[int, str]:
        monkeypatch.setattr("moe_runner.console.WIDTH", width)
        code = command.run([*words, f"output={place.root.parent}"])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def ids(place, **axes) -> list[str]:
    rows = rows_of(place)
    return [
        row.id for row in rows if all(row.value(k.replace("__", ".")) == v for k, v in axes.items())
    ]


def test_runs_are_listed_with_what_differs(report, place):
    code, text = report("runs", "task=rte")
    assert code == 0
    assert text.startswith("9 runs in")
    lines = [line for line in text.splitlines() if "emoe bert_tiny rte" in line]
    assert len(lines) == 6
    assert all("seed" in line and "top_k=" in line for line in lines)
    assert "num_experts" not in text  # all have the same
    assert "accuracy 61.0" in text
    assert "accuracy 51.0" in text


def test_a_narrow_terminal_loses_nothing(report):
    _, text = report("runs", width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["method=emoe"], 6),
        (["method=emoe", "method.top_k=16"], 3),
        (["method.top_k=16,32", "seed=0"], 2),
        (["state=done"], 9),
        (["state=pending"], 1),
        (["learning_rate=5e-4"], 10),
        ([], 10),
    ],
)
def test_runs_are_filtered_by_anything(report, words, number):
    code, text = report("runs", *words)
    assert code == 0
    assert text.startswith(f"{number} runs in")


def test_runs_are_sorted(report):
    _, text = report("runs", "method=emoe", "method.top_k=16", "sort=-score")
    found = [line.split("accuracy ")[1][:4] for line in text.splitlines() if "accuracy" in line]
    assert found == ["62.0", "61.0", "60.0"]
    _, text = report("runs", "sort=score")
    assert "pending" in text.splitlines()[-3]  # without a score it is last


def test_nothing_is_said_in_a_line(report, tmp_path):
    assert report("runs", "task=qqp") == (0, f"no runs in {tmp_path}/out with these values\n")
    assert command.run(["runs", f"output={tmp_path}/empty"]) == 0
    assert command.run(["page", f"output={tmp_path}/empty", "method.top_k=8"]) == 0
    assert command.run(["page", f"output={tmp_path}/empty", "nope=8"]) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs", "methd=emoe"], "methd=emoe is not an option of these runs; did you mean method?"),
        (["runs", "sort=scor"], "sort=scor is not an option; did you mean score?"),
        (["runs", "emoe"], "emoe is not an option of moe-report runs"),
        (["show"], "moe-report show takes one id, not none; moe-report runs lists them"),
        (["compare", "abc"], "moe-report compare takes 2 ids or more, not abc; moe-report"),
        (["show", "zzzz"], "'zzzz' is not a run in"),
        (["page", "format=pdf"], "format=pdf is not an option"),
    ],
)
def test_a_mistake_is_a_line(report, words, line):
    code, text = report(*words)
    assert code == 2
    assert text.startswith(line), text


def test_a_csv_has_everything(report, tmp_path):
    file = tmp_path / "runs.csv"
    report("runs", "method=emoe", "sort=seed", f"to={file}")
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert {row["method.top_k"] for row in rows} == {"16", "32"}
    assert float(rows[0]["primary"]) == pytest.approx(60.0)
    assert float(rows[0]["ood/far/accuracy"]) == pytest.approx(40.0)


def test_a_run_is_shown(report, place):
    (run_id,) = ids(place, method="dense", task="rte", seed=2)
    code, text = report("show", run_id[:12])
    assert code == 0
    assert "trainer.epochs" in text
    assert "validation accuracy" in text
    assert "52.0" in text
    assert "out of domain: far accuracy" in text
    assert "not available" in text  # the set that is not there
    assert str(place.folder(run_id)) in text


def test_runs_are_compared(report, place):
    dense, *_ = ids(place, method="dense", task="rte", seed=0)
    (emoe,) = ids(place, method="emoe", seed=0, **{"method__top_k": 16})
    (other,) = ids(place, method="emoe", seed=0, **{"method__top_k": 32})
    code, text = report("compare", emoe, other)
    assert code == 0
    table = text.partition("scores")[0]
    assert "method.top_k" in table
    assert "seed" not in table
    assert "method.num_experts" not in table
    assert [line.split() for line in text.splitlines() if line.startswith("│ 4 ")] == [
        ["│", "4", "│", "20.0", "│", "20.0", "│"]
    ]
    _, text = report("compare", dense, emoe)
    assert "method.num_experts" in text.partition("scores")[0]  # what only one has


def test_runs_become_a_study_with_verdicts_and_a_page(report, place, tmp_path):
    code, text = report("page", "task=rte", "format=md,csv", f"to={tmp_path}/page")
    assert code == 0
    assert "own: what differs?" in text
    (line,) = (line for line in text.splitlines() if "top-k 16 of 64" in line and "better" in line)
    assert "+10.00 ± 0.00 (3)" in line
    made = (tmp_path / "page" / "tables.md").read_text()
    assert "| dense | 51.0 ± 0.8 (3) |" in made


def test_what_is_damaged_is_named_and_the_others_are_listed(report, place):
    run_id = ids(place, method="dense", task="rte", seed=0)[0]
    (place.folder(run_id) / "result.json").write_text("{")
    code, text = report("runs")
    assert code == 0
    assert text.startswith("10 runs in")
    assert f"damaged: {place.folder(run_id)}/result.json is not readable" in text
    code, text = report("show", run_id)
    assert (code, text.startswith("damaged: ")) == (0, True)


def test_settings_of_a_recipe_do_not_count_as_differences(place):
    rows = rows_of(place)
    assert "method.top_k" in varied(rows)
    assert "seed" in differing(rows)
    assert "method.num_experts" not in varied(rows)
    assert shortest(["abcdefgh1", "abcdefgh2"]) == 9
    assert shortest([]) == 8


@pytest.mark.parametrize(
    ("value", "text", "equal"),
    [
        (0.001, "1e-3", True), (16, "16,32", True), (True, "true", True), (True, "1", False),
        ((8, 10), "[8,10]", True), ("last:1", "last:1", True), (None, "null", True),
        (3, "4", False),
    ],
)  # fmt: skip
def test_values_are_read_as_they_are_typed(value, text, equal):
    assert same(value, text) is equal
