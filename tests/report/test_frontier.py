"""Speed beside quality: what is shown of runs that measured both, and that of others nothing is."""

from __future__ import annotations

import pytest

from moe_runner.report.frontier import frontier_sheet, points_of
from moe_runner.report.plot_frontier import frontier
from moe_runner.report.study_sheet import sheets
from moe_runner.report.study_table import tabulate
from moe_runner.runs.result import Flops, Inference
from tests.report.test_beside import plan, study  # noqa: F401
from tests.results import make_result, scores

KEYS = ("method", "method.clustering", "method.top_k")
TASK = {"model": "llama_tiny", "task": "wikitext_mini", "seed": [0, 1]}
GRID = study(
    {"method": "dense", **TASK},
    {
        "method": "emoe", "method.num_experts": 16, "method.top_k": [4, 8],
        "method.clustering": ["constrained_kmeans", "random"], **TASK,
    },
    rows=KEYS,
)  # fmt: skip


@pytest.fixture
def made(plan):  # noqa: F811
    return plan(GRID)


def measured(made, *, timed=True, first=True) -> dict:
    """A result of every run: the fewer experts, the faster and the worse."""
    found = {}
    for job in made.jobs:
        run = job.run
        share = 1.0 if run.method.name == "dense" else run.method.top_k / 16
        score = 4 / share + run.seed
        found[run.id] = make_result(
            run.axes(), score, id=run.id, settings=run.settings(), metrics=("perplexity",),
            id_metrics={"validation": scores(score, perplexity=score)},
            flops_per_token=Flops(1000, round(1000 * share)),
            before={"validation": scores(10 * score, perplexity=10 * score)} if first else {},
            inference=Inference(share, 1.0 + run.seed * share, 100, "torch") if timed else None,
        )  # fmt: skip
    return found


def test_a_row_has_flops_speed_and_both_scores(made):
    results = measured(made)
    sheet = frontier_sheet(made, tabulate(made, results), results)
    assert sheet.header == (
        "", "FLOPs, % of dense ↓", "speed, x dense ↑", "before tuning ↓", "after ↓", "n",
    )  # fmt: skip
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in sheet.rows}
    # seeds 0 and 1: speeds 1 and 2, perplexities 4 and 5
    assert rows["dense"] == ["100", "1.50 ± 0.50", "45.00 ± 5.00", "4.50 ± 0.50", "2"]
    # 1 / 0.25 and (1 + 0.25) / 0.25; 16 and 17
    assert rows["emoe, clustered, top-k 4 of 16"] == [
        "25", "4.50 ± 0.50", "165.00 ± 5.00", "16.50 ± 0.50", "2",
    ]  # fmt: skip
    assert len(rows) == 5
    assert "(back end: torch)" in sheet.caption
    assert sheet in sheets(made, results)


def test_one_run_has_no_spread(made):
    results = measured(made)
    only = {job.run.id: results[job.run.id] for job in made.jobs if job.run.seed == 0}
    sheet = frontier_sheet(made, tabulate(made, only), only)
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in sheet.rows}
    assert rows["dense"] == ["100", "1.00", "40.00", "4.00", "1"]
    assert rows["emoe, clustered, top-k 4 of 16"] == ["25", "4.00", "160.00", "16.00", "1"]


def test_what_was_not_measured_is_not_shown(made):
    results = measured(made, timed=False)
    table = tabulate(made, results)
    assert points_of(made, table, results) == []
    assert frontier_sheet(made, table, results) is None
    assert frontier(made, table, results) is None
    results = measured(made, first=False)
    sheet = frontier_sheet(made, tabulate(made, results), results)
    assert {row[3].text for row in sheet.rows} == {""}


def test_lines_follow_the_share_of_experts_and_a_star_is_the_dense_model(made):
    results = measured(made)
    figure = frontier(made, tabulate(made, results), results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == (
        ["before tuning"] * 2 + ["after tuning"] * 2
    )
    flops, speed = figure.axes[2:]
    lines = [line for line in flops.lines if line.get_marker() not in ("*", "None")]
    assert [list(line.get_xdata()) for line in lines] == [[25, 50]] * 2  # clustered, random
    assert [list(line.get_ydata()) for line in lines] == [[16.5, 8.5]] * 2
    (star,) = [line for line in speed.lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1.5, 4.5)
    assert flops.get_yscale() == "log"  # 16.5 is more than three times 4.5
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense", "emoe, clustered", "emoe, random groups",
    ]  # fmt: skip


def test_without_scores_before_tuning_there_are_two_panels(made):
    results = measured(made, first=False)
    figure = frontier(made, tabulate(made, results), results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["after tuning"] * 2
