"""A study's cells, and the published figures beside ours."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF, option_folders
from moe_runner.report.beside import ABSENT, beside_sheet, columns_of
from moe_runner.report.published import PublishedTable, published_tables
from moe_runner.report.study_sheet import MARK, study_sheet
from moe_runner.report.study_table import grouped, tabulate, unequal
from moe_runner.runs.result import Accuracy, Checkpoint
from moe_runner.sweeps.study import Pairing, Study, read_study, study_names
from moe_runner.sweeps.study_plan import plan_study
from tests.plans import planned
from tests.results import make_result, scores

FOLDERS = option_folders()
STUDIES = study_names(FOLDERS)
GRIDS = [(name, profile) for name in STUDIES for profile in read_study(FOLDERS, name).grids]
PUBLISHED = PublishedTable(
    id="made-up",
    paper="emoe",
    where="nowhere",
    metric="accuracy",
    columns=("Average", "CoLA", "OOD", "Rank", "Other", "Far"),
    measures=("score", "accuracy", "accuracy", "rank", "score", "accuracy"),
    rows={"Dense": (80.0, 60.0, 50.0, 1.5, 1.0, 3.0), "EMoE": (80.5, None, 51.0, 1.2, 2.0, 4.0)},
    std={},
    source="a file",
    confidence="verified",
    notes=("made up",),
)
PAIRING = Pairing(
    table="made-up",
    rows={"dense": "Dense", "emoe": "EMoE"},
    columns={
        "all": "Average",
        "cola": "CoLA",
        "cola > ood": "OOD",
        "all rank": "Rank",
        "elsewhere": "Other",
        "cola > elsewhere": "Far",
    },
)


def study(*blocks, rows=("method",), columns=("task",), **common) -> Study:
    common = {"model": "bert_tiny", "trainer.epochs": 1} | common
    grid = tuple({**common, **block} for block in blocks)
    return Study(
        name="small", title="a study", paper="ours", rows=rows, columns=columns,
        grids={"mini": grid},
    )  # fmt: skip


TWO_TASKS = study(
    {"method": ["dense", "emoe"], "task": ["glue_mini/cola", "glue_mini/rte"], "seed": [0, 1]}
)


@pytest.fixture
def plan(tmp_path):
    def make(of: Study, profile="mini"):
        return plan_study(FOLDERS, of, profile, {"paths.cache": str(tmp_path)})

    return make


def results(plan, primary, ood=None, **more) -> dict:
    """Make results; `primary` and `ood` turn a run into its score."""
    ood = ood or (lambda run: 0.5)
    return {
        job.run.id: make_result(
            job.run.axes(),
            primary(job.run),
            id=job.run.id,
            metrics=("accuracy",),
            ood_metrics={"ood": scores(ood(job.run))},
            **more,
        )
        for job in plan.jobs
    }


@pytest.mark.parametrize("name", STUDIES)
def test_a_pairing_names_what_there_is(name):
    of = read_study(FOLDERS, name)
    tables = [tabulate(planned(name, profile), {}) for profile in of.grids]
    rows = {row for table in tables for row in table.rows}
    for pairing in of.beside:
        published = published_tables()[pairing.table]
        assert set(pairing.rows) <= rows
        assert set(pairing.rows.values()) <= set(published.rows)
        assert set(pairing.columns.values()) <= set(published.columns)
        for key in pairing.columns:
            assert any(columns_of(table, key) for table in tables), key


@pytest.mark.parametrize(("name", "profile"), GRIDS)
def test_the_runs_of_a_cell_are_repetitions(name, profile):
    for cell, runs in grouped(planned(name, profile)).items():
        settings: dict[int, list] = {}  # of DomainBed, a batch is a part of each training domain
        for run in runs:
            settings.setdefault(run.task_name.count("+"), []).append(run.settings())
        assert all(one == alike[0] for alike in settings.values() for one in alike), cell


def test_every_figure_stands_beside_ours_with_both_differences(plan):
    made = plan(TWO_TASKS)

    def primary(run):
        return 0.6 + 0.1 * (run.method.name == "emoe") + 0.2 * (run.task_name == "rte")

    table = tabulate(made, results(made, primary, lambda run: primary(run) / 2))
    sheet = beside_sheet(table, PUBLISHED, PAIRING, "mini")
    texts = [tuple(entry.text for entry in row) for row in sheet.rows]
    assert texts == [
        ("dense", "Average", "all", "70.00 (2)", "", "80.00", ""),
        ("emoe", "Average", "all", "80.00 (2)", "+10.00", "80.50", "+0.50"),
        ("dense", "CoLA", "cola", "60.00 ± 0.00 (2)", "", "60.00", ""),
        ("emoe", "CoLA", "cola", "70.00 ± 0.00 (2)", "+10.00", "not available", ""),
        ("dense", "OOD", "cola > ood", "30.00 (2)", "", "50.00", ""),
        ("emoe", "OOD", "cola > ood", "35.00 (2)", "+5.00", "51.00", "+1.00"),
        ("dense", "Rank", "all rank", "2.00", "", "1.50", ""),
        ("emoe", "Rank", "all rank", "1.00", "-1.00", "1.20", "-0.30"),
        ("dense", "Other", ABSENT, "", "", "1.00", ""),
        ("emoe", "Other", ABSENT, "", "", "2.00", "+1.00"),
        ("dense", "Far", ABSENT, "", "", "3.00", ""),
        ("emoe", "Far", ABSENT, "", "", "4.00", "+1.00"),
    ]
    assert "compare" in sheet.caption
    assert sheet.caption.endswith("verified; a file; made up")


def test_every_further_row_is_compared_with_the_first_and_not_with_the_one_above(plan):
    made = plan(study({"method": ["dense", "emoe", "gmoe", "moe"], "task": "glue_mini/cola"}))
    scores = {"dense": 0.6, "emoe": 0.7, "gmoe": 0.55, "moe": 0.9}
    rows = {"Dense": (80.0,), "EMoE": (80.5,), "GMoE": (79.0,), "MoE": (82.0,)}
    published = dataclasses.replace(PUBLISHED, columns=("CoLA",), measures=("accuracy",), rows=rows)
    names = {"dense": "Dense", "emoe": "EMoE", "gmoe": "GMoE", "moe": "MoE"}
    pairing = Pairing(table="made-up", rows=names, columns={"cola": "CoLA"})

    def differences(table) -> list[tuple[str, str, str]]:
        sheet = beside_sheet(table, published, pairing, "paper")
        return [(row[0].text, row[4].text, row[6].text) for row in sheet.rows]

    found = results(made, lambda run: scores[run.method.name])
    assert differences(tabulate(made, found)) == [
        ("dense", "", ""),
        ("emoe", "+10.00", "+0.50"),
        ("gmoe", "-5.00", "-1.00"),
        ("moe", "+30.00", "+2.00"),
    ]
    without = {i: result for i, result in found.items() if result.axes.method != "dense"}
    assert differences(tabulate(made, without)) == [  # no other row becomes the baseline
        ("dense", "", ""),
        ("emoe", "", "+0.50"),
        ("gmoe", "", "-1.00"),
        ("moe", "", "+2.00"),
    ]


def test_what_is_not_finished_is_missing(plan):
    made = plan(TWO_TASKS)
    table = tabulate(made, {})
    sheet = beside_sheet(table, PUBLISHED, PAIRING, "paper")
    assert {row[3].text for row in sheet.rows} == {"missing", ""}
    own = study_sheet(made, table)
    assert own.rows[0][1].text == "0 of 2 runs"


def test_the_tasks_of_a_cell_are_averaged_seed_by_seed_each_at_its_own_rate(plan):
    of = study(
        {"method": "dense", "task": ["glue_mini/cola", "glue_mini/rte"], "seed": [0, 1]},
        {"method": "dense", "task": "glue_mini/rte", "seed": [0, 1], "trainer.learning_rate": 1e-5},
        columns=("model",),
    )
    made = plan(of)
    scores = {"cola": (0.5, 0.7), "rte": (0.9, 0.7)}

    def primary(run):
        worse = 0.3 if run.trainer.learning_rate == 1e-5 else 0.0
        return scores[run.task_name][run.seed] - worse

    cell = tabulate(made, results(made, primary)).cells["dense", "bert_tiny"].cell
    assert (cell.n, cell.mean, cell.std) == (2, pytest.approx(0.7), pytest.approx(0.0))
    assert cell.ood == {"cola > ood": 0.5, "rte > ood": 0.5}


def test_a_seed_that_lacks_a_task_is_left_out_of_the_average_over_tasks(plan):
    tasks = ["glue_mini/cola", "glue_mini/rte"]
    made = plan(study({"method": "dense", "task": tasks, "seed": [0, 1, 2]}, columns=("model",)))
    scores = {"cola": (0.5, 0.3, 0.1), "rte": (0.9, 0.7, 0.1)}
    found = results(made, lambda run: scores[run.task_name][run.seed])
    ids = {(job.run.task_name, job.run.seed): job.run.id for job in made.jobs}

    def cell_without(*keys: tuple[str, int]):
        gone = {ids[key] for key in keys}
        done = {run_id: result for run_id, result in found.items() if run_id not in gone}
        return tabulate(made, done).cells["dense", "bert_tiny"]

    part = cell_without(("rte", 2))  # which leaves cola's worst score alone
    assert (part.done, part.planned) == (5, 6)
    assert part.cell.n == 2
    assert part.cell.mean == pytest.approx((0.7 + 0.5) / 2)
    assert part.cell.std == pytest.approx(0.1)
    none = cell_without(("rte", 1), ("rte", 2), ("cola", 0))  # no seed has both
    assert (none.done, none.cell) == (3, None)


def test_settings_that_differ_from_the_first_row_are_marked(plan):
    task = {"task": "glue_mini/cola"}
    made = plan(study({"method": "dense", **task}, {"method": "emoe", **task}))
    assert unequal(made) == {}
    made = plan(
        study({"method": "dense", **task}, {"method": "emoe", "trainer.batch_size": 8, **task})
    )
    assert unequal(made) == {"emoe": ("trainer.batch_size 8 (dense: 32)",)}
    sheet = study_sheet(made, tabulate(made, {}))
    assert [row[0].text for row in sheet.rows] == ["dense", f"emoe {MARK}"]
    assert sheet.caption.endswith(f"{MARK} emoe: trainer.batch_size 8 (dense: 32)")


@pytest.mark.parametrize(("rule", "percent"), [("training_domain", 30.0), ("oracle", 60.0)])
def test_a_cell_of_domainbed_is_a_data_set_by_its_selection_rule(plan, rule, percent):
    of = study(
        {"method": "dense", "model": "vit_tiny", "task": "domainbed_mini/colored_digits"},
        columns=("model", "task"),
    )
    made = plan(of)
    domains = ("plus_90", "plus_80", "minus_90")

    def checkpoint(step, test, out):
        return Checkpoint(step, 1.0, 0.5, 0.5, {d: Accuracy(test, out) for d in domains})

    curve = (checkpoint(1, 0.3, 0.9), checkpoint(2, 0.6, 0.2))
    found = results(made, lambda run: 0.0, learning_curve=curve)
    table = tabulate(made, found, rule)
    assert table.columns == ("vit_tiny colored_digits",)
    cell = table.cells["dense", "vit_tiny colored_digits"]
    assert (cell.done, cell.planned) == (3, 3)
    assert 100 * cell.cell.mean == pytest.approx(percent)
    first = made.jobs[0].run.id
    part = tabulate(made, {first: found[first]}, rule).cells["dense", "vit_tiny colored_digits"]
    assert part.cell is None


def test_a_wrong_pairing_is_the_mistake_of_its_file(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    file = tmp_path / "conf" / "study" / "emoe_layers.yaml"
    file.write_text(file.read_text().replace("columns: {all: average}", "columns: all"))
    with pytest.raises(
        ConfigError, match=r"study\.beside\.columns=all is not valid; use a mapping"
    ):
        read_study((tmp_path / "conf",), "emoe_layers")
