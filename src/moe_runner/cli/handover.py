"""An ordinary sweep whose jobs run in other processes: hand over what is not done, then report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from moe_runner.cli.ending import Command
from moe_runner.cli.launching import LostJob
from moe_runner.cli.values import parse_config
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Settings
from moe_runner.report.summary import headline
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.plan import Plan, make_plan, show_plan


class Handover:
    """Stands before a launcher whose jobs this process does not see.

    Args:
        launcher: of Hydra.
        compose: makes the config of a job from its overrides.
    """

    def __init__(self, launcher: Any, compose: Callable[[Sequence[str]], DictConfig]) -> None:
        self.launcher, self.compose = launcher, compose
        self.command = Command(together=True)

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Launch the jobs that have a run to do.

        Args:
            batch: overrides of each job.
            initial_job_idx: number of the first.

        Returns:
            What the launcher returns for the jobs that it got and that came to their end.
        """
        rest: list[tuple[Sequence[str], Plan | None]] = []  # overrides; None: not planned here
        for overrides in batch:
            try:
                settings = parse_config(self.compose(overrides))
                plan = None if settings.evaluate else make_plan(settings)
            except ConfigError:  # the job tells it; what is missing here may be there
                plan = None
            if plan is None or not self.is_settled(plan, settings):
                rest.append((overrides, plan))
        if not rest:
            return []
        returns = self.launcher.launch([job for job, _ in rest], initial_job_idx=initial_job_idx)
        ended = []
        for (_, plan), job in zip(rest, returns, strict=True):
            if isinstance(job, LostJob):
                self.command.mistakes += plan is None
                runs = plan.runs if plan is not None else ()
                self.command.reasons.update({run.id: job.reason for run in runs})
                continue
            self.command.mistakes += plan is None and math.isnan(job.return_value)
            ended.append(job)
        return ended

    def is_settled(self, plan: Plan, settings: Settings) -> bool:
        """Note a plan for the end, and tell whether there is nothing to do for it."""
        store = Store(Path(settings.paths.output))
        if settings.dry_run:
            show_plan(plan, store)
            return True
        self.command.plans.append((plan, store))
        try:
            results = [store.result(run.id) for run in plan.runs]
        except StoreError:  # the job tells it
            return False
        if settings.rerun or None in results:
            return False
        for run, result in zip(plan.runs, results, strict=True):
            assert result is not None
            print(f"done before: {run.label}  ({run.id}): {headline(result)}", file=sys.stderr)
        return True
