"""A Ray cluster of this machine: nodes on the loopback, each ended with all that runs there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = "127.0.0.2"  # 127.0.0.1 is replaced by Ray with the address of the network card
START_SECONDS = 120


def environment(**own: str) -> dict[str, str]:
    """What a command and the nodes have in common; no cluster of the user's."""
    ours = {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | ours | own


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HEAD, 0))
        return free.getsockname()[1]


def can_name_a_host() -> bool:
    """Tell whether a process may have a host name of its own, as a node of another machine."""
    if shutil.which("unshare") is None:
        return False
    asked = subprocess.run(["unshare", "--uts", "hostname", "other"], capture_output=True)
    return asked.returncode == 0


class RayNode:
    """A node that was started with `ray start --block`.

    Args:
        folder: for its log.
        temp: its files, with a short path: sockets are there.
        words: of the command.
        host: name of its own; needs `can_name_a_host`.
    """

    def __init__(self, folder: Path, temp: Path, *words: str, host: str | None = None) -> None:
        name = host or "here"
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *words, "--block",
            "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000",
            f"--temp-dir={temp}",
        ]  # fmt: skip
        if host is not None:
            command = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', host, *command]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment(), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"no Ray node: {self.log.read_text()[-2000:]}")
            time.sleep(0.5)

    def processes(self) -> set[int]:
        """All processes of the node; those of its runs have process groups of their own."""
        words = ["ps", "-eo", "pid=,ppid="]
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        parents = dict(map(int, line.split()) for line in listed.splitlines())
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def kill(self) -> None:
        """End the node and all that runs there at once, as when a machine loses its power."""
        for pid in self.processes() if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def head(folder: Path, temp: Path, port: int) -> RayNode:
    return RayNode(
        folder, temp, "--head", f"--node-ip-address={HEAD}", f"--port={port}",
        "--include-dashboard=false", "--disable-usage-stats", "--min-worker-port=21000",
        "--max-worker-port=21099",
    )  # fmt: skip


def second(folder: Path, temp: Path, port: int, host: str | None = None) -> RayNode:
    return RayNode(
        folder, temp, f"--address={HEAD}:{port}", "--node-ip-address=127.0.0.3",
        "--min-worker-port=21100", "--max-worker-port=21199", host=host,
    )  # fmt: skip
