"""Expand settings to runs: the members of a suite, times learning rates, times seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_runner import tasks
from moe_runner.backbones.weights import find_weights
from moe_runner.config import ConfigError, Dense, Settings, Trainer
from moe_runner.runs.processes import world_size
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.tasks.base import Recipe


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
    spec = tasks.spec(settings.task.suite, name)
    ood = tuple(
        chosen for chosen in settings.task.ood if chosen == "all" or f"ood/{chosen}" in data
    )
    rates = learning_rates(settings, spec.recipe)
    trainer = resolve(trainer, spec.recipe, tuning.name)
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
            trainer=replace(trainer, learning_rate=float(f"{rate:.12g}")),
            seed=seed,
            form=tasks.form(spec, settings.model.family),
            data=data,
            weights=weights,
        )
        for rate in rates
        for seed in (search.seeds or (settings.seed,))
    ]


def learning_rates(settings: Settings, recipe: Recipe) -> tuple[float, ...]:
    """List the rates to try: those of the search, the user's one, or the task's or tuning's own."""
    if settings.trainer.learning_rate is not None:
        return (settings.trainer.learning_rate,)
    scale = settings.model.lr_scale
    if settings.search.tune_learning_rate:
        return tuple(rate * scale for rate in settings.tuning.learning_rates)
    if recipe.learning_rate is not None and settings.tuning.name == "full":
        return (recipe.learning_rate * scale,)
    return (settings.tuning.learning_rate * scale,)


def resolve(trainer: Trainer, recipe: Recipe, tuning: str) -> Trainer:
    """Put the task's own values where the user gave none.

    Args:
        trainer: null means the task's own.
        recipe: the task's.
        tuning: name of the tuning, on which the epochs depend.

    Returns:
        The trainer; epochs are 1 where only the number of updates is given.

    Raises:
        ConfigError: if the micro-batches, over all processes, are not of equal size.
    """
    names = ("max_steps", "batch_size", "eval_batch_size", "eval_steps", "weight_decay")
    own = {
        name: getattr(recipe, name)
        for name in (*names, "schedule", "warmup_ratio")
        if getattr(trainer, name) is None
    }
    patience = recipe.patience if trainer.patience is None else trainer.patience
    epochs = trainer.epochs or recipe.epochs.get(tuning, 1)
    if trainer.epochs and trainer.max_steps is None:
        own.pop("max_steps")  # the user's epochs win over the task's updates
    resolved = replace(trainer, patience=patience, epochs=epochs, **own)
    assert resolved.batch_size is not None
    if resolved.batch_size % trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate={trainer.accumulate} does not divide "
            f"trainer.batch_size={resolved.batch_size}; batch_size is the size of one update"
        )
    if resolved.batch_size % (trainer.accumulate * world_size()):
        times = f" times trainer.accumulate={trainer.accumulate}" if trainer.accumulate > 1 else ""
        raise ConfigError(
            f"WORLD_SIZE={world_size()}{times} does not divide "
            f"trainer.batch_size={resolved.batch_size}; batch_size is the size of one update over "
            "all processes"
        )
    return resolved


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
