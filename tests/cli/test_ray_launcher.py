"""The launcher for a Ray cluster, as far as it needs no Ray: tests/cluster has the rest."""

from __future__ import annotations

import importlib.util
import math
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from hydra_plugins.moe_ray_launcher.launcher import MoERayLauncher, MoERayLauncherConf
from moe_runner.cli.handover import Handover
from moe_runner.cli.launching import JobLost, LostJob
from moe_runner.cli.ray_cluster import (
    MISSING,
    Cluster,
    Node,
    Request,
    check_answers,
    check_installed,
    shortage,
)
from moe_runner.cli.ray_jobs import carry_out, names_of, seen_by_all
from moe_runner.cli.ray_node import Place, Sweep, job_on_node, wait_until_free
from moe_runner.files import write_json
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF, option_folders
from moe_runner.runs.environment import environment
from moe_runner.runs.store import Status, Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan

SMALL, LARGE = Node("small", 2, 0), Node("large", 16, 4)
RUN_ID = "0123456789abcdef"


def test_without_ray_the_message_is_a_command_that_works_in_a_clone(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_installed()
    assert str(caught.value) == MISSING
    assert MISSING.endswith("pip install -e '.[ray]'")


def test_the_option_file_composes_and_has_the_fields_of_the_launcher_in_their_order():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", ["hydra/launcher=ray_cluster"], return_hydra_config=True)
    launcher = node.hydra.launcher
    assert list(launcher) == list(asdict(MoERayLauncherConf()))
    assert dict(launcher) == asdict(MoERayLauncherConf())  # the file repeats the defaults
    lines = (CONF / "hydra" / "launcher" / "ray_cluster.yaml").read_text().splitlines()
    keys = [line.partition(":")[0] for line in lines if line and line[0].isalpha()]
    assert ["_target_", *keys[1:]] == list(launcher)


def test_the_launcher_does_not_import_ray_where_there_is_nothing_to_launch():
    MoERayLauncher("auto", 1, 0, 3)
    assert "ray" not in sys.modules


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((0, 1, 3), "hydra.launcher.num_cpus=0 is not valid; use a number above 0"),
        ((math.nan, 1, 3), "hydra.launcher.num_cpus=nan is not valid; use a number above 0"),
        ((1, -1, 3), "hydra.launcher.num_gpus=-1 is not valid; use 0, a share of a GPU, or "),
        ((1, 1.5, 3), "hydra.launcher.num_gpus=1.5 is not valid; use 0, a share of a GPU, or "),
        ((1, 0, -1), "hydra.launcher.max_retries=-1 is not valid; use 0 or more"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(values, problem):
    with pytest.raises(ConfigError) as caught:
        Request(*values)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("request_", "node", "places"),
    [
        (Request(8, 1, 0), SMALL, 0),
        (Request(8, 1, 0), LARGE, 2),  # by CPUs
        (Request(2, 1, 0), LARGE, 4),  # by GPUs
        (Request(2, 0.5, 0), LARGE, 8),
        (Request(0.5, 0, 0), SMALL, 4),
    ],
)
def test_the_runs_that_a_node_can_carry_out_at_once_are_counted(request_, node, places):
    assert request_.places(node) == places


def test_a_shortage_names_request_nodes_and_what_to_do():
    assert shortage(Request(8, 1, 3), [SMALL, LARGE]) is None
    assert shortage(Request(8, 1, 3), [SMALL]) == (
        "each asks for 8 CPUs and 1 GPU, and no node has that (small: 2 CPUs and 0 GPUs); "
        "use hydra.launcher.num_cpus=2 hydra.launcher.num_gpus=0, "
        "or add a node (ray start --address=...)"
    )
    # the node with GPUs is proposed, and only what is too much is changed
    assert "use hydra.launcher.num_cpus=16, or" in str(shortage(Request(32, 1, 3), [SMALL, LARGE]))
    six = [Node(f"n{number}", 1, 0) for number in range(6)]
    assert "(n0: 1 CPU and 0 GPUs; n1: " in str(shortage(Request(2, 0, 3), six))
    assert "n3: 1 CPU and 0 GPUs; and 2 more)" in str(shortage(Request(2, 0, 3), six))
    assert "has no node with CPUs; add one" in str(shortage(Request(1, 0, 3), [Node("h", 0, 0)]))
    assert "has no node with CPUs; add one" in str(shortage(Request(1, 0, 3), []))


@pytest.mark.parametrize("address", ["ray://127.0.0.1:6379", "node1", "node1:port", "node1:65536"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="is not valid; use auto, local, or <host:port of the "):
        check_answers(address)


def test_a_closed_port_is_told_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"address=127.0.0.1:{port}: no Ray cluster there"):
        check_answers(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    told = rf"address=auto \(RAY_ADDRESS=127.0.0.1:{port}\): no Ray cluster there"
    with pytest.raises(ConfigError, match=told):
        check_answers("auto")
    assert time.monotonic() - began < 5


def test_jobs_are_named_by_what_they_do_not_share():
    jobs = {3: ["task=glue/rte", "seed=0"], 4: ["task=glue/rte", "seed=1"]}
    assert names_of(jobs) == {3: "#3 seed=0", 4: "#4 seed=1"}
    assert names_of({0: ["seed=0"]}) == {0: "#0 seed=0"}


def test_a_local_cluster_that_is_too_small_is_a_mistake_and_not_waited_for(tmp_path):
    cluster = Cluster("local")
    cluster.nodes = lambda: [SMALL]
    with pytest.raises(ConfigError, match="address=local: 1 run, each asks for 8 CPUs and 1 GPU"):
        carry_out({0: ["seed=0"]}, Request(8, 1, 3), cluster, None, None, None)


def sweep_in(folder, token) -> Sweep:
    return Sweep(None, None, None, {}, folder, token, {})


def test_a_node_with_another_file_system_says_so_and_begins_nothing(tmp_path):
    with seen_by_all(tmp_path / "outputs") as token:
        assert token.parent == tmp_path / "outputs"
    place, outcome = job_on_node(sweep_in(tmp_path, token), 0, ["seed=0"], False)
    assert isinstance(place, Place)
    assert place.host == socket.gethostname()
    assert outcome == (
        f"{socket.gethostname()} does not see {tmp_path / 'outputs'} of the command; "
        "all nodes need one file system for it (paths.output)"
    )


def test_an_exit_in_a_job_is_what_became_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def leave(*_):
        raise SystemExit(2)

    monkeypatch.setattr("moe_runner.cli.ray_node.run", leave)
    with seen_by_all(tmp_path) as token:
        outcome = list(job_on_node(sweep_in(tmp_path, token), 0, ["seed=0"], False))[-1]
    assert outcome == "ended with exit code 2"


def test_a_run_that_died_on_another_host_is_waited_for_until_its_heartbeats_are_missing(tmp_path):
    store = Store(tmp_path, heartbeat=0.05)  # ten missed: half a second
    status = Status(state="running", attempts=1, host="another", pid=1, started="")
    (store.folder(RUN_ID)).mkdir(parents=True)
    write_json(store.folder(RUN_ID) / "status.json", asdict(status))
    assert store.status(RUN_ID).state == "running"
    wait_until_free(store, RUN_ID, poll=0.02)
    assert store.status(RUN_ID).state == "interrupted"
    with store.claim(RUN_ID, config_yaml="", environment=environment(1)):
        assert store.status(RUN_ID).attempts == 2


def test_a_run_whose_holder_lives_is_not_waited_for(tmp_path):
    store = Store(tmp_path, heartbeat=0.1)
    go, stop = threading.Event(), threading.Event()

    def hold():
        with store.claim(RUN_ID, config_yaml="", environment=environment(1)):
            go.set()
            stop.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert go.wait(10)
    try:
        began = time.monotonic()
        wait_until_free(store, RUN_ID, poll=0.02)
        assert time.monotonic() - began < 10
        assert store.status(RUN_ID).state == "running"
    finally:
        stop.set()
        holder.join()


def test_a_run_that_nobody_holds_is_not_waited_for(tmp_path):
    wait_until_free(Store(tmp_path), RUN_ID, poll=60)


def test_who_asks_for_the_value_of_a_lost_job_gets_its_reason(capsys):
    job = LostJob(["seed=1"], "its node died on n1 (pid 7)")
    with pytest.raises(JobLost, match=r"failed: seed=1: its node died on n1 \(pid 7\)"):
        _ = job.return_value


@contextmanager
def composed(tmp_path):
    def compose_job(overrides):
        common = ["task=glue_mini/cola", "method=dense", f"paths.output={tmp_path}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [*common, *overrides])

    yield compose_job


def test_a_sweep_names_a_lost_job_by_its_run_and_its_reason(tmp_path, capsys):
    def launch(batch, initial_job_idx):
        return [LostJob(batch[0], "its node died on n1 (pid 7), 4 times in all")]

    with composed(tmp_path) as compose_job:
        handover = Handover(SimpleNamespace(launch=launch), compose_job)
        assert handover.launch([["seed=0"]], 0) == []
    assert handover.command.end() == 1
    common = {"task": "glue_mini/cola", "method": "dense", "paths.output": str(tmp_path)}
    (run,) = make_plan(compose_settings(option_folders(), common)).runs
    told = f"failed: {run.label} ({run.id}): its node died on n1 (pid 7), 4 times in all"
    assert capsys.readouterr().err.splitlines() == [told]


def test_a_lost_job_that_could_not_be_planned_here_is_a_mistake(tmp_path, capsys):
    def launch(batch, initial_job_idx):
        return [LostJob(batch[0], "n1 does not see /data")]

    with composed(tmp_path) as compose_job:
        handover = Handover(SimpleNamespace(launch=launch), compose_job)
        handover.launch([["task=glue/cola", "task.data_dir=/nowhere"]], 0)
    assert handover.command.end() == 2
