"""A Ray cluster: get to it, or say in one line why not; what it has, and what a run asks of it."""

from __future__ import annotations

import atexit
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from moe_runner.options.errors import ConfigError

MISSING = "hydra/launcher=ray_cluster needs Ray; in a clone of moe-runner: pip install -e '.[ray]'"
WANTS_TOKEN = (
    "the Ray cluster wants a token; RAY_AUTH_MODE=token shows it that of ~/.ray/auth_token, "
    "which has to be the head's (ray get-auth-token)"
)
ANSWER_SECONDS = 20.0  # a head that has not answered by then is none; Ray itself waits 5 minutes
PROBE_SECONDS = 3.0
OBJECT_STORE = 100_000_000  # bytes of shared memory of a local cluster: runs exchange no tensors
NODES_SHOWN = 4
PORTS = 65535

# read by Ray when it is imported; a value that the user has set stays
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports to Ray's authors
    "RAY_DEDUP_LOGS": "0",  # runs write alike lines, and each is wanted
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # num_gpus=0: a run sees no GPU; no warning
}


@dataclass(frozen=True)
class Node:
    """A living node of the cluster and what it has in all, taken or free."""

    host: str
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class Request:
    """What a run asks of a node, and how often it is tried again.

    Raises:
        ConfigError: if a value is not allowed.
    """

    num_cpus: float
    num_gpus: float
    max_retries: int

    def __post_init__(self) -> None:
        problems = []
        if not self.num_cpus > 0:
            problems.append(
                f"hydra.launcher.num_cpus={self.num_cpus:g} is not valid; use a number above 0"
            )
        if self.num_gpus < 0 or (self.num_gpus > 1 and self.num_gpus % 1):
            problems.append(
                f"hydra.launcher.num_gpus={self.num_gpus:g} is not valid; "
                "use 0, a share of a GPU, or a whole number"
            )
        if self.max_retries < 0:
            problems.append(
                f"hydra.launcher.max_retries={self.max_retries} is not valid; use 0 or more"
            )
        if problems:
            raise ConfigError(*problems)

    def __str__(self) -> str:
        return have(self.num_cpus, self.num_gpus)

    def places(self, node: Node) -> int:
        """Count the runs that a node can carry out at once."""
        by_cpus = int(node.num_cpus / self.num_cpus)
        return min(by_cpus, int(node.num_gpus / self.num_gpus)) if self.num_gpus else by_cpus


def have(num_cpus: float, num_gpus: float) -> str:
    """Write "8 CPUs and 1 GPU"."""
    cpus, gpus = (f"{number:g}" for number in (num_cpus, num_gpus))
    return f"{cpus} CPU{'' if cpus == '1' else 's'} and {gpus} GPU{'' if gpus == '1' else 's'}"


def shortage(request: Request, nodes: Sequence[Node]) -> str | None:
    """Say why no node can ever carry out a run, and what to do; None if one can.

    Args:
        request: of a run.
        nodes: of the cluster.
    """
    if any(request.places(node) for node in nodes):
        return None
    asked = f"each asks for {request}"
    able = [node for node in nodes if node.num_cpus > 0]
    if not able:
        return f"{asked}, and the cluster has no node with CPUs; add one (ray start --address=...)"
    best = max(able, key=lambda node: (min(node.num_gpus, request.num_gpus), node.num_cpus))
    shown = [f"{node.host}: {have(node.num_cpus, node.num_gpus)}" for node in able[:NODES_SHOWN]]
    shown += [f"and {len(able) - NODES_SHOWN} more"] if len(able) > NODES_SHOWN else []
    fits = {
        "num_cpus": (request.num_cpus, best.num_cpus),
        "num_gpus": (request.num_gpus, best.num_gpus),
    }
    words = [f"hydra.launcher.{key}={has:g}" for key, (wants, has) in fits.items() if wants > has]
    return (
        f"{asked}, and no node has that ({'; '.join(shown)}); "
        f"use {' '.join(words)}, or add a node (ray start --address=...)"
    )


def check_installed() -> None:
    """Check that Ray is there, without importing it.

    Raises:
        ConfigError: if not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(MISSING)


def check_answers(address: str) -> None:
    """Check that a cluster answers, in a process that can be ended: Ray's own attempt cannot.

    Args:
        address: auto, or `host:port` of the head.

    Raises:
        ConfigError: if not.
    """
    known = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    named = f"hydra.launcher.address={address}"
    named += f" (RAY_ADDRESS={known})" if known and known != address else ""
    remedy = (
        "start one with ray start --head, or use hydra.launcher.address=<host:port of the head>, "
        "or hydra.launcher.address=local for this machine alone"
    )
    if known:
        host, _, port = known.rpartition(":")
        if "://" in known or not host or not port.isdigit() or int(port) > PORTS:
            raise ConfigError(f"{named} is not valid; use auto, local, or <host:port of the head>")
        try:
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"{named}: no Ray cluster there ({reason}); {remedy}") from None
    said = health(known)
    if said is not None and "AuthenticationError" in said:
        # as ray.init does: the token is shown only to a cluster that this machine is part of
        if not known and os.environ.get("RAY_AUTH_MODE") is None:
            said = health(known, RAY_AUTH_MODE="token")
        if said is not None and "AuthenticationError" in said:
            raise ConfigError(f"{named}: {WANTS_TOKEN}")
    if said is not None:
        raise ConfigError(f"{named}: no Ray cluster answers ({said}); {remedy}")


def health(address: str, **environment: str) -> str | None:
    """Ask a cluster whether it lives, in a process that can be ended.

    Args:
        address: of the head; empty: the cluster that this machine is part of.
        environment: variables in place of those of this process.

    Returns:
        Why it does not answer as it should; None if it does.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    words += ["--address", address] if address else []
    try:
        asked = subprocess.run(
            words,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_SECONDS:.0f} s"
    if asked.returncode == 0:
        return None
    lines = (asked.stderr or asked.stdout).strip().splitlines()
    if any("Could not find any running Ray" in line for line in lines):
        return "none is running"
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no answer"])[-1].strip()


def end_at_once() -> None:
    """End this process with the code of runs that failed, and nothing else."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class Cluster:
    """The connection to a cluster, as a context; a local one lives as long as that.

    Args:
        address: auto, local, or `host:port` of the head.

    Raises:
        ConfigError: on the way in, if Ray or the cluster is missing.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_local = address == "local"
        self.head: tuple[str, int] | None = None
        self.is_lost = False

    def __enter__(self) -> Cluster:
        check_installed()
        for key, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        if not sys.stderr.isatty():
            os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        own: dict[str, Any] = {}
        if self.is_local:
            own = {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
        else:
            check_answers(self.address)
        import ray  # two seconds

        try:
            ray.init(address=self.address, logging_level="ERROR", **own)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"hydra.launcher.address={self.address}: {reason}") from error
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self.head = (host, int(port))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        if not self.is_lost:  # else it waits for the head, and ends this process without a word
            ray.shutdown()

    def answers(self) -> bool:
        """Tell whether the head can be reached; without it Ray's own calls wait for long."""
        assert self.head is not None
        try:
            socket.create_connection(self.head, PROBE_SECONDS).close()
        except OSError:
            return False
        return True

    def give_up(self) -> None:
        """Leave a cluster whose head is gone; at its end this process leaves Ray as it is."""
        self.is_lost = True
        atexit.register(end_at_once)  # before Ray's own, which waits for the head

    def nodes(self) -> list[Node]:
        """List the nodes that live."""
        import ray

        return [
            Node(
                each["NodeManagerHostname"],
                each["Resources"].get("CPU", 0),
                each["Resources"].get("GPU", 0),
            )
            for each in ray.nodes()
            if each["Alive"]
        ]

    def free(self) -> str:
        """Say what nobody uses now."""
        import ray

        found = ray.available_resources()
        return have(found.get("CPU", 0), found.get("GPU", 0))
