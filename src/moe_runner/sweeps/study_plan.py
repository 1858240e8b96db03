"""The plan of a study: its runs, which are done, and what is missing for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from moe_runner.config import CONF, ConfigError
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import Inventory, list_runs
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
        study: the study.
        profile: which grid.
        jobs: each run once.
        gaps: configs that cannot be composed: an option that does not exist, values that clash.
    """

    study: Study
    profile: Profile
    jobs: tuple[Job, ...]
    gaps: tuple[str, ...]


def plan_study(study: Study, profile: Profile, common: Mapping[str, Any]) -> StudyPlan:
    """List the runs of a study.

    Args:
        study: the study.
        profile: which grid.
        common: options and values for all its runs.

    Returns:
        The plan. What cannot be had here is said, not left out.
    """
    jobs: dict[str, Job] = {}
    gaps: dict[str, None] = {}
    inventory: Inventory | None = None
    for choices in expand(study.grids.get(profile, ())):
        try:
            settings = compose_settings(CONF, {**choices, **common})
        except ConfigError as error:
            gaps |= dict.fromkeys(error.problems)
            continue
        inventory = inventory or Inventory(Path(settings.paths.cache) / "hashes.json")
        weights, _ = inventory.weights_of(settings.model)
        for run in list_runs(settings, inventory).runs:
            missing, _ = inventory.data_of(settings.task, run.task_name)
            problems = tuple(missing if weights.problem is None else [weights.problem, *missing])
            jobs.setdefault(run.id, Job(run, single(choices, run), problems))
    return StudyPlan(study, profile, tuple(jobs.values()), tuple(gaps))


def single(choices: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Give the choices that make one run of those that some choices mean."""
    kept = {key: value for key, value in choices.items() if key != "search"}
    return {
        **kept,
        "task.members": [run.task_name],
        "trainer.learning_rate": run.trainer.learning_rate,
        "seed": run.seed,
    }


def show_study_plans(plans: Sequence[StudyPlan], store: Store) -> None:
    """Print a line per study, the distinct runs of all, and what is missing here."""
    table = Table(title=f"profile={plans[0].profile}", title_justify="left")
    for name in ("study", "runs", "done", "can run here", "missing here"):
        table.add_column(name, justify="left" if name in ("study", "missing here") else "right")
    every: dict[str, Job] = {}
    done = {
        job.run.id for plan in plans for job in plan.jobs if store.result(job.run.id) is not None
    }
    for plan in plans:
        every |= {job.run.id: job for job in plan.jobs}
        own = sum(job.run.id in done for job in plan.jobs)
        ready = sum(not job.problems for job in plan.jobs)
        missing = dict.fromkeys([*plan.gaps, *(p for job in plan.jobs for p in job.problems)])
        first = next(iter(missing), "")
        more = f" (+ {len(missing) - 1} more)" if len(missing) > 1 else ""
        table.add_row(plan.study.name, str(len(plan.jobs)), str(own), str(ready), first + more)
    table.add_section()
    ready = sum(not job.problems for job in every.values())
    table.add_row("distinct runs", str(len(every)), str(len(done)), str(ready), "")
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    if plans[0].profile == "paper":
        print(
            f"EMoE says it tuned {PAPER_MODELS} models; which ones is not recoverable, so the two "
            "counts cannot match."
        )
