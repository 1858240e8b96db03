"""Expand settings to runs: the members of a suite, times learning rates, times seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from moe_runner import tasks
from moe_runner.backbones.weights import Weights, find_weights
from moe_runner.kernels import building
from moe_runner.methods.dense.options import Dense
from moe_runner.options.checks import kernel_asked
from moe_runner.options.errors import ConfigError
from moe_runner.options.mixtures import config_problems
from moe_runner.options.model import Model
from moe_runner.options.settings import Settings
from moe_runner.options.task import Task
from moe_runner.options.training import Recipe, Trainer
from moe_runner.runs.processes import world_size
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.speed import Clock, time_of

NO_BASELINE = (
    "no dense baseline of these settings is stored: the same command with method=dense adds it"
)


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
        ConfigError: with everything that is missing, one line each; in a dry run also how many ids
            are open because of it.
    """
    found = list_runs(settings, Inventory(Path(settings.paths.cache) / "hashes.json"))
    if found.problems:
        line = open_ids(found.runs) if settings.dry_run else None
        raise ConfigError(*found.problems, *([line] if line else []))
    return Plan(found.runs, found.gaps)


@dataclass(frozen=True)
class Listed:
    """The runs that settings mean, whether they can be carried out here or not.

    Args:
        runs: what is to be done.
        gaps: see `Plan`.
        problems: what is missing, one line each.
    """

    runs: tuple[Run, ...]
    gaps: dict[str, str]
    problems: tuple[str, ...]


class Inventory:
    """What weights and data there are: each is looked for once, whatever the number of runs.

    Args:
        memo: file that remembers content hashes.
    """

    def __init__(self, memo: Path) -> None:
        self.memo = memo
        self.weights: dict[Model, tuple[Weights, str]] = {}
        self.data: dict[tuple[Task, str], tuple[list[str], dict[str, str]]] = {}

    def weights_of(self, model: Model) -> tuple[Weights, str]:
        """Find the weights of a backbone, and their fingerprint."""
        if model not in self.weights:
            found = find_weights(model)
            self.weights[model] = found, found.fingerprint(self.memo)
        return self.weights[model]

    def data_of(self, task: Task, name: str) -> tuple[list[str], dict[str, str]]:
        """Find the data of a task: what is missing, and the fingerprint of each split."""
        key = (task, name)
        if key not in self.data:
            found = tasks.sources(task, name)
            missing = [source.problem for source in found.values() if source.problem]
            self.data[key] = missing, tasks.fingerprint(task, name, self.memo)
        return self.data[key]


def list_runs(settings: Settings, inventory: Inventory) -> Listed:
    """Find weights and data, without loading them, and list the runs.

    Args:
        settings: validated.
        inventory: shared by the configs of a study.

    Returns:
        The runs, and what is missing for them. A Hub that does not answer costs 2 s, once per
        process.
    """
    weights, fingerprint = inventory.weights_of(settings.model)
    problems = [] if weights.problem is None else [weights.problem]
    if settings.export == "hf":
        problems += config_problems(settings.model.family, weights.config())
    gaps: dict[str, str] = {}
    runs: list[Run] = []
    for name in tasks.members(settings.task):
        missing, data = inventory.data_of(settings.task, name)
        if unable := tasks.form_problem(settings.task, name, settings.model):
            missing = [unable]
        if missing and settings.task.skip_missing:
            gaps[name] = "; ".join(missing)
            continue
        problems += missing
        runs += runs_of_task(settings, name, data, weights, fingerprint)
    if not runs and not problems:
        problems = list(gaps.values())
    return Listed(tuple(runs), gaps, tuple(dict.fromkeys(problems)))


def runs_of_task(
    settings: Settings, name: str, data: dict[str, str], weights: Weights, fingerprint: str
) -> list[Run]:
    """List the runs of one member task: learning rates times seeds.

    Args:
        settings: validated.
        name: the member task.
        data: fingerprint of each split.
        weights: of the backbone.
        fingerprint: of the weights.
    """
    tuning, trainer, search = settings.tuning, settings.trainer, settings.search
    spec = tasks.spec(settings.task, name)
    ood = tuple(
        chosen for chosen in settings.task.ood if chosen == "all" or f"ood/{chosen}" in data
    )
    form = tasks.form(spec, settings.model.family)
    recipe = tasks.recipe(spec, form)
    task = settings.task.resolved(settings.model, recipe, weights.image_size)
    rates = learning_rates(settings, recipe)
    trainer = resolve(trainer, recipe, tuning.name)
    return [
        Run(
            method=settings.method,
            protocol=settings.protocol.limited_to(settings.method.later_protocol(settings.model)),
            model=replace(settings.model, path=absolute(settings.model.path)),
            tuning=tuning,
            task=replace(
                task,
                members=(name,),
                ood=ood,
                data_dir=absolute(settings.task.data_dir),
                ood_dir=absolute(settings.task.ood_dir),
            ),
            trainer=replace(trainer, learning_rate=float(f"{rate:.12g}")),
            seed=seed,
            form=form,
            data=data,
            weights=fingerprint,
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
    own = {
        name: getattr(recipe, name)
        for name in (
            "max_steps",
            "batch_size",
            "eval_batch_size",
            "eval_steps",
            "weight_decay",
            "schedule",
            "warmup_ratio",
        )
        if getattr(trainer, name) is None
    }
    patience = recipe.patience if trainer.patience is None else trainer.patience
    epochs = trainer.epochs or recipe.epochs.get(tuning, 1)
    if trainer.epochs and trainer.max_steps is None:
        own.pop("max_steps")  # the user's epochs win over the task's updates
    resolved = replace(trainer, patience=patience, epochs=epochs, **own)
    assert resolved.batch_size is not None
    factors = {
        f"the {recipe.batch_multiple} training domains": recipe.batch_multiple,
        f"trainer.accumulate={trainer.accumulate}": trainer.accumulate,
        f"WORLD_SIZE={world_size()}": world_size(),
    }
    multiple = math.prod(factors.values())
    if resolved.batch_size % multiple:
        reasons = " times ".join(name for name, factor in factors.items() if factor > 1)
        above = -(-resolved.batch_size // multiple) * multiple
        least = multiple // trainer.accumulate
        able = [n for n in range(2, resolved.batch_size) if resolved.batch_size % (n * least) == 0]
        instead = f", or trainer.accumulate={able[-1]}" if trainer.accumulate > 1 and able else ""
        raise ConfigError(
            f"trainer.batch_size={resolved.batch_size} does not divide by {reasons}; it is the "
            f"size of one update: use a multiple of {multiple}, such as {above}{instead}"
        )
    return resolved


def absolute(path: str | None) -> str | None:
    """Make a path independent of the working directory: a run is read again from anywhere."""
    return None if path is None else str(Path(path).expanduser().resolve())


def show_plan(plan: Plan, store: Store, device: str) -> None:
    """Print the runs of a plan, which of them are done, and how long the others will take.

    Args:
        plan: of a command.
        store: of the results.
        device: that was asked for.
    """
    for run in plan.runs:
        steps = run.trainer.max_steps
        length = f"{run.trainer.epochs} epochs" if steps is None else f"{steps} updates"
        print(f"{run.id}  {store.status(run.id).state:<11}  {run.label}, {length}")
    for name, reason in plan.gaps.items():
        print(f"{'':16}  skipped      {name}: {reason}")
    done = sum(store.status(run.id).state == "done" for run in plan.runs)
    print(f"{len(plan.runs)} runs, {done} done, {len(plan.runs) - done} to do")
    rest = [run for run in plan.runs if store.status(run.id).state != "done"]
    if rest:
        clock = Clock(store, device)
        print(f"time on this machine, one after the other: {time_of(rest, clock)}")
        print(f"  ({clock.explained()})")
    asked = Counter(each for run in rest if (each := kernel_asked(run.method, run.trainer)))
    if asked and building.library() is None:
        for (given, instead), count in asked.items():
            print(f"{count} cannot be done here: {building.refusal(given, instead)}")
    tell_open(plan.runs)


def tell_open(runs: Iterable[Run]) -> None:
    """Print `open_ids`, if there are such."""
    if line := open_ids(runs):
        print(line)


def open_ids(runs: Iterable[Run]) -> str | None:
    """Say how many ids will change once the commits of their models and data are known."""
    if not (count := sum(run.is_open for run in runs)):
        return None
    return (
        f"{count} ids are open: what they read of the Hub is not in the cache, and the Hub does "
        "not tell its commit"
    )


def stored_baselines(plan: Plan, store: Store) -> tuple[list[Result], str]:
    """Find the dense runs of equal settings, to stand beside the results of another method.

    Returns:
        Their results, and a line that says how to make them if one is missing; one per damaged
        result, which counts as none.
    """
    twins = [
        replace(
            run,
            method=Dense(),
            protocol=run.protocol.limited_to(Dense().later_protocol(run.model)),
        )
        for run in plan.runs
        if run.method != Dense()
    ]
    found: list[Result] = []
    hints: dict[str, None] = {}
    for twin in twins:
        try:
            result = store.result(twin.id)
        except StoreError as error:
            hints[f"no dense baseline: {error}"] = None
            continue
        if result is None:
            hints[NO_BASELINE] = None
        else:
            found.append(result)
    return found, "\n".join(hints)
