"""The plan of a study: its runs, which are done, and what is missing for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from moe_runner.console import wide_console
from moe_runner.options.errors import ConfigError, nearest, show
from moe_runner.options.folders import Folders
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.cost import estimate
from moe_runner.sweeps.plan import Inventory, list_runs, tell_open
from moe_runner.sweeps.speed import Clock, time_of
from moe_runner.sweeps.study import Profile, Study, expand

PAPER_MODELS = 1785  # that EMoE's first version says it tuned; not exactly recoverable


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        run: what is to be done.
        choices: the options and values that make it on the command line.
        problems: what is missing for it here, one line each.
    """

    run: Run
    choices: Mapping[str, Any]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class StudyPlan:
    """A study with the runs of one profile.

    Args:
        study: the study, beside published tables of this profile only.
        profile: which grid; or `OWN`.
        jobs: each run once.
        gaps: configs that cannot be composed: an option that does not exist, values that clash.
    """

    study: Study
    profile: Profile
    jobs: tuple[Job, ...]
    gaps: tuple[str, ...]


def plan_study(
    folders: Folders, study: Study, profile: Profile, common: Mapping[str, Any]
) -> StudyPlan:
    """List the runs of a study.

    Args:
        folders: of option files.
        study: the study.
        profile: which grid.
        common: options and values for all its runs, in place of the study's own.

    Returns:
        The plan. What cannot be had here is said, not left out.
    """
    jobs: dict[str, Job] = {}
    gaps: dict[str, None] = {}
    inventory: Inventory | None = None
    for choices in expand(study.grids.get(profile, ())):
        try:
            settings = compose_settings(folders, {**choices, **common})
        except ConfigError as error:
            gaps |= dict.fromkeys(error.problems)
            continue
        inventory = inventory or Inventory(Path(settings.paths.cache) / "hashes.json")
        weights, _ = inventory.weights_of(settings.model)
        for run in list_runs(settings, inventory).runs:
            missing, _ = inventory.data_of(settings.task, run.task_name)
            problems = tuple(missing if weights.problem is None else [weights.problem, *missing])
            jobs.setdefault(run.id, Job(run, single(choices, run), problems))
    beside = tuple(pairing for pairing in study.beside if profile in pairing.profiles)
    return StudyPlan(replace(study, beside=beside), profile, tuple(jobs.values()), tuple(gaps))


def single(choices: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Give the choices that make one run of those that some choices mean."""
    kept = {key: value for key, value in choices.items() if key not in ("search", "task.pairs")}
    return {
        **kept,
        "task.members": [run.task_name],
        "trainer.learning_rate": run.trainer.learning_rate,
        "seed": run.seed,
    }


def restrict(plans: Sequence[StudyPlan], only: Mapping[str, Sequence[Any]]) -> list[StudyPlan]:
    """Keep the runs of studies that have certain values.

    Args:
        plans: of one or more studies.
        only: allowed values by axis, see `study.ONLY`; 1e-3 and "0.001" are alike, and a task may
            be given with its suite, glue/cola.

    Returns:
        The plans that have such a run, in whose notes (so, captions) the restriction is said.

    Raises:
        ConfigError: one line per value that no run has, or if no run has all of them; what is
            wrong with the studies, if they have no run.
    """
    if not only:
        return list(plans)
    gaps = [f"study={plan.study.name}: {gap}" for plan in plans for gap in plan.gaps]
    if gaps and not any(plan.jobs for plan in plans):  # nothing to choose from
        raise ConfigError(*gaps)
    problems = []
    for axis, values in only.items():
        found = [names(plan, job, axis) for plan in plans for job in plan.jobs]
        there = {same(name) for each in found for name in each}
        shown = list(dict.fromkeys(each[0] for each in found))
        for value in values:
            if same(value) not in there:
                guess = nearest(show(value), shown)
                hint = f"; did you mean {guess}?" if guess else "; use some of"
                problems.append(
                    f"study.only.{axis}={show(value)} is in no run{hint} ({', '.join(shown)})"
                )
    if problems:
        raise ConfigError(*problems)
    wanted = {axis: {same(value) for value in values} for axis, values in only.items()}
    words = [f"{axis}={','.join(map(show, values))}" for axis, values in only.items()]
    kept = []
    for plan in plans:
        jobs = tuple(
            job
            for job in plan.jobs
            if all(wanted[axis] & {same(name) for name in names(plan, job, axis)} for axis in only)
        )
        if jobs:
            kept.append(noted(replace(plan, jobs=jobs), f"only {' '.join(words)}"))
    if not kept:
        raise ConfigError(f"study.only: no run has all of {' '.join(words)}; leave out one of them")
    return kept


def noted(plan: StudyPlan, text: str) -> StudyPlan:
    """Put a text before the note of a study, which its captions show."""
    note = f"{text}; {plan.study.note}" if plan.study.note else text
    return replace(plan, study=replace(plan.study, note=note))


def names(plan: StudyPlan, job: Job, axis: str) -> tuple[str, ...]:
    """List the words by which `study.only` may name the value of a run on an axis."""
    if axis == "study":
        return (plan.study.name,)
    axes = job.run.axes()
    value = show(axes[axis])
    return (value, f"{axes['suite']}/{value}") if axis == "task" else (value,)


def same(value: Any) -> str:
    """Write a value so that equal ones are written alike: 1e-3, 0.001 and "0.001"."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return show(value)


def show_study_plans(plans: Sequence[StudyPlan], store: Store, device: str) -> None:
    """Print a line per study, the distinct runs of all, and what is missing here.

    Args:
        plans: of studies.
        store: of the results.
        device: that was asked for.
    """
    clock, every = Clock(store, device), {job.run.id: job for plan in plans for job in plan.jobs}
    done = {run_id for run_id in every if store.result(run_id) is not None}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("study", "runs", "done", "ready", "params", "FLOPs", "time", "disk"):
        table.add_column(name, justify="left" if name == "study" else "right", no_wrap=True)
    for plan in plans:
        table.add_row(plan.study.name, *counted(plan.jobs, done, clock))
    clock.sources.clear()  # for the sentence below each run counts once
    table.add_row("distinct runs", *counted(list(every.values()), done, clock))
    print(f"profile={plans[0].profile}")
    console = wide_console()
    console.print(table)
    lines = [
        "ready: weights and data are here; params, disk: of the largest run; FLOPs: of all "
        "training, texts as long as allowed; >: size of some data not known"
    ]
    if how := clock.explained():
        lines.append(f"time: of what is not done, one run after the other, on this machine: {how}")
    for line in lines:
        console.print(Text(line))
    for plan in plans:
        missing = dict.fromkeys([*plan.gaps, *(p for job in plan.jobs for p in job.problems)])
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            print(f"{plan.study.name} lacks: {next(iter(missing))}{more}")
    tell_open([job.run for job in every.values()])
    if plans[0].profile == "paper":
        print(
            f"EMoE's first version says it tuned {PAPER_MODELS} models. The protocol explains the "
            "order of magnitude (3 rates x 3 seeds a cell, 12 or 30 runs a DomainBed cell); the "
            "exact number is not recoverable, so the two counts cannot match."
        )


def counted(jobs: Sequence[Job], done: Set[str], clock: Clock) -> list[str]:
    """Count some runs and what they cost, as cells of a table."""
    costs = [estimate(job.run) for job in jobs]
    known = [cost for cost in costs if cost.flops is not None]
    sign = "" if len(known) == len(costs) else ">"
    return [
        str(len(jobs)),
        str(sum(job.run.id in done for job in jobs)),
        str(sum(not job.problems for job in jobs)),
        short(max((cost.parameters for cost in costs), default=0.0)),
        sign + short(sum(cost.flops or 0.0 for cost in known)),
        time_of((job.run for job in jobs if job.run.id not in done), clock),
        short(max((cost.disk for cost in costs), default=0.0)) + "B",
    ]


def short(number: float) -> str:
    """Write a number with three digits and a prefix: 1.23 G."""
    for factor, prefix in (
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "
