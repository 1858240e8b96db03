"""Verdicts: what is compared with what, in which direction, and when nothing can be said."""

from __future__ import annotations

import dataclasses

import pytest

from moe_runner.report.effects import Effect
from moe_runner.report.study_table import tabulate
from moe_runner.report.verdicts import (
    EQUAL,
    MISSING,
    OPPOSITE,
    REPRODUCED,
    SAME,
    TOY,
    UNSURE,
    Claim,
    claims,
    own_verdict,
    published_claims,
    summed_up,
    verdict,
    verdict_sheet,
)
from tests.report.test_beside import PAIRING, PUBLISHED, plan, results, study  # noqa: F401

SEEDS = study(
    {"method": ["dense", "emoe"], "task": ["glue_mini/cola", "glue_mini/rte"], "seed": [0, 1, 2]}
)
UP, DOWN = Effect(1.0, 0.1, 0.6, 1.4, 3), Effect(-1.0, 0.1, -1.4, -0.6, 3)
FLAT_UP, FLAT_DOWN = Effect(0.1, 0.5, -2.0, 2.2, 3), Effect(-0.1, 0.5, -2.2, 2.0, 3)


@pytest.mark.parametrize(
    ("ours", "published", "word"),
    [
        (UP, 0.5, REPRODUCED),
        (FLAT_UP, 0.5, SAME),
        (DOWN, 0.5, OPPOSITE),
        (FLAT_DOWN, 0.5, UNSURE),
        (DOWN, -0.5, REPRODUCED),  # of a perplexity
        (None, 0.5, MISSING),
        (UP, None, "not comparable: the published difference is not known"),
        (Effect(1.0, 0.1, None, None, 2), 0.5, "not comparable: n = 2 is too small to tell"),
        (Effect(-0.4, None, None, None, 0), -0.1, "same sign, no error bar"),  # of mean ranks
        (Effect(0.4, None, None, None, 0), -0.1, "opposite, no error bar"),
        (Effect(0.0, None, None, None, 0), -0.1, "no difference, no error bar"),
        (Effect(0.4, None, None, None, 0), 0.0, "none published, no error bar"),
        (UP, 0.0, "none published, beyond noise"),
        (FLAT_DOWN, 0.0, "none published, within noise"),
        (Effect(0.0, 0.1, -0.4, 0.4, 3), 0.5, "within noise"),
        (Effect(0.0, 0.0, None, None, 3), 0.5, "within noise"),
        (Effect(0.0, 0.0, None, None, 3), 0.0, "none published, within noise"),
        (Effect(1.0, 0.0, None, None, 3), 0.5, f"not comparable: {EQUAL}"),
        (Effect(1.0, 0.0, None, None, 3), 0.0, f"not comparable: {EQUAL}"),
    ],
)
def test_a_verdict(ours, published, word):
    assert verdict(ours, published) == word


@pytest.mark.parametrize(
    ("ours", "lower", "word"),
    [
        (UP, False, "better"), (UP, True, "worse"), (DOWN, False, "worse"), (DOWN, True, "better"),
        (FLAT_UP, False, "within noise"), (None, False, "runs are missing"),
        (Effect(1.0, 0.1, None, None, 2), False, "n = 2 is too small to tell"),
        (Effect(1.0, 0.0, None, None, 3), False, EQUAL),
        (Effect(0.0, 0.0, None, None, 3), False, "within noise"),
    ],
)  # fmt: skip
def test_a_verdict_without_a_published_effect(ours, lower, word):
    assert own_verdict(ours, lower) == word


def gain(run) -> float:
    """Score a run: emoe gains 2 points on cola and 4 on rte, 0.1 less and more with the seed."""
    of_task = {"cola": 0.02, "rte": 0.04}[run.task_name] + 0.001 * (run.seed - 1)
    return 0.5 + 0.1 * run.seed + of_task * (run.method.name == "emoe")


def test_seeds_are_paired_and_a_published_effect_gets_a_verdict(plan):  # noqa: F811
    made = dataclasses.replace(plan(SEEDS), profile="paper")
    table = tabulate(made, results(made, gain, lambda run: 1 - gain(run)))
    found = {claim.column: claim for claim in published_claims(made, table, PUBLISHED, PAIRING)}
    assert list(found) == ["all", "cola", "cola > ood", "all rank"]
    everything, cola = found["all"], found["cola"]
    assert (everything.row, everything.baseline, everything.published) == ("emoe", "dense", 0.5)
    assert everything.ours.mean == pytest.approx(3.0)
    assert everything.ours.error == pytest.approx(0.1 / 3**0.5)  # what seeds add to both is gone
    assert everything.verdict == SAME  # two tasks that differ: another two could say anything
    assert cola.ours.mean == pytest.approx(2.0)
    assert cola.verdict == "not comparable: the published difference is not known"
    assert found["cola > ood"].ours.mean == pytest.approx(-2.0)
    assert found["cola > ood"].verdict == OPPOSITE
    assert found["all rank"].ours == Effect(1.0, None, None, None, 0)  # 2 against 1: worse
    assert found["all rank"].verdict == "opposite, no error bar"


def test_toy_models_say_nothing_of_a_published_effect(plan):  # noqa: F811
    made = plan(SEEDS)
    table = tabulate(made, results(made, gain))
    found = list(published_claims(made, table, PUBLISHED, PAIRING))
    assert {claim.verdict for claim in found} == {TOY}
    assert found[0].ours.mean == pytest.approx(3.0)  # it is shown


def test_a_study_of_ones_own_says_what_differs(plan):  # noqa: F811
    made = plan(SEEDS)
    found = claims(made, results(made, gain))
    assert [(claim.column, claim.verdict) for claim in found] == [
        ("cola", "better"), ("rte", "better"), ("all", "within noise"),
    ]  # fmt: skip
    sheet = verdict_sheet(made, found)
    assert sheet.title == "small: what differs?"
    assert [entry.text for entry in sheet.rows[2]] == [
        "emoe", "dense", "average", "+3.00 ± 0.06 (3)", "within noise",
    ]  # fmt: skip
    assert {claim.verdict for claim in claims(made, {})} == {"runs are missing"}
    assert summed_up(found) == "better 2, within noise 1"


def test_a_study_without_runs_says_nothing(plan):  # noqa: F811
    made = dataclasses.replace(plan(SEEDS), jobs=())
    assert claims(made, {}) == []
    assert verdict_sheet(made, []) is None


def test_reasons_are_counted_together():
    made = [Claim("a", "b", "c", None, None, word) for word in (MISSING, TOY, REPRODUCED)]
    assert summed_up(made) == "not comparable 2, reproduced 1"
