"""What each row is compared with, and which rows are ranked where not all have every column."""

from __future__ import annotations

import pytest

from moe_runner.report.baselines import baselines
from moe_runner.report.study_sheet import ood_sheet, study_sheet
from moe_runner.report.study_table import tabulate
from moe_runner.report.verdicts import claims
from tests.report.test_beside import plan, results, study  # noqa: F401

ROWS = ("tuning", "method", "method.convert_at")
TUNINGS = study(
    {"tuning": "full", "task": ["glue_mini/cola", "glue_mini/rte"], "method": ["dense", "emoe"]},
    {"tuning": "lora", "task": "glue_mini/cola", "method": "dense"},
    {
        "tuning": "lora", "task": "glue_mini/cola", "method": "emoe",
        "method.convert_at": ["both", "train"],
    },
    rows=ROWS,
    seed=[0, 1, 2],
)  # fmt: skip
PROTOCOLS = study(
    {"method": ["emoe", "gmoe"], "protocol": ["paper", "reference"], "task": "glue_mini/cola"},
    rows=("method", "protocol"),
)
LENGTHS = study(
    {"method": ["dense", "emoe"], "trainer.max_steps": [5, 9], "task": "glue_mini/cola"},
    rows=("method", "trainer.max_steps"),
)


def found(made) -> dict[str, str]:
    return baselines(made, tabulate(made, {}))


def test_the_dense_row_of_the_same_tuning_is_the_baseline(plan):  # noqa: F811
    assert found(plan(TUNINGS)) == {
        "full emoe convert_at=both": "full dense",
        "lora dense": "full dense",
        "lora emoe convert_at=both": "lora dense",
        "lora emoe convert_at=train": "lora dense",
    }


def test_of_two_protocols_it_is_the_method_under_the_equations(plan):  # noqa: F811
    against = found(plan(PROTOCOLS))
    assert against["gmoe reference"] == "gmoe paper"
    assert against["emoe reference"] == "emoe paper"
    assert against["gmoe paper"] == "emoe paper"  # there is no dense row: the first


def test_of_two_lengths_it_is_dense_of_the_same(plan):  # noqa: F811
    assert found(plan(LENGTHS)) == {
        "dense max_steps=9": "dense max_steps=5",
        "emoe max_steps=5": "dense max_steps=5",
        "emoe max_steps=9": "dense max_steps=9",
    }


def score(run) -> float:
    """Score a run: LoRA costs 10 points, EMoE gains 3."""
    gain = 0.03 * (run.method.name == "emoe") - 0.1 * (run.tuning.name == "lora")
    return 0.8 + gain + 0.01 * run.seed


def test_verdicts_and_averages_are_against_the_baseline(plan):  # noqa: F811
    made = plan(TUNINGS)
    done = results(made, score)
    told = {(c.row, c.column): (c.baseline, round(c.ours.mean, 6)) for c in claims(made, done)}
    assert told["lora emoe convert_at=both", "cola"] == ("lora dense", 3.0)
    assert told["lora dense", "cola"] == ("full dense", -10.0)
    assert told["full emoe convert_at=both", "all"] == ("full dense", 3.0)
    assert ("lora dense", "all") not in told
    sheet = study_sheet(made, tabulate(made, done))
    assert "average against full dense" in sheet.header


def test_an_average_names_its_baseline_where_they_differ(plan):  # noqa: F811
    made = plan(LENGTHS)
    sheet = study_sheet(made, tabulate(made, results(made, score)))
    place = sheet.header.index("average against baseline")
    assert [row[place].text for row in sheet.rows] == [
        "", "+0.0 (dense, max steps 5)", "+3.0 (dense, max steps 5)", "+3.0 (dense, max steps 9)",
    ]  # fmt: skip


def test_rows_that_lack_runs_are_shown_and_not_judged(plan):  # noqa: F811
    made = plan(TUNINGS)
    done = results(made, lambda run: score(run) + 1e-3 * run.seed * (run.method.name == "emoe"))
    missing = next(job.run.id for job in made.jobs if job.run.method.name == "dense")
    rest = {run_id: result for run_id, result in done.items() if run_id != missing}
    told = {(claim.row, claim.column): claim for claim in claims(made, rest)}
    claim = told["full emoe convert_at=both", "cola"]
    assert claim.ours.n == 2
    assert claim.verdict == "runs are missing"
    assert told["full emoe convert_at=both", "rte"].verdict == "better"


@pytest.mark.parametrize("whole", [True, False])
def test_rows_are_ranked_over_the_columns_that_they_share(plan, whole):  # noqa: F811
    made = plan(TUNINGS)
    done = results(made, score, score)
    if not whole:
        lora = {job.run.id for job in made.jobs if job.run.tuning.name == "lora"}
        done = {run_id: result for run_id, result in done.items() if run_id not in lora}
    table = tabulate(made, done)
    rows, columns = table.comparable(table.columns)
    ranks = table.ranks(table.columns)
    if whole:  # five rows of one column are more than two of two
        assert (len(rows), columns) == (5, ("cola",))
        assert ranks["full emoe convert_at=both"] == 1.0
        assert "over cola" in ood_sheet(made, table).caption
    else:
        assert (rows, columns) == (("full dense", "full emoe convert_at=both"), table.columns)
        assert ranks == {"full dense": 2.0, "full emoe convert_at=both": 1.0}
        assert "over cola" not in ood_sheet(made, table).caption
