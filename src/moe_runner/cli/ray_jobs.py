"""The jobs of a sweep as tasks of a Ray cluster: hand them in, follow them, try lost ones again."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from moe_runner.cli.launching import LostJob
from moe_runner.cli.ray_cluster import Cluster, Request, shortage
from moe_runner.cli.ray_node import Place, Sweep, job_on_node
from moe_runner.files import one_line
from moe_runner.options.errors import ConfigError

LOOK_SECONDS = 5.0  # between two looks at what the cluster has
GONE_SECONDS = 40.0  # a head out of reach for so long is gone; after 60 Ray ends this process
PATIENCE_SECONDS = 30.0  # runs that wait so long while none runs are told
END_SECONDS = 20.0  # a cancelled run has so long to write its state
OUT_OF_REACH = "the head of the cluster is out of reach; what runs goes on for now"

# of the command's environment, beside hydra.job.env_set; a node's own hold for the rest
PASSED_ON = ("HF_", "WANDB_", "TRANSFORMERS_", "OMP_NUM_THREADS")


def carry_out(
    jobs: Mapping[int, Sequence[str]],
    request: Request,
    cluster: Cluster,
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
) -> list[JobReturn]:
    """Carry out jobs on a cluster.

    Args:
        jobs: overrides by number.
        request: of each.
        cluster: that is connected.
        context: of Hydra.
        task: what carries out a composed config.
        config: of the command.

    Returns:
        What each job returned, in order; a `LostJob` for one that came to no end.

    Raises:
        ConfigError: if the nodes can never carry out a job, and none can be added.
    """
    nodes = cluster.nodes()
    lacking = shortage(request, nodes)
    if lacking and cluster.is_local:
        raise ConfigError(f"hydra.launcher.address=local: {count(len(jobs))}, {lacking}")
    with seen_by_all(Path(config.hydra.sweep.dir)) as token:
        given = {
            key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)
        } | dict(config.hydra.job.env_set)
        sweep = Sweep(
            context, task, config, Singleton.get_state(), Path.cwd(), token.resolve(), given
        )
        quiet = bool(config.get("quiet"))
        if not quiet:
            places = sum(request.places(node) for node in nodes)
            tell(
                f"Ray: {count(len(jobs))} with {request} each, {places} at once on "
                f"{len(nodes)} node{'s'[: len(nodes) != 1]} ({cluster.address})"
            )
        return Tasks(jobs, request, cluster, sweep, quiet=quiet).follow()


@contextmanager
def seen_by_all(folder: Path) -> Any:
    """Make a file that a node sees if it has the command's file system; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="ray-", dir=folder) as file:
        yield Path(file.name)


def count(number: int, verb: str = "") -> str:
    """Write "1 run", or "2 runs wait", "1 run waits" with a verb."""
    runs = f"{number} run{'' if number == 1 else 's'}"
    return f"{runs} {verb}{'s' if number == 1 else ''}" if verb else runs


def tell(line: str) -> None:
    """Write a line for who gave the command."""
    print(line, file=sys.stderr)


@dataclass
class Attempt:
    """A job that the cluster has."""

    number: int
    tries: int
    place: Place | None = None  # None: it waits


class Tasks:
    """Tasks of a cluster, one per job.

    A task whose node or process died is handed in again by us rather than by Ray, so that it is
    told, and the new process knows that the run may still count as claimed.

    Args:
        jobs: overrides by number.
        request: of each.
        cluster: that is connected.
        sweep: that they belong to.
        quiet: tell only what goes wrong.
    """

    def __init__(
        self,
        jobs: Mapping[int, Sequence[str]],
        request: Request,
        cluster: Cluster,
        sweep: Sweep,
        *,
        quiet: bool,
    ) -> None:
        import ray

        self.ray, self.jobs, self.request, self.cluster = ray, jobs, request, cluster
        self.quiet, self.names = quiet, names_of(jobs)
        self.sweep = ray.put(sweep)
        # a process per run, which frees what it has taken
        self.remote = ray.remote(max_calls=1)(job_on_node)
        self.open: dict[Any, Attempt] = {}  # by Ray's generator
        self.ended: dict[int, JobReturn] = {}
        self.told, self.idle_since = "", time.monotonic()
        self.head_seen = time.monotonic()

    def follow(self) -> list[JobReturn]:
        """Hand all jobs in and wait for their end; cancel what runs if that is interrupted."""
        try:
            for number in self.jobs:
                self.hand_in(number, tries=1)
            while self.open:
                ready, _ = self.ray.wait(list(self.open), timeout=LOOK_SECONDS, fetch_local=False)
                for task in ready:
                    self.take(task)
                if self.has_head():
                    self.tell_waiting()
        except BaseException:
            self.cancel()
            raise
        return [self.ended[number] for number in self.jobs]

    def hand_in(self, number: int, tries: int) -> None:
        """Give a job to the cluster."""
        options = self.remote.options(
            name=f"#{number}",
            num_cpus=self.request.num_cpus,
            num_gpus=self.request.num_gpus,
            max_retries=0,
            scheduling_strategy="SPREAD",  # nodes that are idle first
        )
        task = options.remote(self.sweep, number, list(self.jobs[number]), tries > 1)
        self.open[task] = Attempt(number, tries)

    def take(self, task: Any) -> None:
        """Take what a task has yielded, or what became of it."""
        errors = self.ray.exceptions
        attempt = self.open[task]
        try:
            found = self.ray.get(next(task))
        except (
            errors.NodeDiedError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ) as error:
            del self.open[task]
            self.lose(attempt, error)
        except errors.RayError as error:  # of the job around its run, such as a missing package
            del self.open[task]
            cause = getattr(error, "cause", None) or error
            self.give_up(attempt, f"{type(cause).__name__}: {last_line(cause)}")
        else:
            if isinstance(found, Place):
                attempt.place, self.idle_since = found, time.monotonic()
                if not self.quiet:
                    tell(f"{self.names[attempt.number]} runs on {found}")
                return
            del self.open[task]
            if isinstance(found, str):
                self.give_up(attempt, found)
            else:
                self.ended[attempt.number] = found

    def lose(self, attempt: Attempt, error: Exception) -> None:
        """Try a job again whose process is gone, unless that was the last time."""
        kinds = {
            "NodeDiedError": "its node died",
            "OutOfMemoryError": "its node had no memory left",
        }
        where = f" on {attempt.place}" if attempt.place else ""
        reason = f"{kinds.get(type(error).__name__, 'its process died')}{where}"
        if attempt.tries > self.request.max_retries:
            times = f", {attempt.tries} times in all" if attempt.tries > 1 else ""
            self.give_up(attempt, f"{reason}{times} (hydra.launcher.max_retries)")
            return
        again = f"try {attempt.tries + 1} of {self.request.max_retries + 1}"
        tell(f"{self.names[attempt.number]}: {reason}; {again} goes on from its checkpoint")
        self.hand_in(attempt.number, attempt.tries + 1)

    def give_up(self, attempt: Attempt, reason: str) -> None:
        """Note that a job came to no end."""
        tell(f"{self.names[attempt.number]}: {reason}")
        self.ended[attempt.number] = LostJob(list(self.jobs[attempt.number]), reason)

    def has_head(self) -> bool:
        """Tell whether the cluster has its head, and give all jobs up if that is gone for good."""
        now = time.monotonic()
        if self.cluster.answers():
            self.head_seen = now
            return True
        if now - self.head_seen > GONE_SECONDS:
            self.cluster.give_up()
            for attempt in self.open.values():
                where = f" while it ran on {attempt.place}" if attempt.place else ""
                self.give_up(attempt, f"the head of the cluster is gone{where}")
            self.open.clear()
        elif self.told != OUT_OF_REACH:
            tell(OUT_OF_REACH)
            self.told = OUT_OF_REACH
        return False

    def tell_waiting(self) -> None:
        """Tell how many jobs wait for what no node has, or for others, when that changes."""
        waiting = sum(attempt.place is None for attempt in self.open.values())
        running = len(self.open) - waiting
        now, text = time.monotonic(), ""
        if running:
            self.idle_since = now
        if waiting and (lacking := shortage(self.request, self.cluster.nodes())):
            text = f"{count(waiting, 'wait')}: {lacking}"
        elif waiting and not running and now - self.idle_since > PATIENCE_SECONDS:
            text = f"{count(waiting, 'wait')} for {self.request} each: others use the cluster"
            text += f" ({self.cluster.free()} free on all nodes together)"
        if text and text != self.told:
            tell(text)
        self.told = text

    def cancel(self) -> None:
        """Stop what runs as Ctrl-C does, then what has not ended in time."""
        for task in self.open:
            self.ray.cancel(task)
        end = time.monotonic() + END_SECONDS
        while self.open and time.monotonic() < end:
            for task in self.ray.wait(list(self.open), timeout=1.0, fetch_local=False)[0]:
                try:
                    self.ray.get(next(task))
                except (self.ray.exceptions.RayError, StopIteration):
                    del self.open[task]
        for task in self.open:
            self.ray.cancel(task, force=True)


def names_of(jobs: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """Name each job by its number and what of its overrides not all have: "#3 seed=1"."""
    shared = set.intersection(*(set(words) for words in jobs.values())) if len(jobs) > 1 else set()
    return {
        number: " ".join(
            [f"#{number}", *(word for word in filter_overrides(words) if word not in shared)]
        )
        for number, words in jobs.items()
    }


def last_line(error: Any) -> str:
    """Word an error of another process: its last line says what it was."""
    lines = one_line(error).strip().splitlines()
    return lines[-1] if lines else ""
