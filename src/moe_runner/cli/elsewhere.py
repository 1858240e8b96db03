"""Jobs in other processes: they get the signals of this one, and those that are lost are told."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

from moe_runner.cli.launching import LostJob
from moe_runner.runs import stopping
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store, StoreError


def launch_elsewhere(launch: Any, batch: Sequence[Sequence[str]], first: int) -> Sequence[Any]:
    """Launch jobs in other processes and wait for them; a signal to end is passed on to ours.

    Args:
        launch: a Hydra launcher's method.
        batch: overrides of each job.
        first: number of the first job.

    Returns:
        What the launcher returns, by job.

    Raises:
        Stopped: after a signal, when the jobs in processes of this one have ended.
    """
    with stopping.deferred(children):
        return launch(batch, initial_job_idx=first)


def children() -> list[int]:
    """List the processes that this one has started for jobs."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def reasons_of(returned: Any, runs: Iterable[tuple[Run, Store]]) -> dict[str, str]:
    """Tell why the runs of a job are not done if it was lost, and free them: nobody has them now.

    Args:
        returned: by the launcher, for the job.
        runs: of the job.

    Returns:
        Reasons by run id; empty if the job came to its end.
    """
    reasons: dict[str, str] = {}
    if not isinstance(returned, LostJob):
        return reasons
    for run, store in runs:
        reasons[run.id] = returned.reason
        if returned.job is not None:
            try:
                store.release(run.id, returned.job)
            except StoreError as error:
                reasons[run.id] = f"{returned.reason}; {error}"
    return reasons
