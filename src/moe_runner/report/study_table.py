"""The table of a study: ours, with n and the difference to the baseline, and the published ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from moe_runner.config import show
from moe_runner.report import domainbed
from moe_runner.report.published import PublishedTable, published_tables
from moe_runner.report.sheet import Entry, Sheet, to_rich
from moe_runner.report.summary import NOT_AVAILABLE, Cell, aggregate, mean_ranks
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan
from moe_runner.tasks.metrics import lower_is_better, shown


@dataclass(frozen=True)
class StudyCell:
    """One cell: the runs that belong to it, and what they give.

    Args:
        cell: at the best learning rate; None without a finished run.
        done: finished runs.
        planned: runs of the cell, all learning rates and seeds.
    """

    cell: Cell | None
    done: int
    planned: int


@dataclass(frozen=True)
class StudyTable:
    """The cells of a study.

    Args:
        rows: labels, the baseline (dense) first if there is one.
        columns: labels.
        cells: by row and column; a pair that no run has is absent.
        ranks: mean rank over the out-of-domain sets by row, among these rows.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], StudyCell]
    ranks: Mapping[str, float]


def tabulate(plan: StudyPlan, results: Mapping[str, Mapping[str, Any]]) -> StudyTable:
    """Sort the runs of a study into cells.

    Args:
        plan: its runs.
        results: contents of result.json by id, of those that are done.

    Returns:
        The table.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for job in plan.jobs:
        key = label(job.run, plan.study.rows), label(job.run, plan.study.columns)
        groups.setdefault(key, []).append(job.run)
    cells = {}
    for key, runs in groups.items():
        found = [dict(results[run.id]) for run in runs if run.id in results]
        cells[key] = StudyCell(aggregate(found) if found else None, len(found), len(runs))
    rows = dict.fromkeys(row for row, _ in cells)
    known = {(column, row): c.cell for (row, column), c in cells.items() if c.cell is not None}
    return StudyTable(
        tuple(rows), tuple(dict.fromkeys(column for _, column in cells)), cells, mean_ranks(known)
    )


def label(run: Run, keys: Sequence[str]) -> str:
    """Name what a run is in some keys: axes (method, model, task), or options of a group."""
    axes = run.axes()
    words = []
    for key in keys:
        group, _, name = key.partition(".")
        if not name:
            words.append(str(axes[key]))
        elif hasattr(getattr(run, group), name):
            words.append(f"{name}={show(getattr(getattr(run, group), name))}")
    return " ".join(words)


def average(table: StudyTable, row: str) -> tuple[float, tuple[str, ...]] | None:
    """Average a row over all columns; None unless every column has a result.

    Returns:
        The mean, and the names of the metrics behind it.
    """
    found = [table.cells.get((row, column)) for column in table.columns]
    cells = [each.cell for each in found if each is not None and each.cell is not None]
    if len(cells) < len(table.columns):
        return None
    return statistics.fmean(cell.mean for cell in cells), tuple(n for c in cells for n in c.metrics)


def study_sheet(plan: StudyPlan, table: StudyTable) -> Sheet:
    """Lay out our numbers: mean ± std (n), best in bold, difference to the first row's average."""
    header = [" / ".join(plan.study.rows), *table.columns, "average", "against the first"]
    if table.ranks:
        header.append("mean OOD rank")
    best = {column: best_row(table, column) for column in table.columns}
    baseline = average(table, table.rows[0])
    rows = []
    for row in table.rows:
        entries = [
            Entry(written(table.cells.get((row, column))), best[column] == row)
            for column in table.columns
        ]
        mean = average(table, row)
        entries.append(Entry("" if mean is None else shown(*mean)))
        difference = ""
        if mean is not None and baseline is not None and row != table.rows[0]:
            sign = "-" if mean[0] < baseline[0] else "+"
            difference = sign + shown(abs(mean[0] - baseline[0]), mean[1])
        entries.append(Entry(difference))
        if table.ranks:
            entries.append(Entry(f"{table.ranks[row]:.2f}" if row in table.ranks else ""))
        rows.append((Entry(row), *entries))
    return Sheet(
        title=f"{plan.study.name}: {plan.study.title}",
        header=tuple(header),
        rows=tuple(rows),
        caption=caption(plan),
    )


def best_row(table: StudyTable, column: str) -> str | None:
    """Find the best row of a column."""
    cells = {
        row: cell.cell
        for row in table.rows
        if (cell := table.cells.get((row, column))) is not None and cell.cell is not None
    }
    if not cells:
        return None
    better = min if lower_is_better(next(iter(cells.values())).metrics) else max
    return better(cells, key=lambda row: cells[row].mean)


def written(cell: StudyCell | None) -> str:
    """Write a cell: mean ± std (n), and what is missing of it."""
    if cell is None:
        return ""
    if cell.cell is None:
        return f"missing ({cell.planned} runs)"
    spread = f" ± {shown(cell.cell.std, cell.cell.metrics)}" if cell.cell.n > 1 else ""
    text = f"{shown(cell.cell.mean, cell.cell.metrics)}{spread} ({cell.cell.n})"
    return text if cell.done == cell.planned else f"{text}, {cell.planned - cell.done} missing"


def caption(plan: StudyPlan) -> str:
    """Say how the numbers came about."""
    parts = [
        f"profile={plan.profile}; percent (perplexity: as it is), mean ± population std over seeds "
        "(n); learning rate chosen by the mean of the primary validation metric, best epoch on the "
        "set that is reported",
        plan.study.note,
    ]
    return "; ".join(part for part in parts if part)


def published_sheet(published: PublishedTable) -> Sheet:
    """Lay out a published table with the difference to its baseline, source and confidence."""
    external = " (an anchor, not a target)" if published.paper == "external" else ""
    baseline = next((name for name in BASELINES if name in published.rows), None)
    unknown = (None,) * len(published.columns)
    rows = []
    for name, cells in published.rows.items():
        compared = baseline is not None and name != baseline and "delta" not in name
        first = published.rows[baseline] if compared and baseline is not None else unknown
        std = published.std.get(name, (None,) * len(cells))
        words = []
        for cell, spread, base in zip(cells, std, first, strict=True):
            text = NOT_AVAILABLE if cell is None else f"{cell:g}" if is_number(cell) else str(cell)
            text += "" if spread is None else f" ± {spread:g}"
            if is_number(cell) and is_number(base):
                text += f" ({cell - base:+.2f})"
            words.append(text)
        rows.append((Entry(name), *(Entry(word) for word in words)))
    return Sheet(
        title=f"published{external}: {published.where}; {published.metric}",
        header=("", *published.columns),
        rows=tuple(rows),
        caption=f"{published.confidence}; {published.source}",
    )


BASELINES = ("Dense", "LoRA", "LoRA (no MoE)", "standard tuning", "standard")  # rows so named


def is_number(value: object) -> bool:
    """Tell whether a published cell is a number."""
    return isinstance(value, int | float)


def domain_sheets(plan: StudyPlan, results: Mapping[str, Mapping[str, Any]]) -> list[Sheet]:
    """Lay out DomainBed's leave-one-out tables, one for each backbone and data set."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for job in plan.jobs:
        result = results.get(job.run.id)
        if result is None or not domainbed.is_domainbed(result):
            continue
        title = f"{job.run.model.name}, {domainbed.held_out(result)[0]}"
        systems = found.setdefault(title, {})
        systems.setdefault(label(job.run, plan.study.rows), []).append(result)
    return [domainbed.build_sheet(title, systems) for title, systems in found.items()]


def sheets(plan: StudyPlan, results: Mapping[str, Mapping[str, Any]]) -> list[Sheet]:
    """Lay out all tables of a study: ours, then the published ones."""
    own = [study_sheet(plan, tabulate(plan, results))] if plan.jobs else []
    own += domain_sheets(plan, results)
    tables = published_tables()
    return own + [published_sheet(tables[name]) for name in plan.study.published]


def print_study(plan: StudyPlan, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a study's table and the published ones on the standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for sheet in sheets(plan, results):
        console.print(to_rich(sheet))
    for gap in plan.gaps:
        console.print(f"{plan.study.name}: {gap}")
    if not plan.study.published:
        console.print(f"published: {NOT_AVAILABLE}")
    console.print()
