"""The cells of a study: which runs belong to each, what they give, and how rows compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_runner.metrics import lower_is_better, scaled, spread
from moe_runner.options.errors import show
from moe_runner.report import domainbed
from moe_runner.report.summary import Cell, aggregate, mean_ranks
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
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], StudyCell]

    def known(self, row: str, columns: Sequence[str]) -> list[Cell] | None:
        """Give the results of a row in some columns; None unless each has one."""
        found = [self.cells.get((row, column)) for column in columns]
        cells = [each.cell for each in found if each is not None and each.cell is not None]
        return cells if len(cells) == len(columns) > 0 else None

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

    def ranks(self, columns: Sequence[str]) -> dict[str, float]:
        """Rank the rows on the out-of-domain sets of some columns; see `mean_ranks`."""
        return mean_ranks(
            {
                (column, row): cell.cell
                for (row, column), cell in self.cells.items()
                if column in columns and cell.cell is not None
            }
        )

    def best(self, column: str) -> str | None:
        """Find the best row of a column; None if it has no result."""
        found = {
            row: cells[0] for row in self.rows if (cells := self.known(row, [column])) is not None
        }
        if not found:
            return None
        better = min if lower_is_better(next(iter(found.values())).metrics) else max
        return better(found, key=lambda row: found[row].mean)


def alike(metrics: Sequence[Sequence[str]]) -> bool:
    """Tell whether the scores of some cells have one unit and one direction."""
    return len({(scaled(1.0, names), lower_is_better(names)) for names in metrics}) <= 1


def tabulate(plan: StudyPlan, results: Results, rule: str = "training_domain") -> StudyTable:
    """Sort the runs of a study into cells.

    Args:
        plan: its runs.
        results: by id, of those that are done.
        rule: of model selection, for DomainBed; one of `domainbed.RULES`.

    Returns:
        The table. A column of DomainBed is a data set, all held-out domains together.
    """
    cells = {}
    for key, runs in grouped(plan).items():
        found = [results[run.id] for run in runs if run.id in results]
        cells[key] = StudyCell(combine(found, rule), len(found), len(runs))
    return StudyTable(
        tuple(dict.fromkeys(row for row, _ in cells)),
        tuple(dict.fromkeys(column for _, column in cells)),
        cells,
    )


def grouped(plan: StudyPlan) -> dict[tuple[str, str], list[Run]]:
    """Sort the runs of a study by row and column."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for job in plan.jobs:
        key = label(job.run, plan.study.rows), label(job.run, plan.study.columns)
        groups.setdefault(key, []).append(job.run)
    return groups


def label(run: Run, keys: Sequence[str]) -> str:
    """Name what a run is in some keys: axes (method, model, task), or options of a group."""
    axes = run.axes()
    if run.form == "domain_generalisation":
        axes["task"] = axes["task"].partition("/")[0]  # the data set
    words = []
    for key in keys:
        group, _, name = key.partition(".")
        if not name:
            words.append(str(axes[key]))
        elif (value := getattr(getattr(run, group), name, None)) is not None:  # null: the usual
            words.append(f"{name}={show(value)}")
    return " ".join(words)


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
        return Cell(score.mean, score.error, score.n, None, {}, {}, ("accuracy",), by_seed=by_trial)
    tasks = dict.fromkeys(result.axes.task for result in results)
    cells = [aggregate([r for r in results if r.axes.task == task]) for task in tasks]
    if len(cells) == 1:
        return cells[0]
    by_seed: dict[int, list[float]] = {}
    for result in results:
        axes = result.axes
        if axes.learning_rate == cells[list(tasks).index(axes.task)].learning_rate:
            by_seed.setdefault(axes.seed, []).append(result.primary)
    whole = {
        seed: statistics.fmean(values)
        for seed, values in by_seed.items()
        if len(values) == len(tasks)
    }
    means = list(whole.values())
    if not means:
        return None
    named = list(zip(tasks, cells, strict=True))
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
    )


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
