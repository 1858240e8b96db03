"""The plot of speed against quality: lines over the share of selected experts, the dense point."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from moe_runner.metrics import scaled
from moe_runner.report.canvas import MARKERS, colour, legend, measured, panels, swatch
from moe_runner.report.frontier import Point, points_of, series_names
from moe_runner.report.study_table import Results, StudyTable
from moe_runner.sweeps.study_plan import StudyPlan

WIDE = 3.0  # ratio of scores from which an axis is logarithmic
DENSE = {"marker": "*", "color": "black", "linestyle": "none", "markersize": 11}
ACROSS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("FLOPs of a token, % of the dense model's", lambda each: 100 * each.flops),
    ("measured speed, x the dense model's", lambda each: statistics.fmean(each.speed)),
)


def frontier(plan: StudyPlan, table: StudyTable, results: Results) -> Any:
    """Draw scores before and after tuning against FLOPs and speed, a line per kind of row.

    Args:
        plan: the study.
        table: of it; the first column that has something is drawn, and named where it is not all.
        results: by id, of those that are done.

    Returns:
        A figure; None where no run measured its speed.
    """
    every = points_of(plan, table, results)
    found = [each for each in every if each.column == every[0].column]
    stages = [
        (stage, values)
        for stage, values in (
            ("before tuning", lambda each: each.before), ("after tuning", lambda each: each.after),
        )
        if any(values(each) for each in found)
    ]  # fmt: skip
    if not found:
        return None
    names = [stage for stage, _ in stages for _ in ACROSS]
    of_column = f", {table.column_names[found[0].column]}" if len(table.columns) > 1 else ""
    title = (
        f"{plan.study.title}{of_column}\na line: more and more of the experts selected; star: dense"
    )
    figure, axes = panels(title, names, 2.6, across=len(ACROSS))
    series = list(dict.fromkeys(each.series for each in found if not is_dense(each)))
    for number, ax in enumerate(axes):
        values = stages[number // len(ACROSS)][1]
        name, place = ACROSS[number % len(ACROSS)]
        scores = draw(ax, found, series, values, place)
        if min(scores) > 0 and max(scores) > WIDE * min(scores):
            ax.set_yscale("log", subs=(2, 5))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
            ax.tick_params(which="minor", labelsize=7)
        ax.set_xlabel(name, fontsize=7)
        ax.set_ylabel(measured(found[0].metrics), fontsize=7)
    words = series_names(plan)
    entries = [swatch(words[each], **style(number)) for number, each in enumerate(series)]
    legend(figure, [swatch("dense", **DENSE), *entries])
    return figure


def is_dense(point: Point) -> bool:
    """Tell whether a point is of the dense model: it computes all of it."""
    return point.series == point.row and point.flops == 1


def style(number: int) -> dict[str, Any]:
    """Give colour and marker of a line."""
    return {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def draw(
    ax: Any,
    points: Sequence[Point],
    series: Sequence[str],
    values: Callable[[Point], Sequence[float]],
    place: Callable[[Point], float],
) -> list[float]:
    """Draw a panel.

    Returns:
        The scores that are in it.
    """
    scores = []
    for each in points:
        of_runs = values(each)
        if is_dense(each) and of_runs:
            scores.append(scaled(statistics.fmean(of_runs), each.metrics))
            ax.plot([place(each)], scores[-1:], **DENSE)
            ax.axhline(scores[-1], color="#999999", linestyle=":", linewidth=1)
    for number, name in enumerate(series):
        of_line = [each for each in points if each.series == name and values(each)]
        of_line.sort(key=lambda each: each.flops)
        xs = [place(each) for each in of_line]
        ys = [scaled(statistics.fmean(values(each)), each.metrics) for each in of_line]
        ax.plot(xs, ys, linewidth=1, **style(number))
        scores += ys
    return scores
