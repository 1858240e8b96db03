"""DomainBed's selection rules, applied to stored results, and the leave-one-out table.

Every checkpoint of a run has the accuracy of both splits of every domain. A rule chooses a
checkpoint and a learning rate without looking at what is reported: the accuracy on the larger split
(`in`) of the held-out domain.

Source: DomainBed, arXiv:2007.01434, section 3 (and its code, for the splits).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_runner.metrics import spread
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet
from moe_runner.runs.result import Checkpoint, Result

RULES = ("training_domain", "leave_one_domain_out", "oracle")


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Args:
        validation: what it went by, fraction.
        test: accuracy on the held-out domain, fraction.
        step: update of the checkpoint.
        learning_rate: of the run.
    """

    validation: float
    test: float
    step: int
    learning_rate: float


@dataclass(frozen=True)
class Score:
    """Accuracy over trials.

    Args:
        mean: fraction.
        error: standard error of the mean: population standard deviation / sqrt(n), as DomainBed
            computes it.
        n: trials.
    """

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        spread = f" ± {100 * self.error:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"


def is_domainbed(result: Result) -> bool:
    """Tell whether a result is of a run that held domains out: its checkpoints have them."""
    return any(checkpoint.domains for checkpoint in result.learning_curve[:1])


def held_out(result: Result) -> tuple[str, tuple[str, ...]]:
    """Take the task of a result apart: data set, held-out domains."""
    data_set, _, domains = result.axes.task.partition("/")
    return data_set, tuple(domains.split("+"))


def training_domain(run: Result) -> Choice:
    """Choose the checkpoint with the best mean accuracy on the training domains' out-splits.

    Args:
        run: with one held-out domain.

    Returns:
        The choice; of equal checkpoints the earliest.
    """
    _, (test,) = held_out(run)
    return max(
        (
            choice(
                run,
                checkpoint,
                statistics.fmean(
                    accuracy.out_split for d, accuracy in checkpoint.domains.items() if d != test
                ),
            )
            for checkpoint in run.learning_curve
        ),
        key=lambda c: c.validation,
    )


def oracle(run: Result) -> Choice:
    """Take the last checkpoint; its validation accuracy is on the test domain's out-split.

    The test domain chooses the learning rate only: no early stopping by it.

    Args:
        run: with one held-out domain.
    """
    _, (test,) = held_out(run)
    last = run.learning_curve[-1]
    return choice(run, last, last.domains[test].out_split)


def leave_one_domain_out(run: Result, pairs: Sequence[Result]) -> Choice | None:
    """Choose the checkpoint that does best on domains held out together with the test domain.

    Args:
        run: with one held-out domain.
        pairs: runs with the same rate and trial and two held-out domains, any of them.

    Returns:
        The choice: for each checkpoint, the mean over the other domains of the accuracy (in-split)
        on that domain in the run that held out both. None if a pair is missing.
    """
    _, (test,) = held_out(run)
    others = [domain for domain in run.learning_curve[-1].domains if domain != test]
    curves: list[dict[int, float]] = []
    for other in others:
        of_pair = [pair for pair in pairs if set(held_out(pair)[1]) == {test, other}]
        if not of_pair:
            return None
        curve = of_pair[0].learning_curve
        curves.append({c.step: c.domains[other].in_split for c in curve})
    found = [
        choice(run, checkpoint, statistics.fmean(curve[checkpoint.step] for curve in curves))
        for checkpoint in run.learning_curve
        if all(checkpoint.step in curve for curve in curves)
    ]
    return max(found, key=lambda c: c.validation, default=None)


def choice(run: Result, checkpoint: Checkpoint, validation: float) -> Choice:
    """Read what is reported at a checkpoint."""
    _, (test,) = held_out(run)
    return Choice(
        validation,
        checkpoint.domains[test].in_split,
        checkpoint.step,
        run.axes.learning_rate,
    )


def select(results: Sequence[Result], rule: str) -> dict[str, dict[int, Choice]]:
    """Apply a rule to all runs of one system on one data set.

    Args:
        results: any rates, trials and held-out domains.
        rule: one of `RULES`.

    Returns:
        Held-out domain -> trial seed -> the choice at the best learning rate. What a rule has no
        runs for is left out.
    """
    found: dict[str, dict[int, Choice]] = {}
    for run in results:
        domains = held_out(run)[1]
        if len(domains) != 1:
            continue
        axes = run.axes
        if rule == "leave_one_domain_out":
            chosen = leave_one_domain_out(
                run,
                [
                    other
                    for other in results
                    if len(held_out(other)[1]) == 2
                    and other.axes.seed == axes.seed
                    and other.axes.learning_rate == axes.learning_rate
                ],
            )
        else:
            chosen = {"training_domain": training_domain, "oracle": oracle}[rule](run)
        trials = found.setdefault(domains[0], {})
        best = trials.get(axes.seed)
        if chosen is not None and (best is None or chosen.validation > best.validation):
            trials[axes.seed] = chosen
    return {domain: trials for domain, trials in found.items() if trials}


def chosen_ids(results: Sequence[Result], rule: str) -> tuple[str, ...]:
    """List the runs that a rule reports, or decides by: those at the learning rates it chose.

    Args:
        results: of one system on one data set.
        rule: one of `RULES`.

    Returns:
        Ids in the order of the results; runs with two domains held out only where the rule asks
        them.
    """
    rates = {
        (domain, seed, choice.learning_rate)
        for domain, trials in select(results, rule).items()
        for seed, choice in trials.items()
    }
    most = 2 if rule == "leave_one_domain_out" else 1
    return tuple(
        run.id
        for run in results
        if len(domains := held_out(run)[1]) <= most
        and any((domain, run.axes.seed, run.axes.learning_rate) in rates for domain in domains)
    )


def score(values: Sequence[float]) -> Score:
    """Average over trials; at least one."""
    error = spread(values) / math.sqrt(len(values))
    return Score(statistics.fmean(values), error, len(values))


def scores(results: Sequence[Result], rule: str) -> dict[str, Score]:
    """Average the reported accuracy over trials.

    Args:
        results: of one system on one data set.
        rule: one of `RULES`.

    Returns:
        Held-out domain -> score; and "average" over the domains of the data set, of the trials that
        have them all.
    """
    chosen = select(results, rule)
    found = {d: score([c.test for c in trials.values()]) for d, trials in chosen.items()}
    domains = domains_of(results)
    complete = set.intersection(*(set(chosen.get(domain, {})) for domain in domains))
    if complete:
        found["average"] = score(
            [statistics.fmean(chosen[d][seed].test for d in domains) for seed in sorted(complete)]
        )
    return found


def domains_of(results: Sequence[Result]) -> list[str]:
    """List the domains of the data set that results are of."""
    return list(results[0].learning_curve[-1].domains)


def build_sheets(
    grouped: Mapping[tuple[str, str], Sequence[Result]], gaps: Mapping[str, str]
) -> list[Sheet]:
    """Lay out leave-one-out tables: rules and systems by held-out domain, in percent.

    Args:
        grouped: results by (task, system), of one suite.
        gaps: reason by task without a result.

    Returns:
        A sheet per data set, and one of the gaps if there are any.
    """
    by_set: dict[str, dict[str, list[Result]]] = {}
    for (_, system), rows in grouped.items():
        for row in rows:
            data_set, _ = held_out(row)
            by_set.setdefault(data_set, {}).setdefault(system, []).append(row)
    sheets = [build_sheet(name, systems) for name, systems in by_set.items()]
    if gaps:
        rows_of_gaps = tuple((Entry(task), Entry(reason)) for task, reason in gaps.items())
        sheets.append(Sheet(title="not run", header=("task", "why"), rows=rows_of_gaps, caption=""))
    return sheets


def build_sheet(title: str, systems: Mapping[str, Sequence[Result]]) -> Sheet:
    """Lay out the results of one data set.

    Args:
        title: names the data set.
        systems: results by system.
    """
    first = next(iter(systems.values()))[0]
    domains = domains_of([first])
    pairs = any(len(held_out(row)[1]) == 2 for rows in systems.values() for row in rows)
    hint = "" if pairs else "; leave_one_domain_out needs the same command with task.pairs=true"
    rows = []
    names = (*domains, "average")
    for rule in RULES:
        found = {system: scores(results, rule) for system, results in systems.items()}
        bests = {name: best(found, name) for name in names}
        for position, (system, known) in enumerate(found.items()):
            cells = [Entry("-")] * (len(domains) + 1)
            for number, name in enumerate(names):
                if name in known:
                    cells[number] = Entry(str(known[name]), system in bests[name])
            trials = {score.n for score in known.values()}
            n = "-".join(str(n) for n in sorted({min(trials), max(trials)})) if trials else "0"
            if not known:
                cells = [Entry(NOT_AVAILABLE), *[Entry("")] * len(domains)]
            head = Entry(rule if position == 0 else ""), Entry(system)
            rows.append((*head, *cells, Entry(n)))
    return Sheet(
        title=f"{title}: accuracy on the held-out domain",
        header=("selection", "system", *(f"{d} (accuracy ↑)" for d in domains), "average ↑", "n"),
        rows=tuple(rows),
        caption="Percent; mean ± standard error over n trials, checkpoint and rate chosen by the "
        f"rule on the left (oracle: last checkpoint, rate by the test domain){hint}",
        words=2,
        name=f"domains-{title}",
    )


def best(found: Mapping[str, Mapping[str, Score]], name: str) -> frozenset[str]:
    """Find the best systems of a column among those with the most trials; none if all are equal.

    Args:
        found: scores by system and column.
        name: of the column.
    """
    known = {system: each[name] for system, each in found.items() if name in each}
    most = max((score.n for score in known.values()), default=0)
    means = {system: score.mean for system, score in known.items() if score.n == most}
    first = max(means.values(), default=0.0)
    equal = frozenset(
        system for system, mean in means.items() if math.isclose(mean, first, rel_tol=1e-9)
    )
    return equal if len(equal) < len(means) or len(means) < 2 else frozenset()
