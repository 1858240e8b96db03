"""`hydra/launcher=ray_cluster` on a real Ray cluster: nodes of this machine, on the loopback."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from moe_runner.files import read_json
from moe_runner.runs.store import Store
from tests.cluster.ray_nodes import can_name_a_host, environment, free_port, head, second

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'",
    ),
]

TINY = [
    "-m", "task=glue_mini/rte", "model=bert_tiny", "trainer.max_steps=40", "trainer.save_steps=5",
    "threads=1", "device=cpu", "seed=0,1",
]  # fmt: skip
ON_CPUS = ["hydra/launcher=ray_cluster", "hydra.launcher.num_cpus=1", "hydra.launcher.num_gpus=0"]


@pytest.fixture(scope="module")
def temp():
    """A folder with a short path: the names of sockets have a limit of 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def home(temp):
    """A home folder without a token of Ray: who has one starts a cluster that wants it."""
    (temp / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(temp / "home"))
        patch.delenv("RAY_AUTH_MODE", raising=False)
        yield


@pytest.fixture(scope="module")
def start_head(tmp_path_factory, temp):
    """Start a head with one CPU; its address and node."""
    started = []

    def start():
        port = free_port()
        node = head(tmp_path_factory.mktemp("head"), temp / f"h{len(started)}", port)
        started.append(node)
        return f"127.0.0.2:{port}", node

    yield start
    for node in started:
        node.kill()


@pytest.fixture(scope="module")
def address(start_head):
    return start_head()[0]


@pytest.fixture
def start_second(tmp_path, temp, address):
    """Start a second node, of this host or one of another name."""
    started = []

    def start(host=None):
        place = Path(tempfile.mkdtemp(dir=temp))
        started.append(second(tmp_path, place, int(address.rpartition(":")[2]), host))
        return started[-1]

    yield start
    for node in started:
        node.kill()


def words(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "moe_runner.train", *arguments]


def moe_run(folder: Path, *arguments: str, seconds=600, **own: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words(*arguments), cwd=folder, env=environment(**own), capture_output=True, text=True,
        timeout=seconds,
    )  # fmt: skip


class Command:
    """A command that runs, with its output in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "command.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words(*arguments), cwd=folder, env=environment(), stdout=log, stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, what, seconds=400):
        """Wait until something is true, and return it."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.2)
        return found

    def end(self, seconds=600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end: {self.text}")
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def numbers(output: Path) -> dict[str, tuple]:
    """What of each result must not depend on who carried it out."""
    return {
        each.id: (each.id_metrics, each.ood_metrics, each.best_epoch, each.learning_curve)
        for each in Store(output).results()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The numbers of Hydra's basic launcher."""
    folder = tmp_path_factory.mktemp("basic")
    done = moe_run(folder, *TINY)
    assert done.returncode == 0, done.stderr
    found = numbers(folder / "outputs")
    assert len(found) == 2
    return found


def test_a_sweep_has_the_ids_and_numbers_of_the_basic_launcher_and_a_failing_run_ends_no_other(
    address, start_second, undisturbed, tmp_path
):
    start_second()
    sweep = [*TINY, "trainer.learning_rate=5e-4,1e30", *ON_CPUS]
    done = moe_run(tmp_path, *sweep, f"hydra.launcher.address={address}")
    assert done.returncode == 1, done.stderr
    assert numbers(tmp_path / "outputs") == undisturbed
    assert "Ray: 4 runs with 1 CPU and 0 GPUs each, 2 at once on 2 nodes" in done.stderr
    failed = re.findall(r"^failed: .* lr 1e\+30 seed (\d) ", done.stderr, re.M)
    assert sorted(failed) == ["0", "1"], done.stderr
    assert "\x1b[" not in done.stderr
    again = moe_run(tmp_path, *TINY, *ON_CPUS, "hydra.launcher.address=127.0.0.2:1")
    assert again.returncode == 0, again.stderr  # all is done: no cluster is looked for
    assert again.stderr.count("done before: ") == 2


@pytest.mark.parametrize("host", [None, "node2"])
def test_the_run_of_a_node_that_dies_goes_on_elsewhere_from_its_checkpoint(
    host, address, start_second, undisturbed, tmp_path
):
    """With a host name of its own, the store knows only by missed heartbeats that it died."""
    if host is not None and not can_name_a_host():
        pytest.skip("unshare --uts is not allowed here: a node cannot have its own host name")
    node = start_second(host)
    command = Command(tmp_path, *TINY, *ON_CPUS, f"hydra.launcher.address={address}")
    output, name = tmp_path / "outputs", host or socket.gethostname()
    command.wait_for(lambda: command.text.count(" runs on ") == 2)
    pids = node.processes()
    status = command.wait_for(
        lambda: (run := running_in(output, name, pids)) and read_json(run / "status.json")
    )
    node.kill()
    assert command.end() == 0, command.text
    assert "its node died on" in command.text
    assert "; try 2 of 4 goes on from its checkpoint" in command.text
    assert numbers(output) == undisturbed
    (moved,) = [
        run for run in output.glob("runs/*") if read_json(run / "status.json")["attempts"] == 2
    ]
    assert read_json(moved / "status.json")["pid"] != status["pid"]
    assert read_json(moved / "status.json")["host"] == socket.gethostname()
    assert read_json(moved / "result.json")["resumed_at_update"] >= 5


def running_in(output: Path, host: str, pids: set[int]) -> Path | None:
    """The folder of a run in one of some processes that has written a checkpoint."""
    for file in output.glob("runs/*/status.json"):
        status = read_json(file)
        if status["state"] == "running" and status["host"] == host and status["pid"] in pids:
            states = list(file.parent.glob("checkpoint/checkpoint-*/trainer_state.json"))
            return file.parent if states else None
    return None


def test_a_run_that_is_lost_too_often_is_named_and_the_exit_code_is_1(
    address, undisturbed, tmp_path
):
    arguments = [*TINY, *ON_CPUS, f"hydra.launcher.address={address}"]
    command = Command(tmp_path, *arguments, "hydra.launcher.max_retries=0")
    place = command.wait_for(lambda: re.search(r" runs on \S+ \(pid (\d+)\)", command.text))
    command.wait_for(lambda: list(tmp_path.glob("outputs/runs/*/status.json")))
    os.kill(int(place[1]), signal.SIGKILL)
    assert command.end() == 1, command.text
    (line,) = [line for line in command.text.splitlines() if line.startswith("failed: ")]
    reason = rf"its process died on \S+ \(pid {place[1]}\) \(hydra.launcher.max_retries\)$"
    assert re.search(reason, line), line
    (run_id, kept) = next(iter(numbers(tmp_path / "outputs").items()))
    assert kept == undisturbed[run_id]
    (lost,) = set(undisturbed) - {run_id}
    assert f"({lost})" in line
    again = moe_run(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "outputs") == undisturbed


def test_ctrl_c_ends_what_runs(address, tmp_path):
    command = Command(tmp_path, *TINY, *ON_CPUS, f"hydra.launcher.address={address}")
    place = command.wait_for(lambda: re.search(r" runs on \S+ \(pid (\d+)\)", command.text))
    (status,) = command.wait_for(lambda: list(tmp_path.glob("outputs/runs/*/status.json")))
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end(90) == 130, command.text
    last = command.text.splitlines()[-1]
    assert last == "interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in command.text
    assert read_json(status)["state"] == "interrupted"
    end = time.monotonic() + 20
    while Path(f"/proc/{place[1]}").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{place[1]}").exists()


def test_runs_that_no_node_can_carry_out_are_told_with_what_to_do(address, tmp_path):
    command = Command(
        tmp_path, *TINY, "hydra/launcher=ray_cluster", f"hydra.launcher.address={address}"
    )
    command.wait_for(lambda: "runs wait" in command.text)
    assert (
        "2 runs wait: each asks for 8 CPUs and 1 GPU, and no node has that "
        f"({socket.gethostname()}: 1 CPU and 0 GPUs); use hydra.launcher.num_cpus=1 "
        "hydra.launcher.num_gpus=0, or add a node (ray start --address=...)"
    ) in command.text
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end(90) == 130, command.text


def test_a_head_that_dies_ends_the_command_with_the_runs_that_are_not_done(start_head, tmp_path):
    address, node = start_head()
    command = Command(tmp_path, *TINY, *ON_CPUS, f"hydra.launcher.address={address}")
    command.wait_for(lambda: list(tmp_path.glob("outputs/runs/*/status.json")))
    node.kill()
    assert command.end(150) == 1, command.text
    lines = [line for line in command.text.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 2
    assert all("the head of the cluster is gone" in line for line in lines), lines


def test_without_a_cluster_it_is_one_line_and_exit_code_2(tmp_path):
    where = f"127.0.0.2:{free_port()}"
    done = moe_run(tmp_path, *TINY, *ON_CPUS, f"hydra.launcher.address={where}", seconds=60)
    assert done.returncode == 2
    common, line = done.stderr.splitlines()
    assert common.startswith("2 runs, all with ")
    assert line.startswith(
        f"hydra.launcher.address={where}: no Ray cluster there (Connection refused); start one with"
    )
    done = moe_run(tmp_path, *TINY, *ON_CPUS, seconds=60, RAY_ADDRESS=where)
    assert done.returncode == 2
    assert f"address=auto (RAY_ADDRESS={where}): no Ray cluster" in done.stderr


def test_a_cluster_that_wants_a_token_is_told_and_gets_it_when_asked(
    start_head, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    subprocess.run(made, env=environment(), check=True, capture_output=True)
    address, node = start_head()
    one = ["-m", "task=glue_mini/rte", "trainer.max_steps=2", "threads=1", *ON_CPUS]
    arguments = [*one, f"hydra.launcher.address={address}"]
    done = moe_run(tmp_path, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the Ray cluster wants a token; RAY_AUTH_MODE=token shows it that of" in line
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    done = moe_run(tmp_path, *arguments, RAY_AUTH_MODE="token", HOME=str(stranger))
    assert done.returncode == 2, done.stderr
    assert not list(tmp_path.glob("outputs/runs/*"))
    done = moe_run(tmp_path, *arguments, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stderr
    node.kill()


def test_what_listens_and_is_no_ray_is_told_within_a_minute(tmp_path):
    with socket.create_server(("127.0.0.2", 0)) as silent:
        where = f"127.0.0.2:{silent.getsockname()[1]}"
        done = moe_run(tmp_path, *TINY, *ON_CPUS, f"hydra.launcher.address={where}", seconds=90)
    assert done.returncode == 2
    assert "no Ray cluster answers (no answer within 20 s)" in done.stderr


def test_a_cluster_of_this_machine_alone_is_started_and_ended(undisturbed, tmp_path):
    here = "hydra.launcher.address=local"
    asks_too_much = [*TINY, "hydra/launcher=ray_cluster", here, "hydra.launcher.num_cpus=4096"]
    done = moe_run(tmp_path, *asks_too_much, HOME=str(tmp_path))
    assert done.returncode == 2
    common, line = done.stderr.splitlines()
    assert common.startswith("2 runs, all with ")
    assert "each asks for 4096 CPUs and 1 GPU, and no node has that" in line
    done = moe_run(tmp_path, *TINY, *ON_CPUS, here, HOME=str(tmp_path))  # Ray leaves a token there
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "outputs") == undisturbed
