"""Which studies a report is of: those that were asked for, and all others that have results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import Folders
from moe_runner.report.cells import check_cells
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import Profile, read_study, study_names
from moe_runner.sweeps.study_plan import StudyPlan, plan_study


def with_others(
    plans: Sequence[StudyPlan],
    folders: Folders,
    profile: Profile,
    common: Mapping[str, Any],
    store: Store,
) -> list[StudyPlan]:
    """Add the studies of a profile that have results, so that a report never loses one.

    Args:
        plans: that were asked for; they stay, with results or without.
        folders: of option files.
        profile: of the plans.
        common: options and values for all runs, see `plan_study`.
        store: of the results.

    Returns:
        The plans in the order of the studies' names. Another study that cannot be planned, or has a
        damaged result, is named on the standard error and left out.
    """
    done = finished(store)
    if done <= {job.run.id for plan in plans for job in plan.jobs}:
        return list(plans)  # the others have nothing
    found = {plan.study.name: plan for plan in plans}
    for name in study_names(folders):
        if name in found:
            continue
        try:
            study = read_study(folders, name)
            if profile not in study.grids:
                continue
            plan = plan_study(folders, study, profile, common)
            check_cells([plan])
            store.results_of(job.run.id for job in plan.jobs)
        except (ConfigError, StoreError) as error:  # of a study that nobody asked for
            reason = str(error).partition("\n")[0]
            print(f"study={name} is not in the report: {reason}", file=sys.stderr)
            continue
        if has_results(plan, done):
            found[name] = plan
    return [found[name] for name in sorted(found)]


def has_results(plan: StudyPlan, done: set[str]) -> bool:
    """Tell whether a run of a study is done."""
    return any(job.run.id in done for job in plan.jobs)


def finished(store: Store) -> set[str]:
    """List the ids of the finished runs without reading their results."""
    return {run_id for run_id in store.ids() if (store.folder(run_id) / "result.json").exists()}
