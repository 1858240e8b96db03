"""A Slurm cluster of two nodes on this machine, for tests: loopback only, own ports and folders.

    python scripts/slurm_on_one_machine.py            # as root; Ctrl-C ends it
    python scripts/slurm_on_one_machine.py --without-accounting

It needs Debian's packages (apt-get install -y --no-install-recommends slurm-wlm munge slurmdbd
mariadb-server) and touches none of their files: configuration, keys, the data base, spools and logs
are in a folder that goes away with the cluster. Every daemon is a child of this process, in the
foreground; it is ended by its process id, and by the kernel if this process is killed.

Written for Slurm 22.05. The nodes claim two cores and 8 GB each, whatever the machine has.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "munged": "munge",
    "setpriv": "util-linux",
}
OF_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
NODES = ("n1", "n2")
CPUS, MEMORY_MB = 2, 8000  # of a node
START_SECONDS = 60.0
CREDENTIAL_SECONDS = 10  # a requeued job waits that long; Slurm's default is 120

SLURM_CONF = """\
ClusterName=moe
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_seconds}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
EnforcePartLimits={enforce_limits}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge={job_age}
ReturnToService=2
GresTypes=gpu
{accounting}
{nodes}
PartitionName=gpu Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=9
"""


class Unavailable(RuntimeError):
    """Slurm cannot be started here; the text says why and what to do."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Args:
        folder: of its files; logs are `*.log`.
        accounting: whether `sacct` answers.
    """

    folder: Path
    accounting: bool

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs beside its own environment to use this cluster."""
        return {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """Run a command of Slurm, and return what it prints.

        Raises:
            subprocess.CalledProcessError: if it fails.
        """
        return subprocess.run(
            words, env=os.environ | self.environment, check=True, capture_output=True, text=True
        ).stdout


def check_available(*, accounting: bool) -> None:
    """Check that this user can start Slurm here.

    Raises:
        Unavailable: if not.
    """
    if os.geteuid() != 0:
        raise Unavailable("Slurm on one machine is started as root, and this is another user")
    needed = PACKAGES | (OF_ACCOUNTING if accounting else {})
    missing = sorted({package for name, package in needed.items() if shutil.which(name) is None})
    if missing:
        raise Unavailable(
            f"{', '.join(missing)} missing: apt-get install -y --no-install-recommends "
            f"{' '.join(missing)}"
        )


def free_ports(number: int) -> list[int]:
    """Find ports of the loopback address that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(*, accounting: bool = True, enforce_limits: bool = True) -> Iterator[Cluster]:
    """Start a cluster, and end it with all its jobs when the block is left.

    Args:
        accounting: with slurmdbd and its data base; without them `sacct` fails, and the controller
            forgets an ended job within seconds.
        enforce_limits: refuse a job that no node can take; else it waits.

    Raises:
        Unavailable: if it cannot be started; the daemons' logs are in the text.
    """
    check_available(accounting=accounting)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        folder.chmod(0o711)  # munge wants everybody to reach its socket
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(end_strays, folder)
        yield start(folder, stack, accounting, enforce_limits)


def start(folder: Path, stack: ExitStack, accounting: bool, enforce_limits: bool) -> Cluster:
    """Start the daemons one after the other; the stack ends them in the reverse order."""
    made = Cluster(folder, accounting)
    environment = os.environ | made.environment
    database_port, accounting_port, controller_port, *node_ports = free_ports(3 + len(NODES))
    for name in ("etc", "state", "database", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge").mkdir(mode=0o755)

    daemons: dict[str, subprocess.Popen] = {}

    def daemon(*words: str, name: str = "") -> None:
        name = name or words[0]
        output = folder / f"{name}.out"
        daemons[name] = stack.enter_context(running(name, words, output, environment))

    def ready(what: str, *words: str, wanted: Callable[[str], bool] = lambda _: True) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            found = subprocess.run(words, env=environment, capture_output=True, text=True)
            if found.returncode == 0 and wanted(found.stdout):
                return
            ended = [name for name, process in daemons.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"not after {START_SECONDS:.0f} s"
                said = f"{found.stdout}{found.stderr}".strip()
                raise Unavailable(f"{what} not ready: {why}; {said}\n{logs(folder)}")
            time.sleep(0.3)

    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    places = {each: f"{folder}/munge/{each}" for each in ("socket", "pid", "log", "seed")}
    daemon(
        "munged", "--foreground", f"--key-file={key}", f"--socket={places['socket']}",
        f"--pid-file={places['pid']}", f"--log-file={places['log']}",
        f"--seed-file={places['seed']}",
    )  # fmt: skip
    ready("munged", "munge", "--no-input", f"--socket={places['socket']}")

    if accounting:
        start_database(folder, database_port, daemon, ready, environment)
    gres = [f"NodeName={node} Name=gpu File=/dev/null" for node in NODES]  # only counted
    (folder / "etc" / "gres.conf").write_text("\n".join(gres) + "\n")
    (folder / "etc" / "cgroup.conf").write_text("CgroupAutomount=no\n")
    nodes = [
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        f"RealMemory={MEMORY_MB} Gres=gpu:1 State=UNKNOWN"
        for node, port in zip(NODES, node_ports, strict=True)
    ]
    kept = (
        "accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
        f"AccountingStoragePort={accounting_port}\n"
        f"AccountingStoragePass={places['socket']}"  # of munge
    )
    (folder / "etc" / "slurm.conf").write_text(
        SLURM_CONF.format(
            folder=folder,
            controller_port=controller_port,
            credential_seconds=CREDENTIAL_SECONDS,
            enforce_limits="ALL" if enforce_limits else "NO",
            job_age=300 if accounting else 2,
            accounting=f"AccountingStorageType={kept if accounting else 'accounting_storage/none'}",
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )
    )
    if accounting:
        start_accounting(folder, database_port, accounting_port, daemon, ready, environment)
    daemon("slurmctld", "-D", "-c")
    ready("slurmctld", "scontrol", "ping", wanted=lambda text: "is UP" in text)
    for node in NODES:
        daemon("slurmd", "-D", "-N", node, name=f"slurmd-{node}")
    ready(
        "the nodes", "sinfo", "--noheader", "--Node", "--format=%N %T",
        wanted=lambda text: {line for line in text.splitlines()} == {f"{n} idle" for n in NODES},
    )  # fmt: skip
    stack.callback(end_jobs, made)
    return made


def start_database(
    folder: Path, port: int, daemon: Callable, ready: Callable, environment: dict[str, str]
) -> None:
    """Start MariaDB with a data base and a user for slurmdbd."""
    call(
        folder, environment,
        "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}/database",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    )  # fmt: skip
    daemon(
        "mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/database",
        f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/database.socket",
        f"--pid-file={folder}/database.pid",
    )  # fmt: skip
    client = ("mariadb", "--no-defaults", "--user=root", f"--socket={folder}/database.socket")
    ready("mariadbd", *client, "--execute=select 1")
    (folder / "password").write_text(secrets.token_hex(16))
    password = (folder / "password").read_text()
    rights = "; ".join(
        f"create user 'slurm'@'{host}' identified by '{password}'; "
        f"grant all on accounting.* to 'slurm'@'{host}'"
        for host in ("localhost", "127.0.0.1")
    )
    call(folder, environment, *client, f"--execute=create database accounting; {rights}")


def start_accounting(
    folder: Path,
    database_port: int,
    port: int,
    daemon: Callable,
    ready: Callable,
    environment: dict[str, str],
) -> None:
    """Start slurmdbd, and make the cluster known to it."""
    file = folder / "etc" / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\n"
        f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={port}\nSlurmUser=root\n"
        f"PidFile={folder}/slurmdbd.pid\nLogFile={folder}/slurmdbd.log\n"
        "CommunicationParameters=NoInAddrAny\n"
        "StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
        f"StoragePort={database_port}\nStorageUser=slurm\nStorageLoc=accounting\n"
        f"StoragePass={(folder / 'password').read_text()}\n"
    )
    daemon("slurmdbd", "-D")
    ready("slurmdbd", "sacctmgr", "--immediate", "add", "cluster", "moe")


@contextmanager
def running(
    name: str, words: Sequence[str], output: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen]:
    """Run a daemon in the foreground until the block is left; the kernel ends it if we are killed.

    It has a session of its own: a Ctrl-C is for this process alone.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            print(f"{name} does not end; it is killed", file=sys.stderr)
            process.kill()
            process.wait()


def call(folder: Path, environment: dict[str, str], *words: str) -> None:
    """Run a command to its end.

    Raises:
        Unavailable: if it fails.
    """
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    if found.returncode != 0:
        raise Unavailable(f"{words[0]} failed: {found.stdout}{found.stderr}\n{logs(folder)}")


def logs(folder: Path) -> str:
    """Quote the end of every log."""
    parts = []
    for file in sorted([*folder.glob("*.log"), *folder.glob("*.out"), *folder.glob("munge/log")]):
        lines = file.read_text(errors="replace").splitlines()[-8:]
        parts += [f"--- {file.name}", *lines]
    return "\n".join(parts)


def end_jobs(made: Cluster) -> None:
    """Cancel all jobs, and wait a moment for them."""
    with suppress(subprocess.CalledProcessError):
        made.ask("scancel", "--user=root", "--signal=KILL", "--full")
        made.ask("scancel", "--user=root")
        deadline = time.monotonic() + 15
        while made.ask("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.5)


def end_strays(folder: Path) -> None:
    """Kill what jobs have left: processes whose command or environment names the folder."""
    needle = str(folder).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is the kernel's
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if needle in said:
                os.kill(int(entry.name), signal.SIGKILL)


def main() -> int:
    """Start a cluster, say how to use it, and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--without-accounting", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with cluster(accounting=not given.without_accounting) as made:
            print(f"export SLURM_CONF={made.environment['SLURM_CONF']}")
            print(f"two nodes are up; logs: {made.folder}/*.log; Ctrl-C ends them", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
