"""The cells of a study: which runs belong to each, what they give, and how rows compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_runner import tasks
from moe_runner.metrics import alike, lower_is_better, spread
from moe_runner.options.errors import show
from moe_runner.report import domainbed
from moe_runner.report.labels import Names, label, names_of
from moe_runner.report.summary import Cell, aggregate, mean_ranks, ranks_of
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan

SPOKEN_OF = ("method.", "task.members", "trainer.learning_rate")  # differ by intent between cells
Results = Mapping[str, Result]  # by run id


@dataclass(frozen=True)
class StudyCell:
    """One cell: the runs that belong to it, and what they give.

    Args:
        cell: at the best learning rate; None without enough finished runs.
        done: finished runs.
        planned: runs of the cell, all learning rates and seeds.
        metrics: names of what the cell is scored by, known without a run.
    """

    cell: Cell | None
    done: int
    planned: int
    metrics: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no run is missing: only then it is ranked, or the best."""
        return self.cell is not None and self.done == self.planned


@dataclass(frozen=True)
class StudyTable:
    """The cells of a study.

    Args:
        rows: labels, the baseline (dense) first if there is one.
        columns: labels.
        cells: by row and column; a pair that no run has is absent.
        row_names: rows in words.
        column_names: columns in words.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], StudyCell]
    row_names: Names = Names({}, "")
    column_names: Names = Names({}, "")

    def known(self, row: str, columns: Sequence[str]) -> list[Cell] | None:
        """Give the results of a row in some columns; None unless each has one."""
        found = [self.cells.get((row, column)) for column in columns]
        cells = [each.cell for each in found if each is not None and each.cell is not None]
        return cells if len(cells) == len(columns) > 0 else None

    def metrics(self, column: str) -> tuple[str, ...]:
        """Name what a column is scored by; () if nothing tells."""
        found = [cell for (_, name), cell in self.cells.items() if name == column]
        scored = [cell.cell.metrics for cell in found if cell.cell is not None]
        return next(iter(scored), next((cell.metrics for cell in found), ()))

    def sets(self, column: str) -> list[str]:
        """List the out-of-domain sets of a column that some result has."""
        cells = [cell.cell for (_, name), cell in self.cells.items() if name == column]
        known = [cell for cell in cells if cell is not None]
        return list(dict.fromkeys(ood for cell in known for ood in cell.ood))

    def set_metrics(self, column: str, ood: str) -> tuple[str, ...]:
        """Name what an out-of-domain set of a column is scored by; () if no result has it."""
        found = [cell.cell for (_, name), cell in self.cells.items() if name == column]
        names = [cell.set_metrics[ood] for cell in found if cell and ood in cell.set_metrics]
        return next(iter(names), ())

    def majority(self, column: str, ood: str | None = None) -> float | None:
        """Give what who answers without reading scores; None: not known.

        Args:
            column: label.
            ood: an out-of-domain set of it; None: the set that selects.
        """
        cells = [cell.cell for (_, name), cell in self.cells.items() if name == column]
        known = [
            value
            for cell in cells
            if cell is not None
            and (value := cell.majority if ood is None else cell.ood_majority.get(ood)) is not None
        ]
        return statistics.fmean(known) if known else None

    def average(self, row: str, columns: Sequence[str]) -> tuple[float, tuple[str, ...]] | None:
        """Average a row over some columns; None unless each has a result.

        Returns:
            The mean, and the names of the metrics behind it; None also where perplexities would be
            added to percentages.
        """
        cells = self.known(row, columns)
        if cells is None or not alike([cell.metrics for cell in cells]):
            return None
        mean = statistics.fmean(cell.mean for cell in cells)
        return mean, tuple(name for cell in cells for name in cell.metrics)

    def is_complete(self, row: str, columns: Sequence[str]) -> bool:
        """Tell whether a row lacks no run in some columns."""
        found = [self.cells.get((row, column)) for column in columns]
        return all(cell is None or cell.complete for cell in found)

    def comparable(self, columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Find which rows can be ranked, and over which columns: those that lack no run.

        Not every row has every column. Of the sets of columns that rows have, that is taken which
        gives most cells, with all the rows that have it.

        Args:
            columns: labels.

        Returns:
            Rows and columns, in order; every row has a result in each of the columns.
        """
        has = {
            row: tuple(name for name in columns if self.known(row, [name]) is not None)
            for row in self.rows
            if self.is_complete(row, columns)
        }
        blocks = [
            (tuple(row for row, of in has.items() if set(some) <= set(of)), some)
            for some in dict.fromkeys(has.values())
        ]
        return max(blocks, key=lambda block: len(block[0]) * len(block[1]), default=((), ()))

    def ranks(self, columns: Sequence[str]) -> dict[str, float]:
        """Rank the `comparable` rows on the out-of-domain sets of columns; see `mean_ranks`."""
        rows, shared = self.comparable(columns)
        return mean_ranks(
            {
                (column, row): cell.cell
                for (row, column), cell in self.cells.items()
                if column in shared and row in rows and cell.cell is not None
            }
        )

    def ranked_on(self) -> str:
        """Say over which columns rows are ranked; "" if that is all."""
        _, shared = self.comparable(self.columns)
        left_out = len(shared) < len(self.columns)
        return f"over {', '.join(self.column_names[c] for c in shared)}" if left_out else ""

    def best(self, column: str, ood: str | None = None) -> frozenset[str]:
        """Find the best rows of a column among those that lack no run; none if all are equal.

        Args:
            column: label.
            ood: an out-of-domain set of it; None: the set that selects.
        """
        found: dict[str, float] = {}
        for row in self.rows:
            each = self.cells.get((row, column))
            if each is not None and each.cell is not None and each.complete:
                value = each.cell.mean if ood is None else each.cell.ood.get(ood)
                if value is not None and math.isfinite(value):
                    found[row] = value
        if len(found) < 2:
            return frozenset(found)
        names = self.metrics(column) if ood is None else self.set_metrics(column, ood)
        ranks = ranks_of(found, lower=lower_is_better(names))
        first = min(ranks.values())
        best = frozenset(row for row, rank in ranks.items() if rank == first)
        return best if len(best) < len(found) else frozenset()


def tabulate(plan: StudyPlan, results: Results, rule: str = "training_domain") -> StudyTable:
    """Sort the runs of a study into cells.

    Args:
        plan: its runs.
        results: by id, of those that are done.
        rule: of model selection, for DomainBed; one of `domainbed.RULES`.

    Returns:
        The table. A column of DomainBed is a data set, all held-out domains together.
    """
    groups = grouped(plan)
    cells = {}
    for key, runs in groups.items():
        found = [results[run.id] for run in runs if run.id in results]
        names = dict.fromkeys(name for run in firsts(runs) for name in metric_names(run))
        cells[key] = StudyCell(combine(found, rule), len(found), len(runs), tuple(names))
    rows, columns = row_runs(groups), {column: runs[0] for (_, column), runs in groups.items()}
    return StudyTable(
        tuple(rows),
        tuple(dict.fromkeys(column for _, column in cells)),
        cells,
        names_of(rows, plan.study.rows),
        names_of(columns, plan.study.columns),
    )


def firsts(runs: Sequence[Run]) -> list[Run]:
    """Keep one run of each task."""
    return list({(run.task.suite, run.task.title): run for run in runs}.values())


def metric_names(run: Run) -> tuple[str, ...]:
    """Name the metrics of a run's task."""
    return tasks.spec(run.task, run.task_name).metrics


def row_runs(groups: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Run]:
    """Give one run of each row."""
    found: dict[str, Run] = {}
    for (row, _), runs in groups.items():
        found.setdefault(row, runs[0])
    return found


def grouped(plan: StudyPlan) -> dict[tuple[str, str], list[Run]]:
    """Sort the runs of a study by row and column."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for job in plan.jobs:
        key = label(job.run, plan.study.rows), label(job.run, plan.study.columns)
        groups.setdefault(key, []).append(job.run)
    return groups


def names_in(plan: StudyPlan) -> tuple[Names, Names]:
    """Put the rows and the columns of a study into words."""
    rows: dict[str, Run] = {}
    columns: dict[str, Run] = {}
    for job in plan.jobs:
        rows.setdefault(label(job.run, plan.study.rows), job.run)
        columns.setdefault(label(job.run, plan.study.columns), job.run)
    return names_of(rows, plan.study.rows), names_of(columns, plan.study.columns)


def combine(results: Sequence[Result], rule: str) -> Cell | None:
    """Aggregate the finished runs of a cell.

    Args:
        results: of one system; several tasks are averaged, seed by seed.
        rule: of model selection, for DomainBed.

    Returns:
        The cell, its std over seeds (DomainBed: standard error over trials); None without runs, or
        with too few of them for DomainBed's average over held-out domains.
    """
    if not results:
        return None
    if domainbed.is_domainbed(results[0]):
        score = domainbed.scores(results, rule).get("average")
        if score is None:
            return None
        by_trial = {
            seed: trial.mean
            for seed in dict.fromkeys(result.axes.seed for result in results)
            if (
                trial := domainbed.scores([r for r in results if r.axes.seed == seed], rule).get(
                    "average"
                )
            )
        }
        return Cell(
            score.mean, score.error, score.n, None, {}, {}, ("accuracy",), by_seed=by_trial,
            ids=domainbed.chosen_ids(results, rule),
        )  # fmt: skip
    of_tasks: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        of_tasks.setdefault((result.axes.suite, result.axes.task), []).append(result)
    named = [(task, aggregate(rows)) for (_, task), rows in of_tasks.items()]
    cells = [cell for _, cell in named]
    if len(cells) == 1:
        return cells[0]
    whole = {
        seed: statistics.fmean(cell.by_seed[seed] for cell in cells)
        for seed in cells[0].by_seed
        if all(seed in cell.by_seed for cell in cells)
    }
    means = list(whole.values())
    if not means:
        return None
    return Cell(
        statistics.fmean(means),
        spread(means),
        len(means),
        None,
        {f"{task} > {name}": v for task, cell in named for name, v in cell.ood.items()},
        {},
        tuple(name for cell in cells for name in cell.metrics),
        {f"{task} > {n}": m for task, cell in named for n, m in cell.set_metrics.items()},
        whole,
        {f"{task} > {n}": v for task, cell in named for n, v in cell.ood_by_seed.items()},
        averaged([cell.majority for cell in cells]),
        {f"{task} > {n}": v for task, cell in named for n, v in cell.ood_majority.items()},
        frozenset(
            f"{task} > {name}" if name else "" for task, cell in named for name in cell.constant
        ),
        any(cell.recorded for cell in cells),
        tuple(run_id for cell in cells for run_id in cell.ids),
    )


def averaged(values: Sequence[float | None]) -> float | None:
    """Average some values; None unless all are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) > 0 else None


def unequal(plan: StudyPlan) -> dict[str, tuple[str, ...]]:
    """Find the rows whose settings, beyond what the table is about, are not those of the first row.

    Returns:
        Row -> what differs, "trainer.batch_size 16 (dense: 32)"; rows without a difference are
        left out.
    """
    about = (*plan.study.rows, *plan.study.columns)
    found: dict[str, dict[str, None]] = {}
    groups = grouped(plan)
    first: dict[str, tuple[str, dict[str, set[str]]]] = {}
    for (row, column), runs in groups.items():
        settings = told(runs, about)
        name, usual = first.setdefault(column, (row, settings))
        for key in dict.fromkeys([*settings, *usual]):
            here, there = settings.get(key, set()), usual.get(key, set())
            if here != there:
                line = f"{key} {'/'.join(sorted(here))} ({name}: {'/'.join(sorted(there))})"
                found.setdefault(row, {})[line] = None
    return {row: tuple(lines) for row, lines in found.items()}


def told(runs: Sequence[Run], about: Sequence[str]) -> dict[str, set[str]]:
    """List the values of each setting of some runs, without what a table is about."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings().items():
            spoken = key in about or key.partition(".")[0] in about or key.startswith(SPOKEN_OF)
            if not spoken:
                values.setdefault(key, set()).add(show(value))
    return values
