"""One store seen by two hosts: mount namespaces with paths and host names of their own, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from moe_runner.runs import store as module
from moe_runner.runs.store import Store
from tests.runs.test_store import ID

# Claims in its own namespace: the store is mounted at a path of its own, the host has its own name.
HOST = f"""
import socket, sys
from pathlib import Path
from moe_runner.runs.store import RunBusy, Store

store = Store(Path(sys.argv[1]), heartbeat=float(sys.argv[2]))
print("ready", socket.gethostname(), flush=True)
for line in sys.stdin:
    if line == "status\\n":
        print(store.status({ID!r}).state, flush=True)
        continue
    try:
        with store.claim({ID!r}, config_yaml="", environment={{}}):
            print("claimed", flush=True)
            sys.stdin.readline()
        print("left", flush=True)
    except RunBusy as error:
        print("busy", error, flush=True)
"""
ENTER = 'mount --bind "$1" "$2" && { [ -z "$3" ] || hostname "$3"; } && shift 3 && exec "$@"'


def may_unshare() -> bool:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "sh", "-c", "mount -t tmpfs none /mnt && hostname here"],
        capture_output=True,
    )
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(
    not may_unshare(), reason="needs root and the right to make mount namespaces (unshare)"
)


class Host:
    """A process that sees the store at a path of its own."""

    def __init__(self, stack: ExitStack, store, place, name: str, heartbeat: float) -> None:
        place.mkdir()
        command = [
            "unshare", "--mount", "--uts", "sh", "-c", ENTER, "sh", str(store), str(place), name,
            sys.executable, "-c", HOST, str(place), str(heartbeat),
        ]  # fmt: skip
        self.process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )  # fmt: skip
        stack.callback(self.process.kill)
        self.place = place
        self.name = self.hear().removeprefix("ready ")

    def hear(self) -> str:
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, word: str) -> str:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.hear()


@pytest.fixture
def hosts(tmp_path):
    with ExitStack() as stack:
        (tmp_path / "store").mkdir()

        def start(*names: str, heartbeat: float = 15.0) -> list[Host]:
            return [
                Host(stack, tmp_path / "store", tmp_path / f"seen by {number}", name, heartbeat)
                for number, name in enumerate(names)
            ]

        yield start


def test_the_lock_reaches_from_one_mount_namespace_into_another(hosts):
    one, other = hosts("", "")
    assert one.name == other.name
    assert one.ask("claim") == "claimed"
    assert not list(one.place.iterdir())  # seen from here, nothing is mounted there
    assert other.ask("claim").startswith(f"busy run {ID} is busy: pid ")
    assert other.ask("status") == "running"
    one.process.kill()  # its lock goes with it, at once
    one.process.wait()
    assert other.ask("status") == "interrupted"
    assert other.ask("claim") == "claimed"
    assert other.ask("leave") == "left"


def test_hosts_of_different_names_go_by_the_lock_and_by_the_heartbeat(hosts, tmp_path):
    one, other = hosts("node1", "node2", heartbeat=0.2)
    assert (one.name, other.name) == ("node1", "node2")
    assert one.ask("claim") == "claimed"
    busy = other.ask("claim")
    assert busy.startswith(f"busy run {ID} is busy: pid ")
    assert " on node1, last heartbeat 0 s ago" in busy
    one.process.kill()
    one.process.wait()
    assert " on node1, last heartbeat" in other.ask("claim")  # its heart may still beat
    store = Store(tmp_path / "store", heartbeat=0.2)
    while store._has_heartbeat(ID):
        time.sleep(0.1)
    assert other.ask("status") == "interrupted"
    assert other.ask("claim") == "claimed"
    assert module.MISSED_HEARTBEATS * 15.0 == 150.0  # what docs/clusters.md says
