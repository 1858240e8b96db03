"""Within a job: the signals of Slurm end it with a checkpoint, and it is started again.

Slurm sends SIGUSR2 `signal_delay_s` before the time limit, and SIGTERM to a job that is cancelled,
requeued, preempted, or at its limit; SIGKILL follows after the cluster's KillWait, 30 s by default.
"""

from __future__ import annotations

import signal

from moe_runner.cli.slurm.commands import NoAnswer, requeue, tell, was_preempted
from moe_runner.runs import stopping
from moe_runner.runs.processes import cluster_job


def restart_if_due(limit: int) -> None:
    """Have this job started again after its time limit or a preemption.

    A job that was cancelled is not; one that was requeued by somebody else is already.

    Args:
        limit: how often a job may be started again.
    """
    job, restarts = cluster_job()
    assert job is not None  # this is a job
    try:
        at_limit = stopping.asked() == signal.SIGUSR2
        if not at_limit and not was_preempted(job):
            return
        why = "the time limit is near" if at_limit else "another job takes its place"
        if restarts >= limit:
            tell(f"{why}; it was started again {restarts} times, hydra.launcher.max_num_timeout")
            return
        requeue(job)
        tell(f"{why}; Slurm starts this job again, and the run goes on from its checkpoint")
    except NoAnswer as error:
        tell(f"this job could not be started again: {error}")
