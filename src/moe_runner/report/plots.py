"""The plots of a study: the kinds of the papers' figures, each also as PDF.

matplotlib is imported when a plot is drawn, and draws without a display.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_runner.files import replacing
from moe_runner.metrics import scaled
from moe_runner.report.labels import label
from moe_runner.report.study_table import Results, StudyTable, tabulate
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")  # Paul Tol
WIDTH, HEIGHT = 7.0, 4.0  # inches
TOP = "mean of the primary metric"


def draw_study(
    plan: StudyPlan, results: Results, lines: Mapping[str, Any], out: Path
) -> list[Path]:
    """Draw what a study has to show.

    Args:
        plan: the study.
        results: by run id.
        lines: lines of metrics.jsonl by run id.
        out: folder of the files `<study>-<kind>.png` and `.pdf`.

    Returns:
        The PNG files; none for a study without a finished run.
    """
    runs = [job.run for job in plan.jobs if job.run.id in results]
    if not runs:
        return []
    table = tabulate(plan, results)
    figures: dict[str, Any] = {}
    figures[plan.study.plot] = KINDS[plan.study.plot](plan, table, runs, lines)
    figures["curves"] = curves(plan, runs, results)
    if any(results[run.id].ood_metrics for run in runs):
        figures["id-ood"] = scatter(plan, runs, results)
    files = []
    for kind, figure in figures.items():
        if figure is None:
            continue
        file = out / f"{plan.study.name}-{kind}.png"
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        with replacing(file.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
        files.append(file)
    return files


def new_figure(title: str, **axes: Any) -> tuple[Any, Any]:
    """Make a figure with one pair of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot(**axes)
    ax.set_title(title, fontsize=10, loc="left")
    return figure, ax


def averages(table: StudyTable, row: str) -> list[float | None]:
    """List a row's means in percent, None where there is no run."""
    found = []
    for column in table.columns:
        cell = table.cells.get((row, column))
        known = None if cell is None else cell.cell
        found.append(None if known is None else scaled(known.mean, known.metrics))
    return found


def bars(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]) -> Any:
    """Draw a group of bars per column, a bar per row, with the standard deviation."""
    figure, ax = new_figure(plan.study.title)
    width = 0.8 / len(table.rows)
    for number, row in enumerate(table.rows):
        for place, column in enumerate(table.columns):
            cell = table.cells.get((row, column))
            if cell is None or cell.cell is None:
                continue
            known = cell.cell
            ax.bar(
                place + (number - (len(table.rows) - 1) / 2) * width,
                scaled(known.mean, known.metrics),
                width,
                yerr=scaled(known.std, known.metrics) if known.n > 1 else None,
                color=COLOURS[number % len(COLOURS)],
                alpha=1.0 if number < len(COLOURS) else 0.6,
                label=row if place == 0 else None,
                error_kw={"linewidth": 0.8},
            )
    ax.set_xticks(range(len(table.columns)), table.columns, fontsize=8)
    ax.set_ylabel(TOP)
    legend(ax)
    return figure


def radar(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]) -> Any:
    """Draw a polygon per row over the columns; each axis is scaled to its own range."""
    full = [row for row in table.rows if None not in averages(table, row)]
    if len(table.columns) < 3 or not full:
        return bars(plan, table, runs, lines)
    figure, ax = new_figure(plan.study.title, projection="polar")
    values = {row: [float(v) for v in averages(table, row) if v is not None] for row in full}
    angles = [2 * math.pi * i / len(table.columns) for i in range(len(table.columns))]
    low = [min(values[row][i] for row in full) for i in range(len(angles))]
    high = [max(values[row][i] for row in full) for i in range(len(angles))]
    for number, row in enumerate(full):
        radii = [
            0.25 + 0.75 * (v - a) / (b - a if b > a else 1)
            for v, a, b in zip(values[row], low, high, strict=True)
        ]
        ax.plot(
            [*angles, angles[0]],
            [*radii, radii[0]],
            color=COLOURS[number % len(COLOURS)],
            label=row,
        )
    names = [
        f"{column}\n{a:.1f} to {b:.1f}"
        for column, a, b in zip(table.columns, low, high, strict=True)
    ]
    ax.set_xticks(angles, names, fontsize=7)
    ax.tick_params(axis="x", pad=18)  # clear of the circle
    ax.set_yticklabels([])
    ax.set_ylim(0, 1.05)
    legend(ax)
    return figure


def series(
    plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]
) -> Any:
    """Draw a line per row over columns that are numbers."""
    figure, ax = new_figure(plan.study.title)
    places = [float(column.rpartition("=")[2]) for column in table.columns]
    for number, row in enumerate(table.rows):
        points = sorted(
            (x, y) for x, y in zip(places, averages(table, row), strict=True) if y is not None
        )
        if points:
            ax.plot(*zip(*points, strict=True), "o-", color=COLOURS[number], label=row)
    ax.set_xlabel(plan.study.columns[-1].rpartition(".")[2].replace("_", " "))
    ax.set_ylabel(TOP)
    legend(ax)
    return figure


def heatmap(
    plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]
) -> Any:
    """Draw each expert's share of the choices at every evaluation, a panel per row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares: dict[str, list[list[float]]] = {}
    for run in runs:
        loads = [line["load"][0] for line in lines.get(run.id, ()) if line.get("load")]
        row = label(run, plan.study.rows)
        if loads and row not in shares:
            shares[row] = [[n / max(sum(load), 1) for n in load] for load in loads]
    if not shares:
        return None
    figure = Figure(figsize=(WIDTH, 1.2 + 1.6 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
    for ax, (row, found) in zip(panels, shares.items(), strict=True):
        picture = ax.imshow(found, aspect="auto", cmap="viridis")
        ax.set_title(row, fontsize=9, loc="left")
        ax.set_ylabel("evaluation")
        figure.colorbar(picture, ax=ax)
    panels[-1].set_xlabel("expert")
    return figure


def curves(plan: StudyPlan, runs: Sequence[Run], results: Results) -> Any:
    """Draw the primary metric over the updates, a line per run."""
    figure, ax = new_figure(f"{plan.study.title}: learning curves")
    for row, colour, found in by_row(plan, runs, results):
        x: list[float] = []
        y: list[float] = []
        for result in found:
            points = result.learning_curve
            x += [*(point.step for point in points), math.nan]  # NaN: the pen is lifted
            y += [*(scaled(point.primary, result.metrics) for point in points), math.nan]
        ax.plot(x, y, ".-", color=colour, linewidth=0.9, alpha=0.7, label=row)
    ax.set_xlabel("updates")
    ax.set_ylabel("primary metric")
    legend(ax)
    return figure


def scatter(plan: StudyPlan, runs: Sequence[Run], results: Results) -> Any:
    """Draw in-domain against out-of-domain scores, a point per run and set."""
    figure, ax = new_figure(f"{plan.study.title}: in against out of domain")
    for row, colour, found in by_row(plan, runs, results):
        points = [
            (scaled(result.primary, result.metrics), scaled(scores.primary, scores.metrics))
            for result in found
            for scores in result.ood_metrics.values()
            if scores is not None
        ]
        if points:
            ax.plot(*zip(*points, strict=True), "o", markersize=4, color=colour, label=row)
    ax.set_xlabel("in domain")
    ax.set_ylabel("out of domain")
    legend(ax)
    return figure


def by_row(
    plan: StudyPlan, runs: Sequence[Run], results: Results
) -> Iterator[tuple[str, str, list[Result]]]:
    """Give each row of a study with its colour and the results of its runs."""
    found: dict[str, list[Result]] = {}
    for run in runs:
        found.setdefault(label(run, plan.study.rows), []).append(results[run.id])
    for number, (row, rows) in enumerate(found.items()):
        yield row, COLOURS[number % len(COLOURS)], rows


def legend(ax: Any) -> None:
    """Put the legend beside the axes, where it covers nothing."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


KINDS = {"bars": bars, "radar": radar, "series": series, "heatmap": heatmap}
