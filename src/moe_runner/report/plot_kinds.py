"""The main plot of a study, one of four kinds: points, radar, series, heatmap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moe_runner.metrics import alike, scaled, spread
from moe_runner.report.beside import matched
from moe_runner.report.canvas import (
    colour,
    fill,
    legend,
    measured,
    panels,
    plain,
    swatch,
    unit,
    widen,
)
from moe_runner.report.labels import label
from moe_runner.report.published import published_tables
from moe_runner.report.study_table import StudyTable
from moe_runner.report.summary import Cell
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan

ERROR = "bars: ± standard error over seeds, small points: the seeds; axes do not begin at 0"
PUBLISHED = {"marker": "D", "markerfacecolor": "none", "color": "black", "linestyle": "none"}


def points(
    plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]
) -> Any:
    """Draw a panel per column and a line per row: mean, error, seeds, and the published figure."""
    columns = [c for c in table.columns if any(known(table, row, c) for row in table.rows)]
    if not columns:
        return None
    averaged = len(table.columns) > 1 and alike([table.metrics(c) for c in table.columns])
    names = [table.column_names[column] for column in columns] + ["average"] * averaged
    theirs = dict(published_points(plan, table))
    rows = [row for row in table.rows if any(known(table, row, c) for c in columns)]
    places = {row: -number for number, row in enumerate(rows)}
    height = 0.75 + 0.22 * len(rows)
    figure, axes = panels(f"{plan.study.title}\n{ERROR}", names, height, sharey=True)
    for ax, column in zip(axes, [*columns, "all"][: len(names)], strict=False):
        metrics = table.metrics(table.columns[0] if column == "all" else column)
        for number, row in enumerate(rows):
            cells = [known(table, row, c) for c in table.columns] if column == "all" else None
            cell = known(table, row, column) if cells is None else None
            if cell is not None:
                draw_cell(ax, cell, places[row], colour(number))
            elif cells is not None and all(cells):
                mean = statistics.fmean(each.mean for each in cells if each is not None)
                ax.plot([scaled(mean, metrics)], [places[row]], "o", color=colour(number))
            if (row, column) in theirs:
                ax.plot([theirs[row, column]], [places[row]], markersize=6, **PUBLISHED)
        widen(ax, "x")
        plainly = None if column == "all" else table.majority(column)
        low, high = ax.get_xlim()
        if plainly is not None and low <= scaled(plainly, metrics) <= high:
            ax.axvline(scaled(plainly, metrics), color="#999999", linestyle=":", linewidth=1)
        words = (
            f"mean of the {len(table.columns)} columns" if column == "all" else measured(metrics)
        )
        ax.set_xlabel(words, fontsize=7)
        ax.set_yticks(list(places.values()), [plain(table.row_names[row]) for row in places])
        ax.set_ylim(-len(places) + 0.4, 0.6)
        ax.grid(axis="y", color="#eeeeee")
    entries = [swatch("published", **PUBLISHED)] if theirs else []
    if any(table.majority(column) is not None for column in columns):
        entries.append(swatch("majority class or mean", color="#999999", linestyle=":"))
    legend(figure, entries)
    return figure


def known(table: StudyTable, row: str, column: str) -> Cell | None:
    """Give the cell of a row and a column, if it has a result."""
    found = table.cells.get((row, column))
    return None if found is None else found.cell


def draw_cell(ax: Any, cell: Cell, place: float, shade: str) -> None:
    """Draw a mean with its standard error, and its seeds below it."""
    values = [scaled(value, cell.metrics) for value in cell.by_seed.values()]
    mean = scaled(cell.mean, cell.metrics)
    if not math.isfinite(mean):
        return
    error = error_of(cell)
    ax.plot(values, [place - 0.22] * len(values), ".", color=shade, markersize=3, alpha=0.6)
    ax.errorbar(
        [mean], [place], xerr=None if error is None else [error], fmt="o", color=shade,
        markersize=4.5, capsize=2,
    )  # fmt: skip


def error_of(cell: Cell) -> float | None:
    """Give the standard error of a mean over seeds, as people read it; None with one."""
    values = [scaled(value, cell.metrics) for value in cell.by_seed.values()]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return spread(values) / math.sqrt(len(values) - 1)


def published_points(plan: StudyPlan, table: StudyTable) -> Iterator[tuple[tuple[str, str], float]]:
    """Give the published figures that stand beside ours, by row and column ("all": the average).

    None of toy models: their numbers are elsewhere, and an axis for both would show neither.
    """
    if plan.profile == "mini":
        return
    for pairing in plan.study.beside:
        published = published_tables()[pairing.table]
        for key, theirs in pairing.columns.items():
            columns = [c for c in table.columns if c == key or key == "all"]
            if not columns:
                continue
            place = published.columns.index(theirs)
            for own, row in matched(pairing.rows, table.rows.__contains__):
                cell = published.rows[row][place]
                if own is not None and isinstance(cell, int | float):
                    yield (own, "all" if key == "all" else key), float(cell)


def radar(plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]) -> Any:
    """Draw a polygon per row over the columns; each axis is scaled to its own range."""
    full = [row for row in table.rows if table.known(row, table.columns)]
    if len(table.columns) < 3 or not full:
        return points(plan, table, runs, lines)
    note = "every axis has its own range, from its least to its greatest mean"
    figure, (ax,) = panels(
        f"{plan.study.title}\n{note}", [""], 4.6, subplot_kw={"projection": "polar"}
    )
    values = {
        row: [scaled(cell.mean, cell.metrics) for cell in table.known(row, table.columns) or []]
        for row in full
    }
    angles = [2 * math.pi * i / len(table.columns) for i in range(len(table.columns))]
    low = [min(values[row][i] for row in full) for i in range(len(angles))]
    high = [max(values[row][i] for row in full) for i in range(len(angles))]
    entries = []
    for number, row in enumerate(full):
        radii = [
            0.25 + 0.75 * (v - a) / (b - a if b > a else 1)
            for v, a, b in zip(values[row], low, high, strict=True)
        ]
        style = {"color": colour(number), "linestyle": "-" if number < 7 else "--"}
        ax.plot([*angles, angles[0]], [*radii, radii[0]], **style)
        entries.append(swatch(table.row_names[row], **style))
    names = [
        f"{plain(table.column_names[column])}\n{unit(table.metrics(column))}\n{a:.1f} to {b:.1f}"
        for column, a, b in zip(table.columns, low, high, strict=True)
    ]
    ax.set_xticks(angles, names, fontsize=7)
    ax.tick_params(axis="x", pad=20)  # clear of the circle
    ax.set_yticklabels([])
    ax.set_ylim(0, 1.05)
    legend(figure, entries)
    return figure


def series(
    plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]
) -> Any:
    """Draw a line per row over columns that are numbers, with errors, and the published lines."""
    places = numbers_of(table.columns)
    if places is None:
        return points(plan, table, runs, lines)
    theirs = dict(published_points(plan, table))
    figure, (ax,) = panels(f"{plan.study.title}\nbars: ± standard error over seeds", [""], 3.2)
    entries = []
    for number, row in enumerate(table.rows):
        cells = {places[c]: cell for c in table.columns if (cell := known(table, row, c))}
        if cells:
            xs = sorted(cells)
            ys = [scaled(cells[x].mean, cells[x].metrics) for x in xs]
            errors = [error_of(cells[x]) or 0.0 for x in xs]
            style = {"marker": "o", "color": colour(number), "fillstyle": fill(number)}
            ax.errorbar(xs, ys, yerr=errors, capsize=2, **style)
            entries.append(swatch(table.row_names[row], **style))
        own = sorted((places[c], value) for (r, c), value in theirs.items() if r == row)
        if own:
            style = {**PUBLISHED, "linestyle": "--", "color": colour(number)}
            ax.plot(*zip(*own, strict=True), **style)
            entries.append(swatch(f"{table.row_names[row]}, published", **style))
    ax.set_xlabel(plan.study.columns[-1].rpartition(".")[2].replace("_", " "), fontsize=8)
    ax.set_ylabel(measured(table.metrics(table.columns[0])), fontsize=8)
    legend(figure, entries)
    return figure


def numbers_of(columns: Sequence[str]) -> dict[str, float] | None:
    """Read the number that ends each label; None unless all have one, each its own."""
    try:
        places = {column: float(column.rpartition("=")[2]) for column in columns}
    except ValueError:
        return None
    return places if len(set(places.values())) == len(places) else None


def heatmap(
    plan: StudyPlan, table: StudyTable, runs: Sequence[Run], lines: Mapping[str, Any]
) -> Any:
    """Draw each expert's share of the choices over the updates, a panel per row, one scale."""
    shares: dict[str, tuple[list[int], list[list[float]], int]] = {}
    for run in runs:
        found = [line for line in lines.get(run.id, ()) if line.get("load")]
        row = label(run, plan.study.rows)
        if found and row not in shares:
            loads = [line["load"][0] for line in found]
            each = [[n / max(sum(load), 1) for n in load] for load in loads]
            steps = [int(line.get("step", number)) for number, line in enumerate(found)]
            shares[row] = (steps, each, run.seed)
    if not shares:
        return None
    names = [f"{table.row_names[row]}, seed {seed}" for row, (_, _, seed) in shares.items()]
    title = f"{plan.study.title}\nfirst converted layer; one colour scale for all"
    figure, axes = panels(title, names, 1.7, across=1)
    top = max(value for _, each, _ in shares.values() for row in each for value in row)
    for ax, (steps, each, _) in zip(axes, shares.values(), strict=False):
        picture = ax.imshow(each, aspect="auto", cmap="viridis", vmin=0, vmax=top, origin="lower")
        ticks = sorted({round(i * (len(steps) - 1) / 5) for i in range(6)})
        ax.set_yticks(ticks, [str(steps[tick]) for tick in ticks])
        ax.set_ylabel("updates", fontsize=8)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("expert", fontsize=8)
    figure.colorbar(picture, ax=axes, label="share of the choices", shrink=0.8)
    return figure


Kind = Callable[[StudyPlan, StudyTable, Sequence[Run], Mapping[str, Any]], Any]
KINDS: Mapping[str, Kind] = {
    "bars": points, "radar": radar, "series": series, "heatmap": heatmap,
}  # fmt: skip
