"""The table that a command ends with: tasks by systems, in and out of domain."""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from moe_runner.console import wide_console
from moe_runner.metrics import alike, lower_is_better, named, shown, spread
from moe_runner.report import domainbed
from moe_runner.report.labels import ONE_ANSWER, direction, majority_name, said
from moe_runner.report.repetitions import facts_of, once_per_seed, telling
from moe_runner.report.sheet import NOT_AVAILABLE, to_rich
from moe_runner.runs.result import Axes, Result, Scored
from moe_runner.runs.run import Run
from moe_runner.tasks.gluex import ranked_as

EQUAL = 1e-9  # least difference of two scores, see `ranks_of`


@dataclass(frozen=True)
class Cell:
    """One system on one task, at its best learning rate.

    Args:
        mean: of the primary metric over seeds, fraction.
        std: population standard deviation over seeds.
        n: runs.
        learning_rate: chosen by the mean; None where each task or trial has its own.
        ood: mean of each out-of-domain set's primary metric; None: not available.
        further: the same for the other validation splits (MNLI mismatched).
        metrics: names of the task's metrics.
        set_metrics: names of what each of the other sets was scored by.
        by_seed: the primary metric of each run, by its seed.
        ood_by_seed: the same of each out-of-domain set that all the runs have.
        majority: the primary metric of who always answers the most frequent class, or the mean
            score; None: not recorded, or there is no such answer.
        ood_majority: the same of each out-of-domain set that has it.
        constant: what the runs with one answer to every example were evaluated on: "" is the set
            that selects; a set is named once.
        recorded: whether the runs say that.
        ids: of the runs.
    """

    mean: float
    std: float
    n: int
    learning_rate: float | None
    ood: dict[str, float | None]
    further: dict[str, float | None]
    metrics: tuple[str, ...]
    set_metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    by_seed: dict[int, float] = field(default_factory=dict)
    ood_by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    majority: float | None = None
    ood_majority: dict[str, float] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    recorded: bool = False
    ids: tuple[str, ...] = ()


def base_name(axes: Axes) -> str:
    """Name method and model of a run, and tuning and protocol where they are not the usual ones."""
    parts = [axes.method, axes.model]
    parts += [axes.tuning] if axes.tuning != "full" else []
    parts += [axes.protocol] if axes.protocol != "paper" else []
    return " ".join(parts)


def group(
    results: Sequence[Result], runs: Mapping[str, Run] | None = None
) -> dict[tuple[str, str], list[Result]]:
    """Sort results by task and system; the runs of a group differ in rate and seed only.

    Args:
        results: of any tasks and systems.
        runs: by id, as far as they are known: what a result does not tell.

    Returns:
        Results by (task, system). A task is named with its suite where there are several. A system
        has its base name, and those settings that distinguish it from others on the same task.
    """
    suites = {result.axes.suite for result in results}
    by_task: dict[str, list[tuple[Result, dict[str, Any]]]] = {}
    for result in results:
        axes = result.axes
        name = axes.task if len(suites) == 1 else f"{axes.suite}/{axes.task}"
        facts = facts_of(result, (runs or {}).get(result.id))
        by_task.setdefault(name, []).append((result, facts))
    differing: dict[str, list[str]] = {}  # settings by base name, in their order
    for rows in by_task.values():
        for base in {base_name(row.axes) for row, _ in rows}:
            known = differing.setdefault(base, [])
            found = telling([facts for row, facts in rows if base_name(row.axes) == base])
            known += [key for key in found if key not in known]
    grouped: dict[tuple[str, str], list[Result]] = {}
    for task, rows in by_task.items():
        for row, facts in rows:
            base = base_name(row.axes)
            experts = facts.get("method.num_experts")
            told = [said(key, facts.get(key), experts) for key in differing[base]]
            grouped.setdefault((task, ", ".join([base, *told])), []).append(row)
    return grouped


def aggregate(results: Sequence[Result]) -> Cell:
    """Choose the best learning rate by the mean over seeds, and read the OOD sets there.

    Args:
        results: of the runs of one system on one task; at least one.

    Returns:
        The cell; of rates with fewer seeds than another none is chosen.

    Raises:
        ConfigError: if two runs of one rate and seed are no repetitions of each other.

    Source: EMoE's protocol: per learning rate the mean of the best-epoch scores over seeds.
    """
    by_rate: dict[float, list[Result]] = {}
    for result in once_per_seed(results):
        by_rate.setdefault(result.axes.learning_rate, []).append(result)
    most = max(map(len, by_rate.values()))
    best = min if lower_is_better(results[0].metrics) else max
    rate, chosen = best(
        ((rate, own) for rate, own in by_rate.items() if len(own) == most),
        key=lambda item: statistics.fmean(result.primary for result in item[1]),
    )
    scores = [result.primary for result in chosen]
    return Cell(
        statistics.fmean(scores),
        spread(scores),
        len(scores),
        rate,
        means([result.ood_metrics for result in chosen]),
        means([dict(list(result.id_metrics.items())[1:]) for result in chosen]),
        chosen[0].metrics,
        {
            name: tuple(scores.metrics)
            for result in chosen
            for name, scores in {**result.id_metrics, **result.ood_metrics}.items()
            if scores is not None
        },
        {result.axes.seed: result.primary for result in chosen},
        {
            name: {r.axes.seed: s.primary for r in chosen if (s := r.ood_metrics[name]) is not None}
            for name in chosen[0].ood_metrics
            if all(result.ood_metrics.get(name) is not None for result in chosen)
        },
        **plain_facts(chosen),
    )


def plain_facts(chosen: Sequence[Result]) -> dict[str, Any]:
    """Collect what is known of those who answer without reading, as fields of `Cell`."""
    first = [next(iter(result.id_metrics.values()), None) for result in chosen]
    majority = [s.majority for s in first if s is not None and s.majority is not None]
    ood: dict[str, list[float]] = {}
    constant = {"" for s in first if s is not None and s.constant}
    for result in chosen:
        for name, scores in result.ood_metrics.items():
            if scores is not None and scores.majority is not None:
                ood.setdefault(name, []).append(scores.majority)
            if scores is not None and scores.constant:
                constant.add(name)
    return {
        "majority": statistics.fmean(majority) if majority else None,
        "ood_majority": {name: statistics.fmean(values) for name, values in ood.items()},
        "constant": frozenset(constant),
        "recorded": any(s is not None and s.constant is not None for s in first),
        "ids": tuple(result.id for result in chosen),
    }


def means(scored: Sequence[Scored]) -> dict[str, float | None]:
    """Average the primary metric of each set over runs; None where no run has it.

    Args:
        scored: of each run.
    """
    found: dict[str, float | None] = {}
    for name in scored[0]:
        known = [scores.primary for run in scored if (scores := run.get(name)) is not None]
        found[name] = statistics.fmean(known) if known else None
    return found


def mean_ranks(cells: dict[tuple[str, str], Cell]) -> dict[str, float]:
    """Rank the systems on every OOD set that all of them have, 1 is best, and average the ranks.

    Args:
        cells: by (task, system).

    Returns:
        Mean rank by system; equal scores share the mean of their ranks. Empty for fewer than two
        systems, or without a common OOD set. Sets that count as one, see `ranked_as`, are ranked
        by the mean of their scores.

    Source: EMoE reports OOD as the mean rank over GLUE-X sets; ranks depend on who is ranked.
    """
    systems = list(dict.fromkeys(name for _, name in cells))
    ranks: dict[str, list[float]] = {name: [] for name in systems}
    for task in dict.fromkeys(task for task, _ in cells):
        rows = {name: cells[task, name] for name in systems if (task, name) in cells}
        if len(rows) < max(2, len(systems)):
            continue
        counted: dict[str, list[str]] = {}
        for ood in next(iter(rows.values())).ood:
            known = all(cell.ood.get(ood) is not None for cell in rows.values())
            if known and (one := ranked_as(task, ood)) is not None:
                counted.setdefault(one, []).append(ood)
        for sets in counted.values():
            scores = {
                name: statistics.fmean(
                    value for ood in sets if (value := cell.ood[ood]) is not None
                )
                for name, cell in rows.items()
            }
            lower = any(
                lower_is_better(cell.set_metrics.get(ood, ()))
                for cell in rows.values()
                for ood in sets
            )
            for name, rank in ranks_of(scores, lower=lower).items():
                ranks[name].append(rank)
    return {name: statistics.fmean(values) for name, values in ranks.items() if values}


def ranks_of(scores: Mapping[str, float], *, lower: bool) -> dict[str, float]:
    """Rank some scores, 1 is best; equal ones share the mean of their ranks.

    Means of the same sum differ in the last digit of a float by the order of what was added, so
    scores are equal if they differ by less than EQUAL, relative to the largest number there is (at
    least 1): far below what one example makes of a metric.

    Args:
        scores: finite, by name.
        lower: the smallest is best.

    Returns:
        Rank by name.
    """
    tolerance = EQUAL * max(1.0, *(abs(score) for score in scores.values()))
    ordered = sorted(scores, key=scores.__getitem__, reverse=not lower)
    ranks: dict[str, float] = {}
    tied: list[str] = []
    for place, name in enumerate(ordered):
        tied.append(name)
        following = ordered[place + 1 : place + 2]
        if not following or abs(scores[following[0]] - scores[name]) > tolerance:
            ranks |= dict.fromkeys(tied, place + 1 - (len(tied) - 1) / 2)
            tied = []
    return ranks


def build_table(
    results: Sequence[Result],
    gaps: Mapping[str, str],
    title: str = "",
    runs: Mapping[str, Run] | None = None,
) -> Table:
    """Lay out results as a table; numbers are percent.

    Args:
        results: of all runs to show.
        gaps: reason by task without a result.
        title: above the table.
        runs: see `group`.
    """
    cells = {key: aggregate(rows) for key, rows in group(results, runs).items()}
    tasks = list(dict.fromkeys(task for task, _ in cells))
    systems = list(dict.fromkeys(name for _, name in cells))
    table = Table(
        title=title or None,
        title_justify="left",
        caption="Percent (perplexity: as it is); epoch and rate chosen on the ID set shown",
        caption_justify="left",
    )
    for name in ("task", "metric", "system"):
        table.add_column(name, no_wrap=name != "metric")
    for name in ("ID", "OOD", "n"):
        table.add_column(name, justify="left" if name == "OOD" else "right")
    marked = False
    for task in tasks:
        for position, name in enumerate(n for n in systems if (task, n) in cells):
            cell = cells[task, name]
            metric = f"{named(cell.metrics)} {direction(cell.metrics)}"
            head = (task, metric) if position == 0 else ("", "")
            further = f" ({by_set(cell.further, cell.set_metrics)})" if cell.further else ""
            ood = by_set(cell.ood, cell.set_metrics, cell.constant)
            marked = marked or bool(cell.constant)
            table.add_row(*head, name, score(cell) + further, ood, str(cell.n))
        known = [cells[task, n] for n in systems if (task, n) in cells]
        if (plain := next((c for c in known if c.majority is not None), None)) is not None:
            ood = by_set(dict(plain.ood_majority), plain.set_metrics)
            words = majority_name([plain.metrics]), shown(plain.majority or 0.0, plain.metrics)
            table.add_row("", "", *words, ood, "")
        table.add_section()
    for task, reason in gaps.items():
        table.add_row(task, "", NOT_AVAILABLE, "", reason, "0")
    if marked:
        table.caption = f"{table.caption}; {ONE_ANSWER} every example got the same answer"
    complete = [name for name in systems if all((task, name) in cells for task in tasks)]
    ranks = mean_ranks(cells)
    if len(tasks) > 1:
        for position, name in enumerate(complete):
            own = [cells[task, name] for task in tasks]
            metrics = [n for cell in own for n in cell.metrics]
            average = shown(statistics.fmean(cell.mean for cell in own), metrics)
            if not alike(cell.metrics for cell in own):
                average = ""  # of percentages and perplexities it means nothing
            rank = f"mean rank {ranks[name]:.2f} of {len(systems)}" if name in ranks else ""
            if average or rank:
                table.add_row("average" if position == 0 else "", "", name, average, rank, "")
    return table


def score(cell: Cell) -> str:
    """Show mean and, for several runs, the population standard deviation, in percent."""
    spread = f" ± {shown(cell.std, cell.metrics)}" if cell.n > 1 else ""
    mark = f" {ONE_ANSWER}" if "" in cell.constant else ""
    return f"{shown(cell.mean, cell.metrics)}{spread}{mark}"


def by_set(
    scores: Mapping[str, float | None],
    metrics: Mapping[str, tuple[str, ...]],
    constant: Container[str] = (),
) -> str:
    """Show each set with its score, in percent unless its metric is no fraction.

    Args:
        scores: by set.
        metrics: names, by set.
        constant: sets that get a mark, see `Cell`.
    """
    return ", ".join(
        f"{name.removeprefix('validation_')} "
        + (NOT_AVAILABLE if value is None else shown(value, metrics.get(name, ())))
        + (f" {ONE_ANSWER}" if name in constant else "")
        for name, value in scores.items()
    )


def headline(result: Result) -> str:
    """Sum up a result in one line."""
    ood = [
        f"{name} {NOT_AVAILABLE if scores is None else shown(scores.primary, [*scores.metrics])}"
        for name, scores in result.ood_metrics.items()
    ]
    figures = named(result.metrics, "+")
    return (
        f"{figures} {shown(result.primary, result.metrics)} at epoch {result.best_epoch:g}"
        + (f"; out of domain: {', '.join(ood)}" if ood else "")
        + f"; {result.wall_seconds:.0f} s"
    )


def print_results(
    results: Sequence[Result], gaps: Mapping[str, str], runs: Mapping[str, Run] | None = None
) -> None:
    """Print what a command ends with: a table of tasks, and one per data set of DomainBed.

    Args:
        results: of all runs to show.
        gaps: reason by task without a result.
        runs: see `group`.
    """
    of_domains = [result for result in results if domainbed.is_domainbed(result)]
    if not of_domains:
        print_table(results, gaps, runs=runs)
        return
    others = [result for result in results if not domainbed.is_domainbed(result)]
    print_table(others, {}, runs=runs)
    for suite in dict.fromkeys(result.axes.suite for result in of_domains):
        rows = [result for result in of_domains if result.axes.suite == suite]
        for sheet in domainbed.build_sheets(group(rows, runs), gaps):
            wide_console().print(to_rich(sheet))
        gaps = {}


def print_table(
    results: Sequence[Result],
    gaps: Mapping[str, str],
    title: str = "",
    runs: Mapping[str, Run] | None = None,
) -> None:
    """Print the table of tasks, see `build_table`."""
    if results or gaps:
        wide_console().print(build_table(results, gaps, title, runs))
