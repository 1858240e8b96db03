"""What speed costs: scores before and after tuning against FLOPs and measured speed.

For studies whose runs measured it (`trainer.time_inference`, `trainer.evaluate_first`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_runner.metrics import shown, spread
from moe_runner.report.labels import Names, direction, label, names_of
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.report.study_table import Results, StudyTable, grouped
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan

TOP_K = "method.top_k"  # what a line of the plot follows
NOTE = (
    "FLOPs and speed of a forward pass, as a share or multiple of the dense model's; speed is "
    "measured in turns with it within each run (back end: {}); dense against itself tells how "
    "exactly; mean ± standard deviation over up to {} runs of a row. A gate on the activations "
    "(inter, inter_abs) computes every neuron to choose by them: what selection could reach, no "
    "way to be fast, and its FLOPs here are as if the choice were free."
)


@dataclass(frozen=True)
class Point:
    """The runs of a row and a column that measured their speed.

    Args:
        row: its label.
        column: its label.
        series: the row without the number of selected experts.
        flops: of a token, as a share of the dense model's.
        speed: of each run, in multiples of the dense model's.
        before: score of each run before tuning; () if it was not evaluated.
        after: score of each run.
        metrics: of the scores.
        backends: that computed; see `Inference`.
    """

    row: str
    column: str
    series: str
    flops: float
    speed: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    metrics: tuple[str, ...]
    backends: tuple[str, ...]


def points_of(plan: StudyPlan, table: StudyTable, results: Results) -> list[Point]:
    """Collect what is measured, in the order of the table's columns and rows.

    Args:
        plan: the study.
        table: of it.
        results: by id, of those that are done.
    """
    groups, found = grouped(plan), []
    for column in table.columns:
        for row in table.rows:
            cell = table.cells.get((row, column))
            if cell is None or cell.cell is None:
                continue
            runs = [run for run in groups[row, column] if run.id in cell.cell.ids]
            known = [results[run.id] for run in runs if results[run.id].inference is not None]
            one_task = len({(run.task.suite, run.task_name) for run in runs}) == 1
            if known and one_task:  # scores of several are averaged elsewhere
                series = label(runs[0], series_keys(plan))
                found.append(point(row, column, series, known))
    return found


def point(row: str, column: str, series: str, runs: Sequence[Result]) -> Point:
    """Sum up the runs of a cell, all with a measured speed."""
    timed = [run.inference for run in runs if run.inference is not None]
    before = [scores.primary for run in runs for scores in run.before.values() if scores]
    flops = runs[0].flops_per_token
    return Point(
        row, column, series, flops.converted / flops.dense,
        tuple(each.dense_seconds / each.seconds for each in timed),
        tuple(before) if len(before) == len(runs) else (),
        tuple(run.primary for run in runs), runs[0].metrics,
        tuple(dict.fromkeys(each.backend for each in timed)),
    )  # fmt: skip


def series_keys(plan: StudyPlan) -> tuple[str, ...]:
    """List what distinguishes the lines of the plot: the rows' keys but the selected experts."""
    return tuple(key for key in plan.study.rows if key != TOP_K)


def series_names(plan: StudyPlan) -> Names:
    """Put the lines of the plot into words."""
    runs: dict[str, Run] = {}
    for job in plan.jobs:
        runs.setdefault(label(job.run, series_keys(plan)), job.run)
    return names_of(runs, series_keys(plan))


def frontier_sheet(plan: StudyPlan, table: StudyTable, results: Results) -> Sheet | None:
    """Lay out speed and quality of every row.

    Args:
        plan: the study.
        table: of it.
        results: by id, of those that are done.

    Returns:
        FLOPs in percent and speed in multiples of the dense model's, scores as tables show them;
        None where no run measured its speed.
    """
    points = points_of(plan, table, results)
    if not points:
        return None
    rows = []
    for each in points:
        name = table.row_names[each.row]
        if len(table.columns) > 1:
            name = f"{name}, {table.column_names[each.column]}"
        numbers = (
            f"{100 * each.flops:.0f}", meant(each.speed), scored(each.before, each.metrics),
            scored(each.after, each.metrics), str(len(each.after)),
        )  # fmt: skip
        rows.append((Entry(name), *map(Entry, numbers)))
    ways = {direction(each.metrics) for each in points}
    way = f" {ways.pop()}" if len(ways) == 1 else ""
    backends = ", ".join(dict.fromkeys(name for each in points for name in each.backends))
    return Sheet(
        title=f"{plan.study.title}: speed and quality",
        header=("", "FLOPs, % of dense ↓", "speed, x dense ↑", f"before tuning{way}",
                f"after{way}", "n"),
        rows=tuple(rows),
        caption=NOTE.format(backends, max(len(each.after) for each in points)),
        words=1,
        name="frontier",
    )  # fmt: skip


def meant(values: Sequence[float], show: Callable[[float], str] = "{:.2f}".format) -> str:
    """Write a mean and, of several values, their (population) standard deviation."""
    mean = show(statistics.fmean(values))
    return f"{mean} ± {show(spread(values))}" if len(values) > 1 else mean


def scored(values: Sequence[float], metrics: Sequence[str]) -> str:
    """Write scores as `meant` does; "" without values."""
    return meant(values, lambda value: shown(value, metrics)) if values else ""
