"""The commands of Slurm that are asked: squeue and scontrol. Accounting (sacct) is not needed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

ASK_SECONDS = 60.0  # a busy controller is slow; then the question is asked again later

FINAL = {  # states from which a job does not come back by itself
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


class NoAnswer(RuntimeError):
    """Slurm's controller does not answer; the text is what the command said."""


@dataclass(frozen=True)
class Place:
    """Where a job is in Slurm.

    Args:
        state: PENDING, RUNNING, ..., see squeue(1).
        reason: why it waits, or why it ended.
    """

    state: str
    reason: str = ""


def ask(*words: str) -> str:
    """Run a command of Slurm, and return what it prints.

    Raises:
        NoAnswer: if it fails.
    """
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=ASK_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer in {ASK_SECONDS:.0f} s") from None
    if found.returncode != 0:
        lines = (found.stderr or found.stdout).strip().splitlines()
        raise NoAnswer(lines[-1] if lines else f"exit code {found.returncode}")
    return found.stdout


def places(array: str) -> dict[str, Place]:
    """Look up the jobs of an array, ended ones as well, as long as the controller knows them.

    Args:
        array: its id; that of a single job.

    Returns:
        By job id (`12_3`, of a single job `12`); empty if the controller does not know the array.

    Raises:
        NoAnswer: if the controller does not answer.
    """
    try:
        text = ask(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={array}",
            "--format=%i|%T|%r",
        )  # fmt: skip
    except NoAnswer as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    found = {}
    for line in text.splitlines():
        job, state, reason = (part.strip() for part in line.split("|", 2))
        found[job] = Place(state, "" if reason == "None" else reason)
    return found


def was_preempted(job: str) -> bool:
    """Tell whether a running job got its signal to make room for another one.

    Raises:
        NoAnswer: if the controller does not answer.
    """
    text = ask("scontrol", "--oneliner", "show", "job", job)
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    return fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") != "None"


def requeue(job: str) -> None:
    """Let Slurm end a job and start it again later.

    Raises:
        NoAnswer: if it refuses.
    """
    ask("scontrol", "requeue", job)


def tell(text: str) -> None:
    """Write a line for the user, or into the log of a job."""
    print(f"slurm: {text}", file=sys.stderr, flush=True)
