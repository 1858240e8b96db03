"""A study laid out: ours, with n and the difference to the baseline, then the published figures."""

from __future__ import annotations

from moe_runner.console import wide_console
from moe_runner.metrics import shown
from moe_runner.report import domainbed
from moe_runner.report.beside import beside_sheet, published_sheet
from moe_runner.report.pairs import check_figures
from moe_runner.report.published import published_tables
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet, to_rich
from moe_runner.report.labels import label
from moe_runner.report.study_table import Results, StudyCell, StudyTable, tabulate, unequal
from moe_runner.report.verdicts import claims, verdict_sheet
from moe_runner.runs.result import Result
from moe_runner.sweeps.study_plan import StudyPlan

MARK = "†"


def sheets(plan: StudyPlan, results: Results) -> list[Sheet]:
    """Lay out all tables of a study: ours, ours beside the published figures, the published ones.

    Args:
        plan: its runs.
        results: by id, of those that are done.
    """
    own = [study_sheet(plan, tabulate(plan, results))] if plan.jobs else []
    own += domain_sheets(plan, results)
    tables = published_tables()
    for pairing in plan.study.beside:
        table = tabulate(plan, results, pairing.rule)
        check_figures(table, tables[pairing.table], pairing)
        own.append(beside_sheet(table, tables[pairing.table], pairing, plan.profile))
    return own + [published_sheet(tables[name]) for name in plan.study.published]


def study_sheet(plan: StudyPlan, table: StudyTable) -> Sheet:
    """Lay out our numbers: mean ± std (n), best in bold, difference to the first row's average."""
    ranks = table.ranks(table.columns)
    header = [" / ".join(plan.study.rows), *table.columns, "average", "against the first"]
    header += ["mean OOD rank"] if ranks else []
    best = {column: table.best(column) for column in table.columns}
    baseline = table.average(table.rows[0], table.columns)
    marked = unequal(plan)
    rows = []
    for row in table.rows:
        entries = [
            Entry(written(table.cells.get((row, column))), best[column] == row)
            for column in table.columns
        ]
        mean = table.average(row, table.columns)
        entries.append(Entry("" if mean is None else shown(*mean)))
        difference = ""
        if mean is not None and baseline is not None and row != table.rows[0]:
            sign = "-" if mean[0] < baseline[0] else "+"
            difference = sign + shown(abs(mean[0] - baseline[0]), mean[1])
        entries.append(Entry(difference))
        if ranks:
            entries.append(Entry(f"{ranks[row]:.2f}" if row in ranks else ""))
        rows.append((Entry(f"{row} {MARK}" if row in marked else row), *entries))
    notes = [f"{MARK} {row}: {'; '.join(lines)}" for row, lines in marked.items()]
    return Sheet(
        title=f"{plan.study.name}: {plan.study.title}",
        header=tuple(header),
        rows=tuple(rows),
        caption="; ".join([caption(plan), *notes]),
    )


def written(cell: StudyCell | None) -> str:
    """Write a cell: mean ± std (n), and what is missing of it."""
    if cell is None:
        return ""
    if cell.cell is None:
        return f"missing ({cell.planned - cell.done} runs)"
    spread = f" ± {shown(cell.cell.std, cell.cell.metrics)}" if cell.cell.n > 1 else ""
    text = f"{shown(cell.cell.mean, cell.cell.metrics)}{spread} ({cell.cell.n})"
    return text if cell.done == cell.planned else f"{text}, {cell.planned - cell.done} missing"


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
    for job in plan.jobs:
        result = results.get(job.run.id)
        if result is None or not domainbed.is_domainbed(result):
            continue
        title = f"{job.run.model.label}, {domainbed.held_out(result)[0]}"
        systems = found.setdefault(title, {})
        systems.setdefault(label(job.run, plan.study.rows), []).append(result)
    return [domainbed.build_sheet(title, systems) for title, systems in found.items()]


def print_study(plan: StudyPlan, results: Results) -> None:
    """Print a study's verdicts and tables on the standard output."""
    console = wide_console()
    first = verdict_sheet(plan, claims(plan, results))
    for sheet in [*([first] if first else []), *sheets(plan, results)]:
        console.print(to_rich(sheet))
    for gap in plan.gaps:
        console.print(f"{plan.study.name}: {gap}")
    if not plan.study.published and not plan.study.beside:
        console.print(f"published: {NOT_AVAILABLE}")
    console.print()
