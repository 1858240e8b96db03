"""Do systems differ over several tasks? Friedman's test, then Nemenyi's for every pair.

Tasks are the blocks: on each the systems are ranked by their mean score. Two systems differ if
their mean ranks are further apart than the critical difference. With few tasks it is larger than
the ranks can differ, and then nothing can be said; that is told rather than left out.

Source: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006,
section 3.2. The numbers are those of scikit-posthocs 0.17 (tests/report/test_ranking.py).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from moe_runner.metrics import lower_is_better
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.report.study_table import StudyTable
from moe_runner.report.summary import ranks_of
from moe_runner.sweeps.study_plan import StudyPlan

LEVEL = 0.05
FEWEST_ROWS, FEWEST_TASKS = 3, 3
ENOUGH_TASKS = 10  # below, the chi-square of Friedman's test is rough


@dataclass(frozen=True)
class Ranking:
    """Systems over tasks.

    Args:
        ranks: mean rank by system, 1 is best.
        tasks: number of tasks.
        p: of Friedman's test: how likely such ranks are if all systems are alike.
        critical: least difference of two mean ranks that tells systems apart.
        differing: pairs that do, better one first.
    """

    ranks: dict[str, float]
    tasks: int
    p: float
    critical: float
    differing: tuple[tuple[str, str], ...]

    @property
    def can_tell(self) -> bool:
        """Whether ranks can differ by as much as the critical difference at all."""
        return self.critical < len(self.ranks) - 1

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """List the largest groups of systems, best first, that are not told apart."""
        names = sorted(self.ranks, key=self.ranks.__getitem__)
        found: list[tuple[str, ...]] = []
        for start, first in enumerate(names):
            group = [n for n in names[start:] if self.ranks[n] - self.ranks[first] < self.critical]
            if len(group) > 1 and not any(set(group) <= set(known) for known in found):
                found.append(tuple(group))
        return found


def compare(scores: Sequence[dict[str, float]], lower: Sequence[bool]) -> Ranking | None:
    """Rank systems on tasks, and test whether they differ.

    Args:
        scores: of each task, by system; the same systems everywhere.
        lower: of each task, whether less is better.

    Returns:
        None for fewer systems or tasks than `FEWEST_ROWS` and `FEWEST_TASKS`, or if a score is not
        finite.
    """
    systems = list(scores[0]) if scores else []
    k, n = len(systems), len(scores)
    if k < FEWEST_ROWS or n < FEWEST_TASKS:
        return None
    if not all(math.isfinite(value) for of in scores for value in of.values()):
        return None
    by_task = [ranks_of(of, lower=less) for of, less in zip(scores, lower, strict=True)]
    ranks = {name: statistics.fmean(of[name] for of in by_task) for name in systems}
    critical = studentized_range(k) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    p = friedman([[of[name] for name in systems] for of in by_task])
    ordered = sorted(systems, key=ranks.__getitem__)
    differing = tuple(
        (one, other)
        for one, other in combinations(ordered, 2)
        if ranks[other] - ranks[one] >= critical
    )
    return Ranking(ranks, n, p, critical, differing)


def friedman(ranks: Sequence[Sequence[float]]) -> float:
    """Compute the p-value of Friedman's test, corrected for ties.

    Args:
        ranks: of each task, those of the systems.

    Returns:
        1 if all are tied everywhere.
    """
    from scipy.special import chdtrc  # scipy.stats takes seconds to import

    n, k = len(ranks), len(ranks[0])
    means = [statistics.fmean(column) for column in zip(*ranks, strict=True)]
    ties = sum(count**3 - count for row in ranks for count in Counter(row).values())
    untied = 1 - ties / (n * k * (k * k - 1))
    if untied <= 0:
        return 1.0
    spread = sum((mean - (k + 1) / 2) ** 2 for mean in means)
    return float(chdtrc(k - 1, 12 * n / (k * (k + 1)) * spread / untied))


def studentized_range(k: int) -> float:
    """Find the studentized range that k normal values exceed with probability `LEVEL`.

    It is the root of P(range <= q) = k * integral of phi(z) (Phi(z) - Phi(z - q))^(k - 1), by
    bisection; infinite degrees of freedom.
    """
    import numpy as np
    from scipy.special import ndtr

    z = np.linspace(-9, 9, 6001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        q = (low + high) / 2
        inside = k * np.trapezoid(density * (ndtr(z) - ndtr(z - q)) ** (k - 1), z)
        low, high = (q, high) if inside < 1 - LEVEL else (low, q)
    return (low + high) / 2


def ranking_of(table: StudyTable) -> Ranking | None:
    """Rank the rows of a table that can be over the columns that they have; see `compare`."""
    rows, columns = table.comparable(table.columns)
    scores: list[dict[str, float]] = []
    lower = []
    for column in columns:
        cells = {row: each[0] for row in rows if (each := table.known(row, [column]))}
        scores.append({table.row_names[row]: cell.mean for row, cell in cells.items()})
        lower.append(lower_is_better(table.metrics(column)))
    return compare(scores, lower)


def rank_sheet(plan: StudyPlan, table: StudyTable) -> Sheet | None:
    """Lay out mean ranks over the columns, and what can be said of them; None if nothing can be.

    Args:
        plan: of the study.
        table: of its cells.
    """
    found = ranking_of(table)
    if found is None:
        return None
    rows = []
    for name in sorted(found.ranks, key=found.ranks.__getitem__):
        worse = [other for one, other in found.differing if one == name]
        rows.append((name, f"{found.ranks[name]:.2f}", ", ".join(worse) or "none"))
    return Sheet(
        title=f"{plan.study.name}: ranks over {found.tasks} columns",
        header=("row", "mean rank ↓", "better than, beyond chance"),
        rows=tuple(tuple(map(Entry, row)) for row in rows),
        caption="; ".join(filter(None, [table.ranked_on(), said(found)])),
        name="ranks",
    )


def said(found: Ranking) -> str:
    """Say what Friedman's and Nemenyi's tests found, and whether they could find anything."""
    parts = [
        f"in domain, rows that lack no run; Friedman's test p = {found.p:.3f}",
        f"Nemenyi's critical difference of mean ranks {found.critical:.2f} (level {LEVEL})",
    ]
    if not found.can_tell:
        parts.append(
            f"too few columns to tell anything: {len(found.ranks)} rows differ by at most "
            f"{len(found.ranks) - 1} ranks"
        )
    elif found.tasks < ENOUGH_TASKS:
        parts.append(
            f"n = {found.tasks} columns is few: only large differences show, and p is rough "
            f"below {ENOUGH_TASKS}"
        )
    return "; ".join(parts)
