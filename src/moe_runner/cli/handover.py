"""An ordinary sweep whose jobs run in other processes: hand over what is not done, then report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from moe_runner.cli.elsewhere import launch_elsewhere, reasons_of
from moe_runner.cli.ending import Command
from moe_runner.cli.launching import LostJob
from moe_runner.cli.values import parse_config
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Settings
from moe_runner.report.summary import headline
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.monitor import Monitor
from moe_runner.sweeps.plan import Plan, make_plan, show_plan


class Handover:
    """Stands before a launcher whose jobs this process does not see.

    Args:
        launcher: of Hydra.
        compose: makes the config of a job from its overrides.
        logs: whether each job writes what it tells into a log of its own, not on this screen.
    """

    def __init__(
        self, launcher: Any, compose: Callable[[Sequence[str]], DictConfig], *, logs: bool = False
    ) -> None:
        self.launcher, self.compose, self.logs = launcher, compose, logs
        self.command = Command(together=True)

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Launch the jobs that have a run to do.

        Args:
            batch: overrides of each job.
            initial_job_idx: number of the first.

        Returns:
            What the launcher returns for the jobs that it got and that came to their end.
        """
        rest: list[tuple[Sequence[str], list[tuple[Run, Store]] | None]] = []  # None: not planned
        for overrides in batch:
            try:
                settings = parse_config(self.compose(overrides))
                plan = None if settings.evaluate else make_plan(settings)
            except ConfigError:  # the job tells it; what is missing here may be there
                plan = None
            if plan is None:
                rest.append((overrides, None))
            elif not self.is_settled(plan, settings):
                store = Store(Path(settings.paths.output))
                rest.append((overrides, [(run, store) for run in plan.runs]))
        if not rest:
            return []
        planned = [each for _, runs in rest for each in runs or ()]
        batch = [
            quietly(overrides) if runs and not self.logs else overrides for overrides, runs in rest
        ]
        stores = {store.root: store for _, store in planned}
        with ExitStack() as shown:
            for root, store in stores.items():  # one, but for a sweep over paths.output
                own = {run.id: run for run, at in planned if at.root == root}
                shown.enter_context(Monitor(own, store))
            returns = launch_elsewhere(self.launcher.launch, batch, initial_job_idx)
        ended = []
        for (_, runs), job in zip(rest, returns, strict=True):
            if isinstance(job, LostJob):
                self.command.mistakes += runs is None
                self.command.reasons |= reasons_of(job, runs or ())
                continue
            self.command.mistakes += runs is None and math.isnan(job.return_value)
            ended.append(job)
        return ended

    def is_settled(self, plan: Plan, settings: Settings) -> bool:
        """Note a plan for the end, and tell whether there is nothing to do for it."""
        store = Store(Path(settings.paths.output))
        if settings.dry_run:
            show_plan(plan, store, settings.device)
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


def quietly(overrides: Sequence[str]) -> Sequence[str]:
    """Let a job tell nothing of what the monitor shows; its run.log has all."""
    told = any(word.lstrip("+").startswith("quiet=") for word in overrides)
    return overrides if told else [*overrides, "quiet=true"]
