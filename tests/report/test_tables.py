"""A study's tables: metric and direction, out of domain, majority class, marks, missing runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics

import pytest

from moe_runner.report.sheet import Entry, Sheet, blocks, print_sheet, to_csv, to_latex
from moe_runner.report.study_sheet import NOT_RECORDED, ood_sheet, study_sheet
from moe_runner.report.study_table import tabulate
from moe_runner.report.tidy import HEADER, tidy_sheet
from moe_runner.runs.result import Scores
from tests.report.test_beside import plan, results, study  # noqa: F401
from tests.results import make_result

GRID = study({"method": ["dense", "emoe"], "task": ["glue_mini/cola", "glue_mini/rte"],
              "seed": [0, 1, 2]})  # fmt: skip
METRICS = {"cola": ("matthews",), "rte": ("accuracy",)}


def scores(primary: float, name: str, majority: float | None, constant: bool | None) -> Scores:
    return Scores({name: primary}, primary, 1.0, 10, {}, majority, constant)


def recorded(made, constant=lambda run: False) -> dict:
    """Results as they are stored today."""
    found = {}
    for job in made.jobs:
        run = job.run
        (name,) = METRICS[run.task_name]
        value = 0.5 + 0.1 * (run.method.name == "emoe") + 0.01 * run.seed
        plain = {"cola": 0.0, "rte": 0.55}[run.task_name]
        found[run.id] = make_result(
            run.axes(), value, id=run.id, metrics=(name,),
            id_metrics={"validation": scores(value, name, plain, constant(run))},
            ood_metrics={"far": scores(value / 2, "accuracy", 0.65, False)},
        )  # fmt: skip
    return found


def texts(sheet: Sheet) -> list[list[str]]:
    return [[entry.text for entry in row] for row in sheet.rows]


def test_columns_name_metric_and_direction_and_the_majority_class_has_a_row(plan):  # noqa: F811
    made = plan(GRID)
    sheet = study_sheet(made, tabulate(made, recorded(made)))
    assert sheet.header == (
        "method", "cola (matthews ↑)", "rte (accuracy ↑)", "average ↑", "average against dense",
        "mean OOD rank ↓",
    )  # fmt: skip
    assert texts(sheet) == [
        ["dense", "51.0 ± 0.8 (3)", "51.0 ± 0.8 (3)", "51.0", "", "2.00"],
        ["emoe", "61.0 ± 0.8 (3)", "61.0 ± 0.8 (3)", "61.0", "+10.0", "1.00"],
        ["majority class", "0.0", "55.0", "27.5", "", ""],
    ]
    assert [entry.best for entry in sheet.rows[1]] == [False, True, True, False, False, False]
    assert NOT_RECORDED not in sheet.caption


def test_out_of_domain_scores_are_columns_with_the_rank_beside(plan):  # noqa: F811
    made = plan(GRID)
    sheet = ood_sheet(made, tabulate(made, recorded(made)))
    assert sheet.header == (
        "method", "cola > far (accuracy ↑)", "rte > far (accuracy ↑)", "mean rank ↓",
    )  # fmt: skip
    assert texts(sheet) == [
        ["dense", "25.5", "25.5", "2.00"], ["emoe", "30.5", "30.5", "1.00"],
        ["majority class", "65.0", "65.0", ""],
    ]  # fmt: skip


def test_constant_predictions_are_marked(plan):  # noqa: F811
    made = plan(GRID)
    found = recorded(made, lambda run: (run.method.name, run.task_name) == ("dense", "rte"))
    sheet = study_sheet(made, tabulate(made, found))
    assert texts(sheet)[0][1:3] == ["51.0 ± 0.8 (3)", "51.0 ± 0.8 (3) ‡"]
    assert "‡ a run behind it gives every example the same answer" in sheet.caption


def test_older_results_say_that_they_do_not_know(plan):  # noqa: F811
    made = plan(GRID)
    sheet = study_sheet(made, tabulate(made, results(made, lambda run: 0.5)))
    assert [row[0] for row in texts(sheet)] == ["dense", "emoe"]
    assert NOT_RECORDED in sheet.caption
    done = results(made, lambda run: 0.5)
    of_texts = {i: dataclasses.replace(each, metrics=("perplexity",)) for i, each in done.items()}
    assert NOT_RECORDED not in study_sheet(made, tabulate(made, of_texts)).caption


def test_rows_that_lack_runs_say_so_and_are_neither_best_nor_ranked(plan):  # noqa: F811
    made = plan(GRID)
    found = recorded(made)
    gone = next(
        j.run.id for j in made.jobs if (j.run.method.name, j.run.task_name) == ("emoe", "rte")
    )
    table = tabulate(made, {run_id: r for run_id, r in found.items() if run_id != gone})
    sheet = study_sheet(made, table)
    assert texts(sheet)[1][2] == "61.5 ± 0.5 (2), 2 of 3 runs"
    assert sheet.rows[1][1].best  # cola has all its runs
    assert not sheet.rows[1][2].best
    assert table.ranks(table.columns) == {}
    assert "rows that lack runs are not ranked" in sheet.caption


def test_equal_rows_are_all_best_and_none_is_if_all_are(plan):  # noqa: F811
    made = plan(study({"method": ["dense", "emoe", "gmoe"], "task": "glue_mini/cola"}))
    values = {"dense": 0.5, "emoe": 0.5 + 1e-12, "gmoe": 0.4}
    assert tabulate(made, results(made, lambda run: values[run.method.name])).best("cola") == {
        "dense", "emoe",
    }  # fmt: skip
    assert tabulate(made, results(made, lambda run: 0.5)).best("cola") == frozenset()


def test_the_tidy_file_has_every_number_with_its_runs(plan):  # noqa: F811
    made = plan(GRID)
    found = recorded(made)
    gone = next(job.run.id for job in made.jobs if job.run.method.name == "emoe")
    part = {run_id: result for run_id, result in found.items() if run_id != gone}
    rows = list(csv.DictReader(io.StringIO(to_csv(tidy_sheet(made, part)))))
    assert tuple(rows[0]) == HEADER
    assert len(rows) == 8  # 2 rows, 2 columns, in domain and far
    first = rows[0]
    assert (first["study"], first["row"], first["column"], first["set"]) == (
        "small",
        "dense",
        "cola",
        "",
    )
    assert (first["metric"], first["better"], first["n"]) == ("matthews", "higher", "3")
    values = [50.0, 51.0, 52.0]
    assert float(first["mean"]) == pytest.approx(51.0)
    assert float(first["std"]) == pytest.approx(statistics.pstdev(values))
    assert float(first["standard_error"]) == pytest.approx(statistics.stdev(values) / 3**0.5)
    ids = [job.run.id for job in made.jobs
           if (job.run.method.name, job.run.task_name) == ("dense", "cola")]  # fmt: skip
    assert first["run_ids"].split() == ids
    lacking = next(row for row in rows if row["row"] == "emoe" and row["runs_done"] == "2")
    assert (lacking["runs_planned"], lacking["n"]) == ("3", "2")
    assert (first["majority"], first["constant"]) == ("0.0", "false")
    none = csv.DictReader(io.StringIO(to_csv(tidy_sheet(made, {}))))
    assert {(row["mean"], row["n"], row["metric"]) for row in none} == {
        ("", "0", "matthews"), ("", "0", "accuracy"),
    }  # fmt: skip


def wide(columns: int) -> Sheet:
    return Sheet(
        title="wide", header=("row", *(f"column {i} (accuracy ↑)" for i in range(columns))),
        rows=tuple((Entry(name), *(Entry(f"{i}.0 ± 1.0 (3)") for i in range(columns)))
                   for name in ("dense", "emoe")),
        caption="said once",
    )  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 150])
def test_a_wide_table_comes_in_blocks_that_repeat_the_rows(width):
    from rich.console import Console

    parts = blocks(wide(12), width)
    assert len(parts) > 1
    assert [name for part in parts for name in part.header[1:]] == list(wide(12).header[1:])
    assert all([row[0].text for row in part.rows] == ["dense", "emoe"] for part in parts)
    assert [part.caption for part in parts] == [""] * (len(parts) - 1) + ["said once"]
    console = Console(width=width, file=io.StringIO(), markup=False)
    print_sheet(console, wide(12))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(text.count(f" {i}.0 ± 1.0 (3)") == 2 for i in range(12))  # no number is folded


def test_a_narrow_table_stays_whole():
    assert blocks(wide(2), 80) == [wide(2)]
    words = dataclasses.replace(wide(12), words=13)
    assert blocks(words, 80) == [words]


def test_a_latex_table_has_a_label_of_plain_letters():
    text = to_latex(wide(1), label="own-\\input{x}_50%$")
    assert r"\label{tab:own-input-x-50}" in text
    assert r"(accuracy $\uparrow$)" in text
    assert r"\label" not in to_latex(wide(1))
