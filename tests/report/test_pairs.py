"""What may stand beside a published figure."""

from __future__ import annotations

import dataclasses

import pytest

from moe_runner.metrics import NAMES
from moe_runner.options.errors import ConfigError
from moe_runner.report.cells import check_cells
from moe_runner.report.pairs import check_figures, check_pairings, fits
from moe_runner.report.published import published_tables
from moe_runner.report.study_sheet import sheets
from moe_runner.report.study_table import tabulate
from moe_runner.report.verdicts import claims
from moe_runner.sweeps.study import Pairing, read_study
from moe_runner.sweeps.study_plan import plan_study
from tests.plans import planned
from tests.report.test_beside import FOLDERS, GRIDS, plan, results, study  # noqa: F401
from tests.results import make_result, scores

MMLU = published_tables()["emoe-mmlu"]
ROWS = {"dense": "standard tuning", "emoe": "EMoE"}


def pairing(key: str, theirs: str = "Llama2-7B LoRA", table: str = "emoe-mmlu") -> Pairing:
    return Pairing(table=table, rows=ROWS, columns={key: theirs})


def instructions(*pairings: Pairing):
    of = study({"method": ["dense", "emoe"], "model": "llama_tiny", "task": "instruct_mini"})
    return dataclasses.replace(of, columns=("model",), beside=pairings)


@pytest.mark.parametrize(
    ("measure", "ours", "may"),
    [
        ("accuracy", {"accuracy"}, True),
        ("accuracy", {"perplexity"}, False),
        ("accuracy", {"accuracy", "f1"}, False),
        ("accuracy + f1", {"f1", "accuracy"}, True),
        ("perplexity", {"perplexity"}, True),
        ("perplexity", {"accuracy"}, False),
        ("score", {"matthews", "accuracy", "f1"}, True),
        ("score", {"matthews", "perplexity"}, False),
        ("score", {"rank"}, False),
        ("rank", {"rank"}, True),
        ("rank", {"accuracy"}, False),
        ("none", {"accuracy"}, False),
        ("none", {"rank"}, False),
    ],
)
def test_a_figure_stands_beside_one_of_its_metric_and_direction_only(measure, ours, may):
    assert fits(measure, frozenset(ours)) == may


def test_every_published_column_says_what_it_is():
    for table in published_tables().values():
        assert len(table.measures) == len(table.columns), table.id
        for measure in table.measures:
            words = set(measure.split(" + "))
            assert words <= NAMES or measure in ("score", "rank", "none"), table.id
            assert not words & {"perplexity"}, "no published table has one"


def test_a_perplexity_beside_mmlu_is_an_error_before_anything_is_run(plan):  # noqa: F811
    line = (
        "study=small: study.beside: ours of `llama_tiny` is perplexity and `Llama2-7B LoRA` of "
        "emoe-mmlu is accuracy: these are not compared"
    )
    with pytest.raises(ConfigError, match=line):
        check_pairings([plan(instructions(pairing("llama_tiny")))])
    with pytest.raises(ConfigError, match="ours of `llama_tiny rank` is rank"):
        check_pairings([plan(instructions(pairing("llama_tiny rank")))])
    check_pairings([plan(instructions(pairing("llama_tiny > mmlu_mini")))])


def test_a_perplexity_beside_mmlu_is_in_no_sheet_and_no_verdict(plan):  # noqa: F811
    def found(made):
        return {
            job.run.id: make_result(
                job.run.axes(),
                40.0 if job.run.method.name == "dense" else 30.0,
                metrics=("perplexity",),
                ood_metrics={
                    "mmlu_mini": scores(
                        0.25 if job.run.method.name == "dense" else 0.5, accuracy=0.5
                    ),
                    "text": scores(20.0, perplexity=20.0),
                },
            )
            for job in made.jobs
        }

    for key in ("llama_tiny", "llama_tiny > text", "all", "llama_tiny rank"):
        made = plan(instructions(pairing(key)))
        for lay_out in (sheets, claims):
            with pytest.raises(ConfigError, match="of emoe-mmlu is accuracy: these are not comp"):
                lay_out(made, found(made))
    made = plan(instructions(pairing("llama_tiny > mmlu_mini")))
    beside = next(sheet for sheet in sheets(made, found(made)) if "beside" in sheet.title)
    assert [entry.text for entry in beside.rows[1]] == [
        "emoe", "Llama2-7B LoRA", "llama_tiny > mmlu_mini", "50.00 (1)", "+25.00", "47.58", "+0.62",
    ]  # fmt: skip
    check_figures(tabulate(made, {}), MMLU, made.study.beside[0])  # nothing there yet


def test_a_name_that_the_published_table_lacks_has_its_line(plan):  # noqa: F811
    wrong = Pairing(table="emoe-mmlu", rows={"dense": "Dense"}, columns={"llama_tiny": "Llama"})
    with pytest.raises(ConfigError) as caught:
        check_pairings([plan(instructions(wrong))])
    assert caught.value.problems == (
        "study=small: study.beside.rows names Dense, which emoe-mmlu does not have; use standard "
        "tuning or EMoE",
        "study=small: study.beside.columns names Llama, which emoe-mmlu does not have; use "
        "Llama2-7B LoRA, Llama2-7B full or Llama-30B LoRA",
    )
    with pytest.raises(ConfigError, match="table=emoe-mml is not in published.yaml"):
        check_pairings([plan(instructions(pairing("llama_tiny", table="emoe-mml")))])


@pytest.mark.parametrize(("name", "profile"), GRIDS)
def test_the_studies_pair_alike_with_alike(name, profile):
    check_pairings([planned(name, profile)])


@pytest.mark.parametrize(("name", "profile"), GRIDS)
def test_the_cells_of_the_studies_hold_repetitions_only(name, profile):
    check_cells([planned(name, profile)])


def test_the_llama_study_evaluates_mmlu_with_the_published_dropout(tmp_path):
    of = read_study(FOLDERS, "emoe_llama")
    runs = [
        job.run for job in plan_study(FOLDERS, of, "paper", {"paths.cache": str(tmp_path)}).jobs
    ]
    assert len(runs) == 8
    assert {run.task.ood for run in runs} == {("mmlu",)}
    assert {run.tuning.dropout for run in runs if run.tuning.name == "lora"} == {0.05}
    assert {key.partition(" > ")[2] for each in of.beside for key in each.columns} == {
        "mmlu",
        "mmlu_mini",
    }
