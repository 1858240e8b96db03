"""What a node of a Ray cluster does for a job: this alone is carried out in Ray's processes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from moe_runner.cli.values import parse_config
from moe_runner.options.errors import ConfigError
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.plan import make_plan

log = logging.getLogger(__name__)

SIGNS_OF_LIFE = 2  # so many heartbeats of its holder, and a run is not left over


@dataclass(frozen=True)
class Sweep:
    """What all jobs of a sweep have in common.

    Args:
        context: of Hydra.
        task: what carries out a composed config.
        config: of the command, without the overrides of a job.
        singletons: of Hydra, in the process of the command.
        folder: in which the command was given.
        token: a file that every node must see, or it does not see the runs either.
        environment: variables that hold for the runs as for the command.
    """

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    singletons: Any
    folder: Path
    token: Path
    environment: dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where a job has started."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"


def job_on_node(
    sweep: Sweep, number: int, overrides: Sequence[str], again: bool
) -> Iterator[Place | JobReturn | str]:
    """Carry out one job.

    Args:
        sweep: that it belongs to.
        number: of the job.
        overrides: of the job.
        again: an earlier process died with the job.

    Yields:
        Its place at once; at the end what it returned, or why it did not begin.
    """
    yield Place(socket.gethostname(), os.getpid())
    # Ray's processes may have inherited that Ctrl-C is ignored, and a job is stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not sweep.token.exists():
        yield (
            f"{socket.gethostname()} does not see {sweep.token.parent} of the command; "
            "all nodes need one file system for it (paths.output)"
        )
        return
    os.chdir(sweep.folder)
    os.environ.update(sweep.environment)
    try:
        yield run(sweep, number, overrides, again)
    except SystemExit as error:
        yield f"ended with exit code {error.code}"


def run(sweep: Sweep, number: int, overrides: Sequence[str], again: bool) -> JobReturn:
    """Compose the config of a job and carry it out as Hydra does."""
    setup_globals()
    Singleton.set_state(sweep.singletons)
    config = sweep.context.config_loader.load_sweep_config(sweep.config, list(overrides))
    with open_dict(config):
        config.hydra.job.id = f"{config.hydra.job.name}_{number}"
        config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    if again:
        wait_for_the_dead(config)
    return run_job(
        hydra_context=sweep.context,
        task_function=sweep.task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def wait_for_the_dead(config: DictConfig) -> None:
    """Wait until the runs of a job are free that the process before this one has held."""
    try:
        settings = parse_config(config)
        runs = () if settings.evaluate else make_plan(settings).runs
        for each in runs:
            wait_until_free(Store(Path(settings.paths.output)), each.id)
    except (ConfigError, StoreError):
        return  # the job tells it


def wait_until_free(store: Store, run_id: str, poll: float = 1.0) -> None:
    """Wait until a run counts as left by who died with it, or shows that its holder lives.

    Ray tells of a dead node within seconds; from host to host the store knows it only by the
    heartbeats that are missing, minutes later.

    Args:
        store: of the run.
        run_id: of the run.
        poll: seconds between two looks.
    """
    status_file = store.folder(run_id) / "status.json"
    beats: set[int] = set()
    while (status := store.status(run_id)).state == "running":
        if not beats:
            log.info("waiting for %s: %s (pid %s) has held it", run_id, status.host, status.pid)
        beats.add(status_file.stat().st_mtime_ns)
        if len(beats) > SIGNS_OF_LIFE:
            return  # the claim says who has it
        time.sleep(poll)
