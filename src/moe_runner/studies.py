"""Carry out a study: plan, hand over what is not done, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from moe_runner.config import CONF, ConfigError
from moe_runner.report.render import FORMATS, render
from moe_runner.report.store_commands import last_line
from moe_runner.report.study_sheet import print_study
from moe_runner.runs.store import Store
from moe_runner.sweeps.monitor import Monitor
from moe_runner.sweeps.study import as_overrides, read_study, study_names
from moe_runner.sweeps.study_plan import StudyPlan, plan_study, show_study_plans

Launch = Callable[..., Any]
GLOBAL = ("device", "keep_model", "rerun", "debug")  # given beside a study, passed on to its jobs


def carry_out_study(name: str, cfg: DictConfig, launch: Launch) -> int:
    """Carry out one study, or all of them.

    Args:
        name: of a file in conf/study.
        cfg: what Hydra composed: global keys and paths are read.
        launch: a Hydra launcher's method; it takes a list of override lists.

    Returns:
        The exit code: 0, 1 if a run failed or is missing, 2 for a mistake of the user.
    """
    store = Store(Path(cfg.paths.output))
    names = study_names(CONF) if name == "all" else [name]
    try:
        plans = plan_studies(names, cfg)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if cfg.dry_run:
        show_study_plans(plans, store)
        return 0
    jobs = {
        job.run.id: (job, plan.study.name)
        for plan in plans
        for job in plan.jobs
        if not job.problems and (cfg.rerun or store.result(job.run.id) is None)
    }
    if jobs:
        own = {key: cfg[key] for key in GLOBAL} | {"logger": cfg.logger.name, "quiet": True}
        own |= {"paths.output": cfg.paths.output, "paths.cache": cfg.paths.cache}
        batch = [
            as_overrides({**job.choices, **own, "logger.group": study})
            for job, study in jobs.values()
        ]
        with Monitor({run_id: job.run for run_id, (job, _) in jobs.items()}, store):
            launch(batch, initial_job_idx=0)
    return report(plans, store, Path(cfg.paths.output) / "reports" / cfg.profile)


def plan_studies(names: Sequence[str], cfg: DictConfig) -> list[StudyPlan]:
    """Plan studies with what the command says beside them."""
    common = {"paths.output": cfg.paths.output, "paths.cache": cfg.paths.cache}
    return [plan_study(read_study(CONF, each), cfg.profile, common) for each in names]


def report(plans: Sequence[StudyPlan], store: Store, folder: Path) -> int:
    """Print the tables of studies, render them, say what failed; 1 if a run is not done, else 0."""
    failed: dict[str, str] = {}
    for plan in plans:
        results = {job.run.id: store.result(job.run.id) for job in plan.jobs}
        print_study(plan, {key: value for key, value in results.items() if value is not None})
        for job in plan.jobs:
            if results[job.run.id] is None:
                state = store.status(job.run.id).state
                reason = last_line(store, job.run.id) if state == "failed" else state
                failed[job.run.id] = f"{job.run.label}: {'; '.join(job.problems) or reason}"
    render(plans, store, folder, FORMATS)
    print(f"tables, plots and a page of all: {folder}/index.html")
    for line in failed.values():
        print(f"not done: {line}", file=sys.stderr)
    return 1 if failed else 0
