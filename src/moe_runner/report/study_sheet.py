"""A study laid out: ours, with n and the difference to the baseline, then the published figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from moe_runner.console import wide_console
from moe_runner.metrics import RAW, alike, named, shown
from moe_runner.report import domainbed
from moe_runner.report.baselines import baselines
from moe_runner.report.beside import beside_sheet, published_sheet
from moe_runner.report.frontier import frontier_sheet
from moe_runner.report.labels import ONE_ANSWER, direction, label, majority_name
from moe_runner.report.pairs import check_figures
from moe_runner.report.published import published_tables
from moe_runner.report.ranking import rank_sheet
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet, print_sheet
from moe_runner.report.study_table import (
    Results,
    StudyCell,
    StudyTable,
    names_in,
    tabulate,
    unequal,
)
from moe_runner.report.verdicts import claims, verdict_sheet
from moe_runner.runs.result import Result
from moe_runner.sweeps.study_plan import StudyPlan

MARK = "†"  # a row whose settings differ from the first
NOT_RECORDED = (
    "majority class and constant predictions are not recorded in these results (of an older "
    "version; rerun=true records them)"
)


def sheets(plan: StudyPlan, results: Results) -> list[Sheet]:
    """Lay out all tables of a study: ours, ours beside the published figures, the published ones.

    Args:
        plan: its runs.
        results: by id, of those that are done.
    """
    own = []
    if plan.jobs:
        table = tabulate(plan, results)
        own.append(study_sheet(plan, table))
        further = (ood_sheet(plan, table), rank_sheet(plan, table))
        own += [sheet for sheet in (*further, frontier_sheet(plan, table, results)) if sheet]
    own += domain_sheets(plan, results)
    tables = published_tables()
    for pairing in plan.study.beside:
        table = tabulate(plan, results, pairing.rule)
        check_figures(table, tables[pairing.table], pairing)
        own.append(beside_sheet(table, tables[pairing.table], pairing, plan.profile))
    return own + [published_sheet(tables[name]) for name in plan.study.published]


def study_sheet(plan: StudyPlan, table: StudyTable) -> Sheet:
    """Lay out our numbers: mean ± std (n), best in bold, difference to the baseline's average."""
    ranks = table.ranks(table.columns)
    against = baselines(plan, table)
    means = {row: table.average(row, table.columns) for row in table.rows}
    used = dict.fromkeys(other for row, other in against.items() if means[row] and means[other])
    one = table.row_names[next(iter(used or table.rows))] if len(used) < 2 else "baseline"
    header = [row_head(plan), *(column_head(table, column) for column in table.columns)]
    alike_all = alike([table.metrics(column) for column in table.columns])
    way = f" {direction(table.metrics(table.columns[0]))}" if alike_all else ""
    header += [f"average{way}", f"average against {one}"]
    header += ["mean OOD rank ↓"] if ranks else []
    best = {column: table.best(column) for column in table.columns}
    marked = unequal(plan)
    rows = []
    for row in table.rows:
        entries = [
            Entry(written(table.cells.get((row, column))), row in best[column])
            for column in table.columns
        ]
        mean = means[row]
        entries.append(Entry("" if mean is None else shown(*mean)))
        difference = ""
        if mean is not None and row in against and (baseline := means[against[row]]) is not None:
            sign = "-" if mean[0] < baseline[0] else "+"
            difference = sign + shown(abs(mean[0] - baseline[0]), mean[1])
            difference += f" ({table.row_names[against[row]]})" if len(used) > 1 else ""
        entries.append(Entry(difference))
        if ranks:
            entries.append(Entry(f"{ranks[row]:.2f}" if row in ranks else ""))
        name = table.row_names[row]
        rows.append((Entry(f"{name} {MARK}" if row in marked else name), *entries))
    plain = [table.majority(column) for column in table.columns]
    if any(value is not None for value in plain):
        names = [table.metrics(column) for column in table.columns]
        known = [value for value in plain if value is not None]
        whole = len(known) == len(plain) and alike(names)
        average = shown(statistics.fmean(known), names[0]) if whole else ""
        cells = [*map(number, plain, names), average, ""]
        rows.append((Entry(majority_name(names)), *map(Entry, cells)))
        rows[-1] += (Entry(""),) if ranks else ()
    notes = notes_of(table, "")
    notes += [f"mean OOD rank {where}"] if ranks and (where := table.ranked_on()) else []
    notes += [f"{MARK} {table.row_names[row]}: {'; '.join(lines)}" for row, lines in marked.items()]
    return Sheet(
        title=f"{plan.study.name}: {plan.study.title}",
        header=tuple(header),
        rows=tuple(rows),
        caption="; ".join([caption(plan), *shared(table), *notes]),
    )


def ood_sheet(plan: StudyPlan, table: StudyTable) -> Sheet | None:
    """Lay out the scores on each out-of-domain set, and the mean rank beside; None without any."""
    places = [(column, ood) for column in table.columns for ood in table.sets(column)]
    if not places:
        return None
    ranks = table.ranks(table.columns)
    rows = []
    for row in table.rows:
        entries = []
        for column, ood in places:
            found = table.cells.get((row, column))
            text = "" if found is None else ood_written(found, ood)
            entries.append(Entry(text, row in table.best(column, ood)))
        rank = [Entry(f"{ranks[row]:.2f}" if row in ranks else "")] if ranks else []
        rows.append((Entry(table.row_names[row]), *entries, *rank))
    names = [table.set_metrics(column, ood) for column, ood in places]
    plain = [table.majority(column, ood) for column, ood in places]
    if any(value is not None for value in plain):
        words = [majority_name(names), *map(number, plain, names), *([""] if ranks else [])]
        rows.append(tuple(map(Entry, words)))
    several = len(table.columns) > 1
    heads = [
        column_head(table, f"{table.column_names[column]} > {ood}" if several else ood, metrics)
        for (column, ood), metrics in zip(places, names, strict=True)
    ]
    notes = [
        f"profile={plan.profile}; percent (perplexity: as it is)",
        "evaluated once, at the learning rate and epoch of the table above; mean over seeds",
    ]
    if ranks:
        said = "mean rank among the rows that lack no run, over the sets that all have"
        notes.append(f"{said}, {where}" if (where := table.ranked_on()) else said)
    return Sheet(
        title=f"{plan.study.name}: out of domain",
        header=(row_head(plan), *heads, *(["mean rank ↓"] if ranks else [])),
        rows=tuple(rows),
        caption="; ".join([*notes, *notes_of(table, None)]),
        name="ood",
    )


def row_head(plan: StudyPlan) -> str:
    """Name what distinguishes the rows: "method / top k"."""
    names = [key.partition(".")[2] or key for key in plan.study.rows]
    return " / ".join(name.replace("_", " ") for name in names)


def column_head(table: StudyTable, column: str, metrics: Sequence[str] | None = None) -> str:
    """Name a column, its metric, and whether more is better.

    Args:
        table: of the column.
        column: label, or any text if metrics are given.
        metrics: of the column; None: the table tells.
    """
    name = table.column_names[column]
    found = tuple(dict.fromkeys(table.metrics(column) if metrics is None else metrics))
    return f"{name} ({named(found)} {direction(found)})" if found else name


def number(value: float | None, metrics: Sequence[str]) -> str:
    """Write a number, or nothing."""
    return "" if value is None else shown(value, metrics)


def notes_of(table: StudyTable, where: str | None) -> list[str]:
    """Explain the marks of a table.

    Args:
        table: the table.
        where: "" for the set that selects, None for the others.
    """
    known = [each.cell for each in table.cells.values() if each.cell is not None]
    notes = []
    if any("" in cell.constant if where == "" else cell.constant - {""} for cell in known):
        notes.append(f"{ONE_ANSWER} a run behind it gives every example the same answer")
    if where == "" and any(not each.complete for each in table.cells.values()):
        notes.append("rows that lack runs are not ranked, and not the best")
    answers = [cell for cell in known if not set(RAW) & set(cell.metrics)]  # a perplexity has none
    if where == "" and answers and not any(cell.recorded for cell in answers):
        notes.append(NOT_RECORDED)
    return notes


def shared(table: StudyTable) -> list[str]:
    """Say what all rows, and all columns, have in common and their names leave out."""
    of_rows, of_columns = table.row_names.shared, table.column_names.shared
    return [*([f"all rows: {of_rows}"] if of_rows else []),
            *([f"all columns: {of_columns}"] if of_columns else [])]  # fmt: skip


def written(cell: StudyCell | None) -> str:
    """Write a cell: mean ± std (n), and how many of its runs there are if some are missing."""
    if cell is None:
        return ""
    of = "" if cell.complete else f"{cell.done} of {cell.planned} runs"
    if cell.cell is None:
        return of
    spread = f" ± {shown(cell.cell.std, cell.cell.metrics)}" if cell.cell.n > 1 else ""
    mark = f" {ONE_ANSWER}" if "" in cell.cell.constant else ""
    text = f"{shown(cell.cell.mean, cell.cell.metrics)}{spread} ({cell.cell.n}){mark}"
    return f"{text}, {of}" if of else text


def ood_written(cell: StudyCell, ood: str) -> str:
    """Write the score of a cell on an out-of-domain set."""
    if cell.cell is None:
        return written(cell)
    value = cell.cell.ood.get(ood)
    if value is None:
        return NOT_AVAILABLE
    mark = f" {ONE_ANSWER}" if ood in cell.cell.constant else ""
    of = "" if cell.complete else f", {cell.done} of {cell.planned} runs"
    return f"{shown(value, cell.cell.set_metrics.get(ood, ()))}{mark}{of}"


def caption(plan: StudyPlan) -> str:
    """Say how the numbers came about, and with which settings."""
    runs = [job.run for job in plan.jobs]
    if any(run.form == "domain_generalisation" for run in runs):
        how = (
            "accuracy on the held-out domain, averaged over domains, mean ± standard error over "
            "trials (n); checkpoint and learning rate chosen on the training domains"
        )
    else:
        how = (
            "mean ± population std over seeds (n); learning rate chosen by the mean of the primary "
            "validation metric, best epoch on the set that is reported"
        )
    told: dict[str, set[str]] = {}
    for run in runs:
        length = "epochs" if run.trainer.max_steps is None else "max_steps"
        for name in ("batch_size", length, "precision"):
            told.setdefault(name, set()).add(str(getattr(run.trainer, name)))
    settings = [f"{name} {'/'.join(sorted(values))}" for name, values in told.items()]
    parts = [
        f"profile={plan.profile}; percent (perplexity: as it is)",
        how,
        ", ".join(settings),
        plan.study.note,
    ]
    return "; ".join(part for part in parts if part)


def domain_sheets(plan: StudyPlan, results: Results) -> list[Sheet]:
    """Lay out DomainBed's leave-one-out tables, one for each backbone and data set."""
    found: dict[str, dict[str, list[Result]]] = {}
    names, _ = names_in(plan)
    for job in plan.jobs:
        result = results.get(job.run.id)
        if result is None or not domainbed.is_domainbed(result):
            continue
        title = f"{job.run.model.label}, {domainbed.held_out(result)[0]}"
        systems = found.setdefault(title, {})
        name = names[label(job.run, plan.study.rows)]
        systems.setdefault(name, []).append(result)
    return [domainbed.build_sheet(title, systems) for title, systems in found.items()]


def print_study(plan: StudyPlan, results: Results) -> None:
    """Print a study's verdicts and tables on the standard output."""
    console = wide_console()
    first = verdict_sheet(plan, claims(plan, results))
    for sheet in [*([first] if first else []), *sheets(plan, results)]:
        print_sheet(console, sheet)
    for gap in plan.gaps:
        console.print(f"{plan.study.name}: {gap}")
    if not plan.study.published and not plan.study.beside:
        console.print(f"published: {NOT_AVAILABLE}")
    console.print()
