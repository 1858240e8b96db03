"""An ordinary sweep whose jobs run in other processes: hand over what is not done, then report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from moe_runner.arguments import parse_config
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Settings
from moe_runner.report.store_commands import last_line
from moe_runner.report.summary import headline, print_results
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import Plan, make_plan, show_plan


def runs_here(node: Any) -> bool:
    """Tell whether Hydra's launcher runs the jobs in this process.

    Args:
        node: Hydra's own config.
    """
    return str(node.launcher.get("_target_", "")).endswith("BasicLauncher")


class Handover:
    """Stands before a launcher whose jobs this process does not see: the store says what they did.

    Args:
        launcher: of Hydra.
        compose: makes the config of a job from its overrides.
    """

    def __init__(self, launcher: Any, compose: Callable[[Sequence[str]], DictConfig]) -> None:
        self.launcher, self.compose = launcher, compose
        self.plans: list[tuple[Plan, Settings]] = []
        self.mistakes = 0

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Launch the jobs that have a run to do.

        Args:
            batch: overrides of each job.
            initial_job_idx: number of the first.

        Returns:
            What the launcher returns for the jobs that it got.
        """
        rest: list[tuple[Sequence[str], bool]] = []  # overrides; could it be planned here
        for overrides in batch:
            try:
                settings = parse_config(self.compose(overrides))
                plan = None if settings.evaluate else make_plan(settings)
            except ConfigError:  # the job tells it; what is missing here may be there
                plan = None
            if plan is None or not self.is_settled(plan, settings):
                rest.append((overrides, plan is not None))
        if not rest:
            return []
        returns = self.launcher.launch([job for job, _ in rest], initial_job_idx=initial_job_idx)
        for (_, planned), job in zip(rest, returns, strict=True):
            self.mistakes += not planned and math.isnan(job.return_value)
        return returns

    def is_settled(self, plan: Plan, settings: Settings) -> bool:
        """Note a plan for the report, and tell whether there is nothing to do for it."""
        store = Store(Path(settings.paths.output))
        if settings.dry_run:
            show_plan(plan, store)
            return True
        self.plans.append((plan, settings))
        results = [store.result(run.id) for run in plan.runs]
        if settings.rerun or None in results:
            return False
        for run, result in zip(plan.runs, results, strict=True):
            assert result is not None
            print(f"done before: {run.label}  ({run.id}): {headline(result)}", file=sys.stderr)
        return True

    def report(self) -> int:
        """Print one table of all jobs, and what failed.

        Returns:
            The exit code: 2 for a mistake of the user, 1 if a run is not done, else 0.
        """
        results, failed, where = [], [], ""
        gaps: dict[str, str] = {}
        for plan, settings in self.plans:
            store = Store(Path(settings.paths.output))
            where = f"results: {store.root}/<id>/result.json"
            gaps |= plan.gaps
            for run in plan.runs:
                if (result := store.result(run.id)) is not None:
                    results.append(result)
                    continue
                state = store.status(run.id).state
                reason = last_line(store, run.id) if state == "failed" else state
                failed.append(f"{run.label} ({run.id}): {reason}")
        print_results(results, gaps)
        if where:
            print(where)
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
        return 2 if self.mistakes else 1 if failed else 0
