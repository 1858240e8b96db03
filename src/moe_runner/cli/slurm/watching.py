"""Waiting for submitted jobs: what they wait for is told, and those that are lost are found."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus

from moe_runner.cli.launching import LostJob
from moe_runner.cli.slurm.commands import FINAL, NoAnswer, Place, places, tell
from moe_runner.cli.slurm.submitting import Job
from moe_runner.files import one_line
from moe_runner.runs import stopping

LOOK_SECONDS = 1.0  # between two looks for the files that ended jobs write
ASK_FIRST, ASK_LAST = 2.0, 30.0  # between two questions to Slurm, at the start and after a while
TELL_SECONDS = 10.0  # between two lines of progress
LATE_SECONDS = 10.0  # a file of an ended job may come so late over a network
LATE_IF_COMPLETED = 90.0  # a job that ended well has written its file: caches of NFS live a minute
BROKEN = {"FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"}
USUAL = {"Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "None", ""}


def watch(jobs: Sequence[Job]) -> list[Any]:
    """Wait until all jobs have ended.

    Args:
        jobs: of one array.

    Returns:
        What they returned, in their order; a `LostJob` for each that ended without an answer.

    Raises:
        Stopped: after a signal to this process; the jobs go on, and this is told.
    """
    watched = Watch(jobs)
    try:
        with stopping.at_once():
            while not watched.look():
                time.sleep(LOOK_SECONDS)
    except (KeyboardInterrupt, stopping.Stopped):
        array = jobs[0].array
        tell(f"array {array} goes on without this command; scancel {array} ends its jobs")
        raise
    return [watched.found[job.id] for job in jobs]


class Watch:
    """What is known of the jobs of one array.

    Args:
        jobs: to wait for.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.found: dict[str, Any] = {}  # by job id: what it returned, or a LostJob
        self.gone: dict[str, float] = {}  # by job id: when Slurm first said that it has ended
        self.started = self.asked = time.monotonic()
        self.told, self.told_at = "", float("-inf")
        self.silent = False  # Slurm's controller

    def look(self) -> bool:
        """Look once, and tell whether all jobs have ended."""
        for job in self.open():
            self.read(job)
        now = time.monotonic()
        if self.open() and now - self.asked >= self.interval(now):
            self.asked = now
            self.ask(now)
        return not self.open()

    def open(self) -> list[Job]:
        """List the jobs that are not known to have ended."""
        return [job for job in self.jobs if job.id not in self.found]

    def interval(self, now: float) -> float:
        """Return the seconds between two questions to Slurm: fewer questions of a long array."""
        return min(ASK_LAST, ASK_FIRST + (now - self.started) / 20)

    def read(self, job: Job) -> None:
        """Read what a job returned, if it has."""
        with suppress(FileNotFoundError, EOFError):  # not yet, or not all of it
            word, answer = pickle.loads(job.answer.read_bytes())
            if word == "success" and answer.status is JobStatus.COMPLETED:
                self.found[job.id] = answer
            elif word == "success":  # an error that the job's own code has not told
                error = answer._return_value
                line = one_line(error).partition("\n")[0]
                self.lose(job, f"failed: {type(error).__name__}: {line}")
            else:
                self.lose(job, f"failed: {answer.strip().splitlines()[-1]}")  # of a traceback

    def ask(self, now: float) -> None:
        """Ask Slurm where the jobs are; tell it, and find those that are lost."""
        try:
            known = places(self.jobs[0].array)
        except NoAnswer as error:
            if not self.silent:
                tell(f"the controller does not answer ({error}); it is asked again")
            self.silent = True
            return
        if self.silent:
            tell("the controller answers again")
        self.silent = False
        for job in self.open():
            place = known.get(job.id)
            if place is not None and place.state not in FINAL:
                self.gone.pop(job.id, None)
                continue
            since = self.gone.setdefault(job.id, now)
            completed = place is not None and place.state == "COMPLETED"
            if now - since >= (LATE_IF_COMPLETED if completed else LATE_SECONDS):
                self.lose(job, said_of(place, job.log))
        self.show(known, now)

    def lose(self, job: Job, what: str) -> None:
        """Note that a job has ended without an answer."""
        reason = f"job {job.id} {what} (log: {short(job.log)})"
        self.found[job.id] = LostJob(job.overrides, f"Slurm {reason}", job.id)
        tell(reason)

    def show(self, known: Mapping[str, Place], now: float) -> None:
        """Tell how many jobs wait, and for what, when that has changed; not too often."""
        text = summary([known.get(job.id) for job in self.open()], len(self.found))
        if text and text != self.told and now - self.told_at >= TELL_SECONDS:
            self.told, self.told_at = text, now
            tell(text)


def summary(found: Sequence[Place | None], ended: int) -> str:
    """Word where jobs are: how many run and wait, and what is unusual about it.

    Args:
        found: place of each job that has not ended, None where Slurm does not know it.
        ended: number of the others.
    """
    states = Counter(place.state.lower() for place in found if place and place.state not in FINAL)
    waiting = Counter(place.reason for place in found if place and place.state == "PENDING")
    parts = [f"{ended} ended"] if ended else []
    for state, number in sorted(states.items()):
        why = f" ({', '.join(sorted(filter(None, waiting)))})" if state == "pending" else ""
        parts.append(f"{number} {state}{why if why != ' ()' else ''}")
    text = ", ".join(parts) if states else ""
    if odd := sorted(set(waiting) - USUAL):
        text += (
            f"; {', '.join(odd)}: they may wait for ever, see squeue(1); what a job asks for is "
            "hydra.launcher.cpus_per_task, mem_gb, gpus_per_node, timeout_min and partition"
        )
    return text


def said_of(place: Place | None, log: Path) -> str:
    """Word the end of a job; what it printed last says why it broke."""
    if place is None:
        return "is not known to Slurm any more"
    reason = f" ({place.reason})" if place.reason not in ("", place.state) else ""
    line = last_line(log) if place.state in BROKEN else ""
    return f"ended as {place.state}{reason}{f': {line}' if line else ''}"


def last_line(log: Path) -> str:
    """Quote the last line of a log that says something; empty if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def short(path: Path) -> str:
    """Write a path as seen from here, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
