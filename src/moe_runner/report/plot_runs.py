"""Plots of the runs of a study: learning curves, in against out of domain, ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from moe_runner.metrics import scaled
from moe_runner.report.canvas import (
    MARKERS,
    WIDTH,
    colour,
    fill,
    legend,
    measured,
    panels,
    plain,
    swatch,
    unit,
    widen,
    wrapped,
)
from moe_runner.report.labels import label
from moe_runner.report.ranking import LEVEL, Ranking
from moe_runner.report.study_table import Results, StudyTable
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan

Groups = dict[str, dict[str, list[Result]]]  # results by column and row


def chosen(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], results: Results) -> Groups:
    """Sort the results at the chosen learning rates by column and row."""
    found: Groups = {column: {} for column in table.columns}
    for run in runs:
        row, column = label(run, plan.study.rows), label(run, plan.study.columns)
        cell = table.cells[row, column].cell
        if cell is not None and run.id in cell.ids:
            found[column].setdefault(row, []).append(results[run.id])
    return {column: rows for column, rows in found.items() if rows}


def entries(table: StudyTable, used: Sequence[str], **style: Any) -> list[Any]:
    """Make the legend of the rows that are drawn."""
    return [
        swatch(table.row_names[row], color=colour(number), fillstyle=fill(number), **style)
        for number, row in enumerate(table.rows)
        if row in used
    ]


def curves(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], results: Results) -> Any:
    """Draw the primary metric over the updates: mean and band over the runs, a panel per column."""
    groups = chosen(plan, table, runs, results)
    if not groups:
        return None
    names = [table.column_names[column] for column in groups]
    title = f"{plan.study.title}: learning curves\nmean, and from the least to the greatest run"
    figure, axes = panels(title, names, 2.2)
    for ax, (column, rows) in zip(axes, groups.items(), strict=False):
        for number, row in enumerate(table.rows):
            steps = by_step(rows.get(row, ()))
            xs = sorted(steps)
            mean = [statistics.fmean(steps[x]) for x in xs]
            ax.plot(xs, mean, ".-", color=colour(number), linewidth=1, markersize=3)
            low, high = [min(steps[x]) for x in xs], [max(steps[x]) for x in xs]
            ax.fill_between(xs, low, high, color=colour(number), alpha=0.15, linewidth=0)
        ax.set_xlabel("updates", fontsize=7)
        ax.set_ylabel(measured(table.metrics(column)), fontsize=7)
        widen(ax, "y")
    legend(figure, entries(table, [row for rows in groups.values() for row in rows], marker="."))
    return figure


def by_step(found: Sequence[Result]) -> dict[int, list[float]]:
    """Collect the scores of runs at every update at which all of them were evaluated."""
    steps: dict[int, list[float]] = {}
    for result in found:
        for point in result.learning_curve:
            value = scaled(point.primary, result.metrics)
            if math.isfinite(value):
                steps.setdefault(point.step, []).append(value)
    whole = {step: values for step, values in steps.items() if len(values) == len(found)}
    return whole or steps


def scatter(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], results: Results) -> Any:
    """Draw in-domain against out-of-domain scores: a point per run and set, a panel per column."""
    groups = {
        column: rows
        for column, rows in chosen(plan, table, runs, results).items()
        if table.sets(column) and any(s for of in rows.values() for r in of for s in pairs(r))
    }
    if not groups:
        return None
    names = [table.column_names[column] for column in groups]
    figure, axes = panels(f"{plan.study.title}: in against out of domain, a point per run",
                          names, 2.4)  # fmt: skip
    sets: dict[str, str] = {}
    for ax, (column, rows) in zip(axes, groups.items(), strict=False):
        metrics: dict[str, None] = {}
        for number, row in enumerate(table.rows):
            for result in rows.get(row, ()):
                for name, x, y, scored in pairs(result):
                    mark = sets.setdefault(name, MARKERS[len(sets) % len(MARKERS)])
                    metrics |= dict.fromkeys(scored)
                    style = {"color": colour(number), "fillstyle": fill(number)}
                    ax.plot([x], [y], mark, markersize=4, alpha=0.7, **style)
        ax.set_xlabel(f"in domain: {unit(table.metrics(column))}", fontsize=7)
        ax.set_ylabel(f"out of domain: {unit(tuple(metrics))}", fontsize=7)
        for axis in ("x", "y"):
            widen(ax, axis)
    marks = [
        swatch(f"set {name}", marker=mark, color="black", linestyle="none")
        for name, mark in sets.items()
    ]
    used = [row for rows in groups.values() for row in rows]
    legend(figure, entries(table, used, marker="o", linestyle="none") + marks)
    return figure


def pairs(result: Result) -> list[tuple[str, float, float, tuple[str, ...]]]:
    """Pair the in-domain score of a run with that of each out-of-domain set it has."""
    own = scaled(result.primary, result.metrics)
    return [
        (name, own, scaled(scores.primary, scores.metrics), tuple(scores.metrics))
        for name, scores in result.ood_metrics.items()
        if scores is not None and math.isfinite(own) and math.isfinite(scores.primary)
    ]


def rank_diagram(title: str, found: Ranking) -> Any:
    """Draw the critical-difference diagram: mean ranks, and bars over what is not told apart.

    Source: Demsar, JMLR 7, 2006, figure 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(found.ranks, key=found.ranks.__getitem__)
    count, cliques = len(names), found.cliques
    half = math.ceil(count / 2)
    depth = 0.5 + 0.28 * len(cliques)
    figure = Figure(figsize=(WIDTH, 1.5 + 0.3 * (half + depth)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    note = f"Friedman p = {found.p:.3f}, n = {found.tasks}; bars join what Nemenyi's test does not "
    note += f"tell apart (level {LEVEL})"
    ax.set_title(plain(wrapped(f"{title}: mean ranks, 1 is best\n{note}")), fontsize=9, loc="left")
    ax.hlines(0, 1, count, color="black", linewidth=1)
    for rank in range(1, count + 1):
        ax.vlines(rank, 0, 0.15, color="black", linewidth=1)
        ax.text(rank, 0.25, str(rank), ha="center", fontsize=8)
    reach = min(found.critical, count - 1.0)
    beyond = "" if found.can_tell else ": more than ranks can differ, nothing can be told"
    ax.hlines(1.0, 1, 1 + reach, color="#AA3377", linewidth=2)
    words = f"critical difference {found.critical:.2f}{beyond}"
    ax.text(1, 1.15, words, ha="left", fontsize=8, color="#AA3377")
    for number, name in enumerate(names):
        left = number < half
        level = -depth - 0.45 * (number if left else count - 1 - number) - 0.2
        end = 1 - 0.15 if left else count + 0.15
        ax.plot([found.ranks[name]] * 2 + [end], [0, level, level], color="#666666", linewidth=0.9)
        words = f"{plain(name)}  {found.ranks[name]:.2f}" if left else (
            f"{found.ranks[name]:.2f}  {plain(name)}")  # fmt: skip
        ax.text(end, level, f" {words} ", ha="right" if left else "left", va="center", fontsize=8)
    for number, clique in enumerate(cliques):
        low, high = found.ranks[clique[0]], found.ranks[clique[-1]]
        ax.hlines(-0.35 - 0.28 * number, low - 0.04, high + 0.04, color="black", linewidth=4)
    room = 0.035 * (count - 1) * max(len(name) + 6 for name in names) / 2 + 0.3
    ax.set_xlim(1 - room, count + room)
    ax.set_ylim(-depth - 0.45 * half - 0.1, 1.6)
    ax.axis("off")
    return figure
