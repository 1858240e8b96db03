"""Expand settings to runs: the members of a suite, times learning rates, times seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_runner import tasks
from moe_runner.backbones.weights import find_weights
from moe_runner.config import ConfigError, Dense, Settings
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store


@dataclass(frozen=True)
class Plan:
    """The runs of one command, in their order, and the members that are skipped.

    Args:
        runs: what is to be done.
        gaps: reason by member task, with `task.skip_missing=true`.
    """

    runs: tuple[Run, ...]
    gaps: dict[str, str]


def make_plan(settings: Settings) -> Plan:
    """Find weights and data, without loading them, and list the runs.

    Args:
        settings: validated.

    Returns:
        The plan. A Hub that does not answer costs 2 s, once per process.

    Raises:
        ConfigError: with everything that is missing, one line each.
    """
    memo = Path(settings.paths.cache) / "hashes.json"
    weights = find_weights(settings.model)
    problems = [] if weights.problem is None else [weights.problem]
    gaps: dict[str, str] = {}
    members: list[str] = []
    for name in settings.task.members:
        missing = [s.problem for s in tasks.sources(settings.task, name).values() if s.problem]
        if missing and settings.task.skip_missing:
            gaps[name] = "; ".join(missing)
        else:
            members.append(name)
            problems += missing
    if not members and not problems:
        problems = list(gaps.values())
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    fingerprint = weights.fingerprint(memo)
    runs = [
        run
        for name in members
        for run in runs_of_task(
            settings, name, tasks.fingerprint(settings.task, name, memo), fingerprint
        )
    ]
    return Plan(tuple(runs), gaps)


def runs_of_task(settings: Settings, name: str, data: dict[str, str], weights: str) -> list[Run]:
    """List the runs of one member task: learning rates times seeds.

    Args:
        settings: validated.
        name: the member task.
        data: fingerprint of each split.
        weights: fingerprint of the backbone.
    """
    tuning, trainer, search = settings.tuning, settings.trainer, settings.search
    rates = tuning.learning_rates if search.tune_learning_rate else (tuning.learning_rate,)
    scaled = [rate * settings.model.lr_scale for rate in rates]
    if trainer.learning_rate is not None:
        scaled = [trainer.learning_rate]
    ood = tuple(
        chosen for chosen in settings.task.ood if chosen == "all" or f"ood/{chosen}" in data
    )
    epochs = trainer.epochs or tasks.spec(settings.task.suite, name).epochs[tuning.name]
    return [
        Run(
            method=settings.method,
            protocol=settings.protocol,
            model=replace(settings.model, path=absolute(settings.model.path)),
            tuning=tuning,
            task=replace(
                settings.task,
                members=(name,),
                ood=ood,
                data_dir=absolute(settings.task.data_dir),
                ood_dir=absolute(settings.task.ood_dir),
            ),
            trainer=replace(trainer, learning_rate=float(f"{rate:.12g}"), epochs=epochs),
            seed=seed,
            data=data,
            weights=weights,
        )
        for rate in scaled
        for seed in (search.seeds or (settings.seed,))
    ]


def absolute(path: str | None) -> str | None:
    """Make a path independent of the working directory: a run is read again from anywhere."""
    return None if path is None else str(Path(path).expanduser().resolve())


def show_plan(plan: Plan, store: Store) -> None:
    """Print the runs of a plan and which of them are done."""
    for run in plan.runs:
        print(
            f"{run.id}  {store.status(run.id).state:<11}  {run.label}, {run.trainer.epochs} epochs"
        )
    for name, reason in plan.gaps.items():
        print(f"{'':16}  skipped      {name}: {reason}")
    done = sum(store.status(run.id).state == "done" for run in plan.runs)
    print(f"{len(plan.runs)} runs, {done} done, {len(plan.runs) - done} to do")


def stored_baselines(plan: Plan, store: Store) -> tuple[list[dict[str, Any]], str]:
    """Find the dense runs of equal settings, to stand beside the results of another method.

    Returns:
        Their results, and a line that says how to make them if one is missing.
    """
    twins = [replace(run, method=Dense()) for run in plan.runs if run.method != Dense()]
    found = [store.result(twin.id) for twin in twins]
    if not twins or all(result is not None for result in found):
        return [result for result in found if result is not None], ""
    return (
        [result for result in found if result is not None],
        "no dense baseline of these settings is stored: the same command with method=dense adds it",
    )
