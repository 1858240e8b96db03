"""Which runs are repetitions: alike in all that can change a number, but for rate and seed.

A run's settings leave out options at their neutral value (see `options.fields.later`), what its
data hold and what the model's options say. Here they are put back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from moe_runner.options.errors import ConfigError, show
from moe_runner.options.settings import options_class
from moe_runner.report.labels import HASHES
from moe_runner.runs.identity import identifying
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run, digest_of, plain

FURTHER = (  # what is told only of runs that their settings do not tell apart
    "task.data", "model.name", "model.family", "model.lora_targets",
)  # fmt: skip
OOD = "task.ood"  # trains nothing: runs that differ in it alone are one repetition
RATE_AND_SEED = ("learning_rate", "seed")
DIGITS = 8  # of an id, in messages


@cache
def unsaid(method: str, suite: str) -> Mapping[str, Any]:
    """Say what the options mean that the settings of a run do not name.

    Args:
        method: its name.
        suite: of the task.

    Returns:
        Value by key: of `later` the neutral one, of `seldom` the default.
    """
    found = {}
    for group in ("method", "protocol", "tuning", "task", "trainer"):
        cls = options_class(group, {"method": method, "task": suite}.get(group, ""))
        for option in dataclasses.fields(cls) if cls is not None else ():
            if "neutral" in option.metadata:
                found[f"{group}.{option.name}"] = plain(option.metadata["neutral"])
            elif isinstance(option.metadata.get("identity"), tuple):
                found[f"{group}.{option.name}"] = plain(option.default)
    return found


def of_data(data: Mapping[str, str]) -> dict[str, Any]:
    """Say what data a run was trained on, and which out-of-domain sets it has."""
    sets = [split.partition("/")[2] for split in data if split.startswith("ood/")]
    return {"task.data": digest_of(data), OOD: sets}


def of_model(run: Run) -> dict[str, Any]:
    """List the model's options that can change a number: no result has them."""
    return {
        f"model.{option.name}": plain(getattr(run.model, option.name))
        for option in identifying(run.model)
    }


def facts_of(of: Run | Result, run: Run | None = None) -> dict[str, Any]:
    """List all that can change a number of a run, but for its axes, and its out-of-domain sets.

    Args:
        of: the run, or what it found.
        run: the run of a result, if it is known.
    """
    if isinstance(of, Run):
        run, axes = of, of.axes()
        settings: Mapping[str, Any] = of.settings()
    else:
        axes, settings = asdict(of.axes), of.settings
    model = {} if run is None else of_model(run)
    return {**unsaid(axes["method"], axes["suite"]), **of_data(of.data), **model, **settings}


def telling(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the keys that tell runs of one method on one task apart.

    Args:
        facts: see `facts_of`.
    """
    keys = dict.fromkeys(key for each in facts for key in each if key not in (*FURTHER, OOD))
    found = [key for key in keys if len({show(each.get(key)) for each in facts}) > 1]
    return [*found, *further(facts, found, FURTHER)]


def further(
    facts: Sequence[Mapping[str, Any]], known: Sequence[str], keys: Sequence[str]
) -> list[str]:
    """List those of some keys without which runs would not be told apart.

    Args:
        facts: of the runs.
        known: keys that tell them apart already.
        keys: to choose from, in this order.
    """
    found: list[str] = []
    for key in keys:
        values: dict[tuple[str, ...], set[str]] = {}
        for each in facts:
            if key in each:
                alike = tuple(show(each.get(name)) for name in (*known, *found))
                values.setdefault(alike, set()).add(show(each[key]))
        if any(len(of_alike) > 1 for of_alike in values.values()):
            found.append(key)
    return found


def once_per_seed(results: Sequence[Result]) -> list[Result]:
    """Keep one result of each rate and seed: that with the most out-of-domain sets, or the last.

    Args:
        results: of one cell of a table.

    Raises:
        ConfigError: if two runs of one rate and seed are no repetitions of each other.
    """
    found: dict[tuple[float, int], Result] = {}
    for result in results:
        key = result.axes.learning_rate, result.axes.seed
        other = found.get(key)
        if other is not None:
            refuse(other, result, "a table would count them as one: name it in rows or columns")
        if other is None or sets_of(result) >= sets_of(other):
            found[key] = result
    return list(found.values())


def sets_of(result: Result) -> int:
    """Count the out-of-domain sets that a result has."""
    return sum(scores is not None for scores in result.ood_metrics.values())


def refuse(one: Run | Result, other: Run | Result, why: str) -> None:
    """Refuse two runs that differ in more than their out-of-domain sets.

    Args:
        one: a run, or what it found.
        other: another with the same rate and seed.
        why: ends the message.

    Raises:
        ConfigError: with their ids and what differs.
    """
    if one.id != other.id and (lines := list(differences(one, other))):
        ids = f"{one.id[:DIGITS]} and {other.id[:DIGITS]}"
        raise ConfigError(f"the runs {ids} have one rate and seed and differ in "
                          f"{', '.join(lines)}; {why}")  # fmt: skip


def differences(one: Run | Result, other: Run | Result) -> Iterator[str]:
    """Say in what two runs differ: "task.train_fraction (1.0, 0.5)"; out-of-domain sets count not.

    Of runs with other axes only those are said. Results do not tell the model's options, so these
    are suspected where nothing else differs.
    """
    axes, facts = (
        [axes_of(each) for each in (one, other)],
        [facts_of(each) for each in (one, other)],
    )
    same_sets = show(facts[0].pop(OOD)) == show(facts[1].pop(OOD))
    found = list(unequal(*axes)) or list(unequal(*facts))
    if not found and same_sets and isinstance(one, Result):
        found = ["options of the model"]
    yield from found


def unequal(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """Say which values differ; of hashes only that they do."""
    for key in dict.fromkeys((*left, *right)):
        values = show(left.get(key)), show(right.get(key))
        if values[0] != values[1]:
            yield key if key in HASHES else f"{key} ({', '.join(values)})"


def axes_of(of: Run | Result) -> dict[str, Any]:
    """Give the axes of a run, or of what it found."""
    return of.axes() if isinstance(of, Run) else asdict(of.axes)
