"""Friedman's and Nemenyi's tests against scipy and numbers of scikit-posthocs 0.17."""

from __future__ import annotations

import math

import pytest

from moe_runner.report.plot_runs import rank_diagram
from moe_runner.report.ranking import compare, friedman, ranking_of, said, studentized_range
from moe_runner.report.study_sheet import sheets
from moe_runner.report.study_table import tabulate
from tests.report.test_beside import plan, results, study  # noqa: F401

SCORES = [
    [0.13, 0.17, 2.24, 2.5], [-0.54, 0.66, 2.9, 3.35], [-0.7, -0.97, 0.98, 2.44],
    [-2.33, 0.08, 0.35, 1.67], [-0.54, -0.02, 2.01, 3.44], [-0.13, 1.67, 0.93, 2.75],
    [0.9, 0.39, 0.86, 1.48], [-0.46, 0.52, 0.59, 2.19], [-0.16, 0.84, 1.81, 2.76],
    [-0.65, 0.17, 2.38, 3.89], [-1.26, 1.81, 2.95, 3.18], [0.26, -0.01, 3.06, 4.36],
]  # fmt: skip
# posthoc_nemenyi_friedman: a-b 0.778, a-c 0.023, a-d 3e-6, b-c 0.229, b-d 0.00023, c-d 0.119
DIFFERING = {("d", "a"), ("d", "b"), ("c", "a")}


def by_name(scores=SCORES) -> list[dict[str, float]]:
    return [dict(zip("abcd", row, strict=True)) for row in scores]


def test_the_pairs_and_p_are_those_of_scikit_posthocs_and_scipy():
    found = compare(by_name(), [False] * 12)
    assert set(found.differing) == DIFFERING
    assert found.p == pytest.approx(1.3800570312932553e-06, rel=1e-9)
    assert found.tasks == 12
    assert found.cliques == [("d", "c"), ("c", "b"), ("b", "a")]
    turned = compare([{k: -v for k, v in of.items()} for of in by_name()], [True] * 12)
    assert turned == found


@pytest.mark.parametrize("k", [3, 5, 10, 20])
def test_the_studentized_range_is_that_of_scipy(k):
    from scipy.stats import studentized_range as exact

    assert studentized_range(k) == pytest.approx(exact.ppf(0.95, k, math.inf), abs=1e-6)


def test_ties_are_corrected_for():
    from scipy.stats import friedmanchisquare

    scores = [[1, 1, 2, 3], [2, 2, 2, 1], [0, 1, 1, 1], [3, 2, 1, 0], [1, 2, 2, 4]]
    found = compare(by_name(scores), [False] * 5)
    assert found.p == pytest.approx(friedmanchisquare(*zip(*scores, strict=True)).pvalue)
    assert friedman([[2.0, 2.0, 2.0]] * 4) == 1.0


@pytest.mark.parametrize(
    "scores",
    [[], by_name()[:2], [{"a": 1.0, "b": 2.0}] * 5, [{"a": math.inf, "b": 1.0, "c": 2.0}] * 5],
)
def test_too_little_is_not_ranked(scores):
    assert compare(scores, [False] * len(scores)) is None


def test_what_few_tasks_can_tell_is_said():
    few = compare(by_name()[:3], [False] * 3)
    assert few.can_tell  # 4 rows: 2.71 of at most 3
    assert "n = 3 columns is few" in said(few)
    none = compare([{"a": 1.0, "b": 2.0, "c": 3.0}] * 2 + [{"a": 1.0, "b": 2.0, "c": 3.0}],
                   [False] * 3)  # fmt: skip
    assert none.critical == pytest.approx(3.3144931 / math.sqrt(2) * math.sqrt(12 / 18))
    assert none.can_tell
    many = {name: float(number) for number, name in enumerate("abcdefghij")}
    assert compare([many] * 3, [False] * 3).can_tell is True
    assert "few" not in said(compare(by_name(), [False] * 12))


TASKS = ["cola", "sst2", "rte"]
GRID = study(
    {"method": ["dense", "emoe", "gmoe"], "task": [f"glue_mini/{t}" for t in TASKS], "seed": [0, 1]}
)


def test_a_study_of_three_rows_and_columns_has_a_table_of_ranks_and_a_diagram(plan):  # noqa: F811
    made = plan(GRID)
    gains = {"dense": 0.0, "emoe": 0.1, "gmoe": 0.2}
    found = results(made, lambda run: 0.3 + gains[run.method.name])
    (sheet,) = (sheet for sheet in sheets(made, found) if sheet.name == "ranks")
    assert [(row[0].text, row[1].text, row[2].text) for row in sheet.rows] == [
        ("gmoe", "1.00", "dense"), ("emoe", "2.00", "none"), ("dense", "3.00", "none"),
    ]  # fmt: skip
    ranking = ranking_of(tabulate(made, found))
    texts = [text.get_text() for text in rank_diagram("title", ranking).axes[0].texts]
    assert any("gmoe  1.00" in text for text in texts)
    assert "critical difference 1.91" in texts


def test_a_row_that_lacks_a_run_is_not_ranked(plan):  # noqa: F811
    made = plan(GRID)
    found = results(made, lambda run: 0.5)
    gone = next(job.run.id for job in made.jobs if job.run.method.name == "gmoe")
    part = {run_id: result for run_id, result in found.items() if run_id != gone}
    assert ranking_of(tabulate(made, part)) is None  # two rows are left
