"""Studies as tidy rows: a number each, unrounded, with the runs behind it, for other programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from moe_runner.metrics import lower_is_better, named, scaled, spread
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.report.study_table import Results, StudyCell, tabulate
from moe_runner.report.summary import Cell
from moe_runner.sweeps.study_plan import StudyPlan

HEADER = (
    "study", "profile", "row", "column", "row_label", "column_label", "set", "metric", "better",
    "mean", "std", "n", "standard_error", "runs_done", "runs_planned", "majority", "constant",
    "run_ids",
)  # fmt: skip


def tidy_sheet(plan: StudyPlan, results: Results) -> Sheet:
    """Lay out every number of a study, a row each.

    Args:
        plan: its runs.
        results: by id, of those that are done.

    Returns:
        Percent, or as the metric is; std of a population, standard_error of the mean (from the
        std of a sample). A cell without a result has a row without numbers. `set` is "" for the set
        that selects; the ids are those of the runs at the chosen learning rate.
    """
    table = tabulate(plan, results)
    rows = []
    for (row, column), cell in table.cells.items():
        head = (
            plan.study.name, plan.profile, table.row_names[row], table.column_names[column], row,
            column,
        )  # fmt: skip
        for numbers in of_cell(cell):
            rows.append(tuple(map(Entry, (*head, *numbers))))
    return Sheet(
        title="", header=HEADER, rows=tuple(rows), caption="", words=len(HEADER), name="tidy"
    )


def of_cell(each: StudyCell) -> Iterator[tuple[str, ...]]:
    """Give the numbers of a cell: of the set that selects, then of each out-of-domain set."""
    runs = (str(each.done), str(each.planned))
    cell = each.cell
    if cell is None:
        better = "lower" if lower_is_better(each.metrics) else "higher"
        yield ("", named(each.metrics), better, "", "", "0", "", *runs, "", "", "")
        return
    own = measured(cell.by_seed, cell.metrics)
    if not cell.by_seed:  # DomainBed's error is over trials, which are its seeds
        own = (text(scaled(cell.mean, cell.metrics)), "", str(cell.n), "")
    yield whole("", cell.metrics, own, runs, cell.majority, cell)
    for name, value in cell.ood.items():
        names = cell.set_metrics.get(name, ())
        by_seed = cell.ood_by_seed.get(name, {})
        if by_seed:
            numbers = measured(by_seed, names)
        else:
            numbers = ("" if value is None else text(scaled(value, names)), "", "", "")
        yield whole(name, names, numbers, runs, cell.ood_majority.get(name), cell)


def whole(
    of_set: str,
    metrics: Sequence[str],
    numbers: tuple[str, str, str, str],
    runs: tuple[str, str],
    majority: float | None,
    cell: Cell,
) -> tuple[str, ...]:
    """Put a row together after its head; see `HEADER`."""
    better = "lower" if lower_is_better(metrics) else "higher"
    plain = "" if majority is None else text(scaled(majority, metrics))
    constant = str(of_set in cell.constant).lower() if cell.recorded else ""
    metric = named(tuple(dict.fromkeys(metrics)))
    return (of_set, metric, better, *numbers, *runs, plain, constant, " ".join(cell.ids))


def measured(by_seed: Mapping[int, float], metrics: Sequence[str]) -> tuple[str, str, str, str]:
    """Write mean, std, n and standard error of scores; no error of one."""
    values = [scaled(value, metrics) for value in by_seed.values()]
    n = len(values)
    error = spread(values) / math.sqrt(n - 1) if n > 1 else math.nan
    mean = statistics.fmean(values)
    return text(mean), text(spread(values)), str(n), text(error)


def text(value: float) -> str:
    """Write a number in full; nothing for NaN."""
    return "" if math.isnan(value) else repr(round(value, 10))
