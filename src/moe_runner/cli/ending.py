"""The end of a command: tables, what is not done and why, the exit code.

Whoever carried out the runs, in whatever process, the store says what became of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moe_runner.console import wide_console
from moe_runner.report.store_commands import last_line
from moe_runner.report.summary import print_results
from moe_runner.runs import processes
from moe_runner.runs.result import Result
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.plan import Plan, stored_baselines

Show = Callable[[list[Result]], None]


def end(
    wanted: Iterable[tuple[Run, Store]],
    show: Show,
    *,
    reasons: Mapping[str, str],
    mistakes: int = 0,
    word: str = "failed",
) -> int:
    """Look up the runs of a command in the store, and tell what became of them.

    Processes that follow the leader print nothing.

    Args:
        wanted: the runs, each with its store; one that is there twice counts once.
        show: prints what there is to see of the results.
        reasons: id -> why a run is not done, where the store does not know.
        mistakes: of the user.
        word: what stands before a run that is not done.

    Returns:
        The exit code: 2 for a mistake of the user, 1 if a run is not done, else 0.
    """
    if not processes.is_leader():
        return 2 if mistakes else 0
    results, lines = [], []
    for run, store in {(store.root, run.id): (run, store) for run, store in wanted}.values():
        try:
            result = store.result(run.id)
            reason = "" if result is not None else reasons.get(run.id) or reason_in(store, run.id)
        except StoreError as error:
            result, reason = None, str(error)
        if result is not None:
            results.append(result)
        else:
            lines.append(f"{word}: {run.label} ({run.id}): {reason}")
    show(results)
    for line in lines:
        print(line, file=sys.stderr)
    return 2 if mistakes else 1 if lines else 0


def reason_in(store: Store, run_id: str) -> str:
    """Say why a run is not done, as far as the store knows."""
    state = store.status(run_id).state
    return last_line(store, run_id) if state == "failed" else state


@dataclass
class Command:
    """What the jobs of a command are to do.

    Args:
        plans: of the jobs, each with the store of its runs.
        reasons: see `end`.
        mistakes: of the user, that jobs met.
        together: one table for all jobs; else that of the only job, with its baselines.
        quiet: no table of an only job.
    """

    plans: list[tuple[Plan, Store]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    mistakes: int = 0
    together: bool = False
    quiet: bool = False

    def end(self) -> int:
        """Print the table of all jobs and what failed; the exit code: see `end`."""
        wanted = [(run, store) for plan, store in self.plans for run in plan.runs]
        return end(wanted, self.show, reasons=self.reasons, mistakes=self.mistakes)

    def show(self, results: list[Result]) -> None:
        """Print the table, and where the results are."""
        if not self.plans or (self.quiet and not self.together):
            return
        gaps = {name: reason for plan, _ in self.plans for name, reason in plan.gaps.items()}
        plan, store = self.plans[-1]
        baselines, hint = ([], "") if self.together else stored_baselines(plan, store)
        runs = {run.id: run for plan, _ in self.plans for run in plan.runs}
        print_results([*baselines, *results], gaps, runs)
        roots = dict.fromkeys(store.root for _, store in self.plans)
        places = [f"results: {root}/<id>/result.json" for root in roots]
        if hint:
            wide_console().print(hint, highlight=False)
        print("\n".join(places))
