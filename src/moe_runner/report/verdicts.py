"""Does an effect reproduce? Our difference to the baseline, the published one, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moe_runner.metrics import alike, lower_is_better, scaled
from moe_runner.report.baselines import baselines
from moe_runner.report.beside import columns_of, is_in, matched
from moe_runner.report.effects import FEWEST, Effect, effect
from moe_runner.report.pairs import check_figures
from moe_runner.report.published import PublishedTable, published_tables
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet
from moe_runner.report.study_table import Results, StudyTable, names_in, tabulate
from moe_runner.report.summary import Cell
from moe_runner.sweeps.study import Pairing
from moe_runner.sweeps.study_plan import StudyPlan

REPRODUCED, SAME = "reproduced", "same sign, within noise"
OPPOSITE, UNSURE = "opposite", "opposite sign, within noise"
EQUAL = "equal in all seeds: no noise to judge by"
NONE_PUBLISHED = "none published, within noise"
BETTER, WORSE, NOISE = "better", "worse", "within noise"
INCOMPARABLE = "not comparable: "
TOY = INCOMPARABLE + "toy models and data"
MISSING = INCOMPARABLE + "runs are missing"
CAPTION = (
    "difference, method - what it is against; ± standard error of the paired difference "
    "over (n) seeds; noise: 95% of a paired bootstrap over seeds and tasks, with Student's t; of "
    "mean ranks only the sign is known"
)


@dataclass(frozen=True)
class Claim:
    """One effect, ours and the published one.

    Args:
        row: our label of the method.
        baseline: our label of what it is compared with.
        column: what it is measured on.
        ours: in percent, or as the metric is; None without the runs. A difference of ranks has no
            error.
        published: the same difference in the paper; None where it is not known.
        verdict: in words.
    """

    row: str
    baseline: str
    column: str
    ours: Effect | None
    published: float | None
    verdict: str


def claims(plan: StudyPlan, results: Results) -> list[Claim]:
    """List what a study can say: each published effect, or of each row against its baseline.

    Args:
        plan: its runs.
        results: by id, of those that are done.
    """
    if not plan.jobs:
        return []
    found: list[Claim] = []
    for pairing in plan.study.beside:
        table = tabulate(plan, results, pairing.rule)
        published = published_tables()[pairing.table]
        check_figures(table, published, pairing)
        found += published_claims(plan, table, published, pairing)
    if not plan.study.beside:
        found += own_claims(plan, tabulate(plan, results))
    return found


def own_claims(plan: StudyPlan, table: StudyTable) -> Iterator[Claim]:
    """Hold each row of a study without published figures against its baseline."""
    against = baselines(plan, table)
    for key in [*table.columns, *(["all"] if len(table.columns) > 1 else [])]:
        names = columns_of(table, key)
        for row, baseline in against.items():
            if not all((one, name) in table.cells for one in (row, baseline) for name in names):
                continue  # the study has no such runs
            cells = table.known(row, names) or []
            if not alike([cell.metrics for cell in cells]):
                continue  # an average of percentages and perplexities means nothing
            ours, lower = measured(table, row, baseline, key)
            whole = all(table.is_complete(one, names) for one in (row, baseline))
            word = own_verdict(ours if whole else None, lower)
            yield Claim(row, baseline, key, ours, None, word)


def published_claims(
    plan: StudyPlan, table: StudyTable, published: PublishedTable, pairing: Pairing
) -> Iterator[Claim]:
    """Give the effects of a published table that this profile has rows and columns for."""
    for key, theirs in matched(pairing.columns, lambda key: is_in(table, key)):
        rows = matched(pairing.rows, table.rows.__contains__)
        (baseline, first), *others = rows
        if key is None or baseline is None:
            continue
        place = published.columns.index(theirs)
        for own, row in others:
            if own is None:
                continue
            cells = published.rows[row][place], published.rows[first][place]
            gain = (
                float(cells[0]) - float(cells[1])
                if isinstance(cells[0], int | float) and isinstance(cells[1], int | float)
                else None
            )
            ours, _ = measured(table, own, baseline, key)
            names = columns_of(table, key)
            whole = all(table.is_complete(one, names) for one in (own, baseline))
            word = TOY if plan.profile == "mini" else verdict(ours if whole else None, gain)
            yield Claim(own, baseline, key, ours, gain, word)


def measured(table: StudyTable, row: str, baseline: str, key: str) -> tuple[Effect | None, bool]:
    """Measure an effect of ours, in percent or as the metric is, and tell whether less is better.

    Args:
        table: ours.
        row: of the method.
        baseline: the row that it is compared with.
        key: of the columns: see `Pairing`.
    """
    columns = columns_of(table, key)
    if key.endswith(" rank"):
        ranks = table.ranks(columns)
        known = row in ranks and baseline in ranks
        gain = Effect(ranks[row] - ranks[baseline], None, None, None, 0) if known else None
        return gain, True
    ours, theirs = table.known(row, columns), table.known(baseline, columns)
    if ours is None or theirs is None:
        return None, False
    ood = key.partition(" > ")[2]
    by_cell = [metrics_of(cell, ood) for cell in ours]
    if [metrics_of(cell, ood) for cell in theirs] != by_cell or not alike(by_cell):
        return None, False
    names = [name for of_cell in by_cell for name in of_cell]
    factor = scaled(1.0, names)

    def scores(cells: Sequence[Cell]) -> list[dict[int, float]]:
        return [{seed: factor * x for seed, x in by_seed(cell, ood).items()} for cell in cells]

    return effect(scores(ours), scores(theirs)), lower_is_better(names)


def by_seed(cell: Cell, ood: str) -> Mapping[int, float]:
    """Give the scores of a cell by seed, of an out-of-domain set if one is named."""
    return cell.ood_by_seed.get(ood, {}) if ood else cell.by_seed


def metrics_of(cell: Cell, ood: str) -> Sequence[str]:
    """Name the metrics of a cell, of an out-of-domain set if one is named."""
    return cell.set_metrics.get(ood, ()) if ood else cell.metrics


def verdict(ours: Effect | None, published: float | None) -> str:
    """Say whether a published effect reproduces.

    Args:
        ours: None without the runs.
        published: the difference in the same metric; None if it is not known.
    """
    if published is None:
        return INCOMPARABLE + "the published difference is not known"
    if ours is None:
        return MISSING
    if 0 < ours.n < FEWEST:
        return INCOMPARABLE + f"n = {ours.n} is too small to tell"
    same = ours.mean * published > 0
    if ours.n == 0:
        none = "no difference" if published else "none published"
        sign = ("same sign" if same else OPPOSITE) if ours.mean * published else none
        return f"{sign}, no error bar"
    if not ours.mean:
        return NOISE if published else NONE_PUBLISHED
    if ours.low is None:
        return INCOMPARABLE + EQUAL
    if not published:
        return "none published, beyond noise" if ours.beyond_noise else NONE_PUBLISHED
    if same:
        return REPRODUCED if ours.beyond_noise else SAME
    return OPPOSITE if ours.beyond_noise else UNSURE


def own_verdict(ours: Effect | None, lower: bool) -> str:
    """Say what an effect without a published one amounts to."""
    if ours is None:
        return "runs are missing"
    if ours.n < FEWEST:
        return f"n = {ours.n} is too small to tell"
    if ours.mean and ours.low is None:
        return EQUAL
    if not ours.beyond_noise:
        return NOISE
    return BETTER if (ours.mean > 0) != lower else WORSE


def verdict_sheet(plan: StudyPlan, found: Sequence[Claim]) -> Sheet | None:
    """Lay out what a study says; None if that is nothing.

    What lacks runs, and has no published figure either, is counted only.

    Args:
        plan: the study.
        found: its claims.
    """
    if not found:
        return None
    paper = bool(plan.study.beside)
    rows = []
    of_rows, of_columns = names_in(plan)
    shown = [claim for claim in found if claim.ours is not None or claim.published is not None]
    for claim in shown:
        words = [of_rows[claim.row], of_rows[claim.baseline]]
        words.append("average" if claim.column == "all" else of_columns[claim.column])
        words.append(written(claim.ours))
        if paper:
            known = claim.published is not None
            words.append(f"{claim.published:+.2f}" if known else NOT_AVAILABLE)
        rows.append((*words, claim.verdict))
    left_out = len(found) - len(shown)
    parts = [f"profile={plan.profile}; percent (perplexity, rank: as it is); {CAPTION}"]
    parts += [f"{left_out} more lack runs"] if left_out else []
    word = "does it reproduce?" if paper else "what differs?"
    return Sheet(
        title=f"{plan.study.name}: {word}",
        header=(
            "method",
            "against",
            "measured on",
            "ours",
            *(["published"] if paper else []),
            "verdict",
        ),  # fmt: skip
        rows=tuple(tuple(map(Entry, row)) for row in rows),
        caption="; ".join(parts),
        words=3,
        name="verdicts",
    )


def written(ours: Effect | None) -> str:
    """Write an effect: difference ± standard error (n)."""
    if ours is None:
        return "missing"
    error = "" if ours.error is None else f" ± {ours.error:.2f}"
    return f"{ours.mean:+.2f}{error}" + (f" ({ours.n})" if ours.n else "")


def summed_up(found: Sequence[Claim]) -> str:
    """Count verdicts in a sentence: "reproduced 2, not comparable 5"."""
    counts: dict[str, int] = {}
    for claim in found:
        word = claim.verdict.partition(":")[0]
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{word} {count}" for word, count in counts.items())
