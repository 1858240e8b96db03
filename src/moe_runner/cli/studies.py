"""Carry out a study: plan, hand over what is not done, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moe_runner.cli.elsewhere import launch_elsewhere, reasons_of
from moe_runner.cli.ending import end
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import Folders
from moe_runner.report.cells import check_cells
from moe_runner.report.gather import with_others
from moe_runner.report.pairs import check_pairings
from moe_runner.report.render import FORMATS, render
from moe_runner.report.store_commands import FOR_ALL, report_folder
from moe_runner.report.study_sheet import print_study
from moe_runner.runs import processes
from moe_runner.runs.result import Result
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.monitor import Monitor
from moe_runner.sweeps.study import as_overrides, read_studies
from moe_runner.sweeps.study_plan import (
    StudyPlan,
    noted,
    plan_study,
    restrict,
    show_study_plans,
)

Launch = Callable[..., Any]
GLOBAL = ("device", "keep_model", "export", "rerun", "debug")  # passed on to a study's jobs


def carry_out_study(
    folders: Folders, name: str, cfg: DictConfig, launch: Launch, arguments: Sequence[str] = ()
) -> int:
    """Carry out one study, or all of them.

    Args:
        folders: of option files.
        name: of a study, or all.
        cfg: what Hydra composed: global keys, `study.only`, the logger and paths are read.
        launch: a Hydra launcher's method; it takes a list of override lists.
        arguments: the words of the command line, which tell what was given from what a study says.

    Returns:
        The exit code: 0, 1 if a run failed or is missing, 2 for a mistake of the user.
    """
    store = Store(Path(cfg.paths.output))
    given = {word.partition("=")[0] for word in arguments}
    for_all = {key: OmegaConf.select(cfg, key) for key in FOR_ALL if key in given}
    only = read_only(cfg)
    try:
        plans = restrict(plan_studies(folders, [name], cfg, for_all), only)
        if cfg.dry_run:
            show_study_plans(plans, store, cfg.device)
            return 2 if tell_gaps(plans) else 0
        lost = launch_missing(plans, cfg, launch, store, for_all)
        place = report_folder(Path(cfg.paths.output), cfg.profile, only, for_all)
        alone = only or for_all  # such a report has a folder of its own
        shown = plans if alone else with_others(plans, folders, cfg.profile, paths_of(cfg), store)
        code = report(plans, store, place, lost, shown)
        return 2 if tell_gaps(plans) else code
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2


def tell_gaps(plans: Sequence[StudyPlan]) -> bool:
    """Print the mistakes of studies, of which no run came; tell whether there are any.

    Weights and data that are missing here are none: see `Job.problems`.
    """
    if not processes.is_leader():
        return any(plan.gaps for plan in plans)
    lines = dict.fromkeys(f"study={plan.study.name}: {gap}" for plan in plans for gap in plan.gaps)
    for line in lines:
        print(line, file=sys.stderr)
    return bool(lines)


def launch_missing(
    plans: Sequence[StudyPlan],
    cfg: DictConfig,
    launch: Launch,
    store: Store,
    for_all: Mapping[str, Any],
) -> dict[str, str]:
    """Hand the runs that are not done to the launcher, and show what they do.

    Args:
        plans: of studies.
        cfg: see `carry_out_study`.
        launch: see `carry_out_study`.
        store: of the results.
        for_all: values for every run, in place of the study's.

    Returns:
        id -> reason of the runs whose job came to no end.

    Raises:
        StoreError: if a stored result is damaged.
    """
    jobs = {
        job.run.id: (job, plan.study.name)
        for plan in plans
        for job in plan.jobs
        if not job.problems and (cfg.rerun or store.result(job.run.id) is None)
    }
    lost: dict[str, str] = {}
    if jobs:
        own = {key: cfg[key] for key in GLOBAL} | {"quiet": True, **for_all}
        own |= {} if cfg.threads is None else {"threads": cfg.threads}  # else the study's
        own |= paths_of(cfg)
        batch = [
            as_overrides({**job.choices, **own, **logger_of(study, cfg)})
            for job, study in jobs.values()
        ]
        with Monitor({run_id: job.run for run_id, (job, _) in jobs.items()}, store):
            returns = launch_elsewhere(launch, batch, 0)
        for (job, _), returned in zip(jobs.values(), returns, strict=True):
            lost |= reasons_of(returned, [(job.run, store)])
    return lost


def read_only(cfg: DictConfig) -> dict[str, list[Any]]:
    """Read `study.only`: allowed values by axis, of those axes that were given."""
    node = OmegaConf.select(cfg, "study.only")  # there only if something of it was given
    given = {} if node is None else OmegaConf.to_container(node)
    assert isinstance(given, dict)
    return {
        str(axis): value if isinstance(value, list) else [value]
        for axis, value in given.items()
        if value is not None
    }


def logger_of(study: str, cfg: DictConfig) -> dict[str, Any]:
    """Choose the logger of a study's jobs: what was given, and the study's name as their group."""
    options = {key: value for key, value in cfg.logger.items() if key != "name"}
    options["group"] = options["group"] or study
    return {"logger": cfg.logger.name, **{f"logger.{key}": options[key] for key in options}}


def paths_of(cfg: DictConfig) -> dict[str, Any]:
    """Give the folders of a command by key, for the plan and the jobs of a study."""
    return {f"paths.{name}": place for name, place in cfg.paths.items()}


def plan_studies(
    folders: Folders, names: Sequence[str], cfg: DictConfig, for_all: Mapping[str, Any]
) -> list[StudyPlan]:
    """Plan studies with what the command says beside them.

    Args:
        folders: of option files.
        names: of studies, or all.
        cfg: profile and paths are read.
        for_all: values for every run, in place of the study's.
    """
    common = {**paths_of(cfg), **for_all}
    studies = read_studies(folders, names, cfg.profile)
    plans = [plan_study(folders, study, cfg.profile, common) for study in studies]
    check_pairings(plans)
    check_cells(plans)
    return [noted(plan, " ".join(as_overrides(for_all))) for plan in plans] if for_all else plans


def report(
    plans: Sequence[StudyPlan],
    store: Store,
    folder: Path,
    lost: Mapping[str, str],
    shown: Sequence[StudyPlan],
) -> int:
    """Print the tables of studies, render them, say what is not done.

    Args:
        plans: of studies.
        store: of the results.
        folder: of the report.
        lost: id -> reason of the runs whose job came to no end.
        shown: the studies of the files and the page: these, and others with results.

    Returns:
        The exit code: see `end`.
    """
    jobs = [job for plan in plans for job in plan.jobs]

    def show(results: list[Result]) -> None:
        found = {result.id: result for result in results}
        for plan in plans:
            own = [job.run.id for job in plan.jobs if job.run.id in found]
            print_study(plan, {run_id: found[run_id] for run_id in own})
        render(shown, store, folder, FORMATS)
        print(f"tables, plots and a page of all: {folder}/index.html")

    reasons = {job.run.id: "; ".join(job.problems) for job in jobs if job.problems} | dict(lost)
    return end([(job.run, store) for job in jobs], show, reasons=reasons, word="not done")
