import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from moe_runner.files import append_line, read_json, write_json
from moe_runner.runs import store as module
from moe_runner.runs.store import RunBusy, RunDone, Store, StoreError
from tests.results import make_result

ID = "0123456789abcdef"
CLAIM = {"config_yaml": "seed: 0\n", "environment": {"python": "3"}}

# A worker that claims when told to, says how that went, and leaves when its input ends.
WORKER = f"""
import os, sys
from pathlib import Path
from moe_runner.runs.store import RunBusy, Store

print("ready", flush=True)
sys.stdin.readline()
try:
    with Store(Path(sys.argv[1])).claim({ID!r}, config_yaml="", environment={{}}) as folder:
        folder.log_metrics({{"step": 1}})
        child = "fork" in sys.argv and os.fork() == 0
        if child or "fork" not in sys.argv:
            print("claimed", os.getpid(), flush=True)
        sys.stdin.read()
        if child:
            os._exit(0)
except RunBusy as error:
    print("busy", error, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def worker(tmp_path):
    """Start workers that have imported everything and wait for a line before they claim."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as stack:

        def start(*words):
            command = [sys.executable, "-c", WORKER, str(tmp_path), *words]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=env, **pipes))
            stack.callback(process.kill)
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def say_go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(store, run_id=ID, **result):
    with store.claim(run_id, **CLAIM) as folder:
        return folder.finish(make_result(id=run_id, **result))


def pretend_elsewhere(store, seconds_ago):
    """Make the run look claimed by another host, whose last heartbeat was some time ago."""
    path = store.folder(ID) / "status.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    status = {"state": "running", "host": "elsewhere", "pid": 7, "attempts": 1}
    write_json(path, status | {"started": "2026-01-01T00:00:00+00:00"})
    then = path.stat().st_mtime - seconds_ago
    os.utime(path, (then, then))


def test_a_finished_run_is_done_and_shows_its_result(store):
    assert store.status(ID).state == "pending"
    assert store.result(ID) is None
    with store.claim(ID, **CLAIM) as folder:
        status = store.status(ID)
        assert (status.state, status.attempts, status.pid) == ("running", 1, os.getpid())
        assert status.host == socket.gethostname()
        assert folder.finish(make_result(primary=0.25)) == make_result(primary=0.25)
    assert store.status(ID).state == read_json(folder.path / "status.json")["state"] == "done"
    assert store.result(ID) == make_result(primary=0.25)
    assert (folder.path / "config.yaml").read_text() == CLAIM["config_yaml"]
    assert read_json(folder.path / "environment.json") == CLAIM["environment"]


def test_a_finished_run_cannot_be_claimed(store):
    finish(store)
    with pytest.raises(RunDone, match="rerun=true"), store.claim(ID, **CLAIM):
        pytest.fail("claimed")
    assert store.status(ID).attempts == 1


def test_a_failing_run_leaves_its_traceback_and_is_retried(store):
    def fail(folder):
        folder.log_metrics({"step": 1})
        raise ZeroDivisionError("in training")

    with pytest.raises(ZeroDivisionError), store.claim(ID, **CLAIM) as folder:
        fail(folder)
    assert store.status(ID).state == "failed"
    error = (folder.path / "error.txt").read_text()
    assert "in fail\n" in error
    assert "ZeroDivisionError: in training" in error
    with store.claim(ID, **CLAIM) as folder:
        assert folder.metrics() == [{"step": 1}]
        assert (folder.path / "error.txt").exists()
        folder.finish(make_result())
    assert not (folder.path / "error.txt").exists()
    assert (store.status(ID).state, store.status(ID).attempts) == ("done", 2)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_run_is_interrupted(store, stop):
    with pytest.raises(stop), store.claim(ID, **CLAIM) as folder:
        raise stop
    assert store.status(ID).state == "interrupted"
    assert not (folder.path / "error.txt").exists()


def test_a_run_left_without_a_result_is_interrupted(store):
    with store.claim(ID, **CLAIM):
        pass
    assert store.status(ID).state == "interrupted"


def test_an_error_after_the_result_is_raised_and_kept_and_the_run_is_done(store):
    def fail(folder):
        folder.finish(make_result())
        raise OSError("cleaning")

    with pytest.raises(OSError, match="cleaning"), store.claim(ID, **CLAIM) as folder:
        fail(folder)
    assert store.status(ID).state == "done"
    assert "cleaning" in (folder.path / "error.txt").read_text()


def test_of_workers_that_claim_the_same_run_exactly_one_gets_it(store, worker):
    workers = [worker() for _ in range(3)]
    for process in workers:
        say_go(process)
    answers = sorted(process.stdout.readline() for process in workers)
    assert [answer.split()[0] for answer in answers] == ["busy", "busy", "claimed"]
    assert store.status(ID).state == "running"
    assert store.status(ID).attempts == 1


def test_busy_says_who_has_the_run(store, worker):
    holder = worker()
    say_go(holder)
    assert holder.stdout.readline().startswith("claimed")
    with pytest.raises(RunBusy, match=f"pid {holder.pid} on ") as caught, store.claim(ID, **CLAIM):
        pytest.fail("claimed")
    assert (caught.value.pid, caught.value.host) == (holder.pid, socket.gethostname())
    assert 0 <= caught.value.age < 60
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(RunBusy):
        store.forget(ID)


def test_a_killed_run_is_interrupted_and_goes_on_at_the_next_claim(store, worker):
    holder = worker("fork")  # as a data loader does; its child outlives it
    say_go(holder)
    word, child = holder.stdout.readline().split()
    assert word == "claimed"
    holder.send_signal(signal.SIGKILL)
    try:
        assert holder.wait() == -signal.SIGKILL
        os.kill(int(child), 0)
        assert read_json(store.folder(ID) / "status.json")["state"] == "running"
        assert store.status(ID).state == "interrupted"
        with store.claim(ID, **CLAIM) as folder:
            assert store.status(ID).attempts == 2
            assert folder.metrics() == [{"step": 1}]
            folder.finish(make_result())
    finally:
        os.kill(int(child), signal.SIGKILL)
    assert store.status(ID).state == "done"


def test_a_run_that_ends_while_one_looks_is_not_interrupted(store, monkeypatch):
    pretend_elsewhere(store, seconds_ago=0)

    def end(run_id, status):
        write_json(store.folder(run_id) / "status.json", {"state": "failed", "attempts": 1})
        return False

    monkeypatch.setattr(store, "_is_alive", end)
    assert store.status(ID).state == "failed"


def test_one_process_cannot_claim_a_run_twice(store):
    with store.claim(ID, **CLAIM):
        with pytest.raises(RunBusy), store.claim(ID, **CLAIM):
            pytest.fail("claimed")
        assert store.status(ID).state == "running"
    assert store.status(ID).attempts == 1


def test_a_run_of_another_host_is_busy_while_its_heart_beats(store):
    pretend_elsewhere(store, seconds_ago=5 * store.heartbeat)
    assert store.status(ID).state == "running"
    with pytest.raises(RunBusy, match="pid 7 on elsewhere") as caught, store.claim(ID, **CLAIM):
        pytest.fail("claimed")
    assert caught.value.age == pytest.approx(5 * store.heartbeat, abs=30)
    with pytest.raises(RunBusy):
        store.forget(ID)


def test_a_run_of_another_host_without_heartbeat_is_taken_over(store):
    pretend_elsewhere(store, seconds_ago=11 * store.heartbeat)
    assert store.status(ID).state == "interrupted"
    finish(store)
    assert (store.status(ID).state, store.status(ID).attempts) == ("done", 2)


def test_the_clock_of_this_host_does_not_matter(store, monkeypatch):
    pretend_elsewhere(store, seconds_ago=0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert store.status(ID).state == "running"


def test_a_claimed_run_has_a_heartbeat(tmp_path):
    store = Store(tmp_path, heartbeat=0.01)
    with store.claim(ID, **CLAIM) as folder:
        path = folder.path / "status.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_forget_lets_a_run_start_from_nothing(store):
    with store.claim(ID, **CLAIM) as folder:
        folder.log_metrics({"step": 1})
        for path in (folder.checkpoint, folder.export):
            path.mkdir()
            (path / "weights").touch()
        folder.finish(make_result())
    store.forget(ID)
    assert store.result(ID) is None
    assert (store.status(ID).state, store.status(ID).attempts) == ("pending", 1)
    left = {"config.yaml", "environment.json", "status.json", ".lock"}
    assert set(os.listdir(folder.path)) == left
    finish(store)
    assert (store.status(ID).state, store.status(ID).attempts) == ("done", 2)


@pytest.mark.parametrize(
    "name", ["checkpoint", "model", "error.txt", "metrics.jsonl", "result.json"]
)
def test_a_run_whose_forgetting_is_cut_short_is_still_done_and_is_forgotten_later(
    store, name, monkeypatch
):
    with store.claim(ID, **CLAIM) as folder:
        folder.log_metrics({"step": 1})
        for path in (folder.checkpoint, folder.export):
            path.mkdir()
        folder.finish(make_result())
    (folder.path / "error.txt").touch()
    remove = module._remove

    def cut_short(path):
        if path.name == name:
            raise OSError("cut short")
        remove(path)

    monkeypatch.setattr(module, "_remove", cut_short)
    with pytest.raises(OSError, match="cut short"):
        store.forget(ID)
    monkeypatch.undo()
    assert store.status(ID).state == "done"
    assert store.result(ID) == make_result()
    store.forget(ID)
    assert (store.status(ID).state, store.result(ID)) == ("pending", None)
    assert not (folder.path / name).exists()


def test_forget_of_an_unknown_run_does_nothing(store):
    store.forget(ID)
    assert store.ids() == []


def test_a_result_that_was_deleted_makes_the_run_pending(store):
    finish(store)
    (store.folder(ID) / "result.json").unlink()
    assert store.status(ID).state == "pending"


def test_a_resumed_run_drops_the_metrics_beyond_its_checkpoint(store):
    with store.claim(ID, **CLAIM) as folder:
        folder.truncate_metrics(lambda line: True)
        assert folder.metrics() == []
        for step in range(1, 6):
            folder.log_metrics({"step": step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')  # killed in the middle of a line
    with store.claim(ID, **CLAIM) as folder:
        assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4, 5]
        folder.truncate_metrics(lambda line: line["step"] <= 3)
        folder.log_metrics({"step": 4})
        assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4]


def test_discard_checkpoint_removes_it_if_there_is_one(store):
    with store.claim(ID, **CLAIM) as folder:
        folder.discard_checkpoint()
        (folder.checkpoint / "checkpoint-5").mkdir(parents=True)
        folder.discard_checkpoint()
        assert not folder.checkpoint.exists()


@pytest.mark.parametrize("damage", ["", '{"accuracy": ', "[1]", "\xff"])
def test_a_damaged_result_is_an_error_with_file_and_remedy(store, damage):
    store.folder(ID).mkdir(parents=True)
    (store.folder(ID) / "result.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(StoreError, match=rf"{ID}/result\.json .*; delete it and run {ID} again"):
        store.result(ID)


def test_results_are_those_of_finished_runs_in_order(store):
    assert list(store.results()) == []
    for run_id in ("b" * 16, "a" * 16):
        finish(store, run_id)
    with store.claim("c" * 16, **CLAIM):
        assert [result.id for result in store.results()] == ["a" * 16, "b" * 16]
    append_line(store.root / "stray", {})
    assert store.ids() == ["a" * 16, "b" * 16, "c" * 16]


def test_find_takes_a_unique_prefix_and_explains_any_other(store):
    with pytest.raises(StoreError, match="'ab' is not a run: .* has none yet"):
        store.find("ab")
    for run_id in ("abc0" * 4, "abd0" * 4, "ffff" * 4):
        store.folder(run_id).mkdir(parents=True)
    assert store.find("abd") == "abd0" * 4
    assert store.find("ffff" * 4) == "ffff" * 4
    with pytest.raises(StoreError, match="2 runs: abc0abc0abc0abc0, abd0abd0abd0abd0; give more"):
        store.find("ab")
    with pytest.raises(StoreError, match=r"'fffe' is not a run in .*; nearest: ffff"):
        store.find("fffe")
    for number in range(10):
        store.folder(f"e{number}").mkdir()
    with pytest.raises(StoreError, match=r"10 runs: e0, e1, e2, e3, e4, \.\.\.; give more"):
        store.find("e")


def in_job(monkeypatch, array="12", task="3", restart="0"):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)


def of_job(store, job, restart=0):
    """Make the run look claimed a second ago, by a cluster job on another host."""
    pretend_elsewhere(store, seconds_ago=1)
    path = store.folder(ID) / "status.json"
    then = path.stat().st_mtime
    write_json(path, read_json(path) | {"job": job, "restart": restart})
    os.utime(path, (then, then))


def test_a_status_says_which_cluster_job_has_the_run(store, monkeypatch):
    in_job(monkeypatch, restart="2")
    with store.claim(ID, **CLAIM):
        assert (store.status(ID).job, store.status(ID).restart) == ("12_3", 2)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    with store.claim(ID, **CLAIM):
        assert store.status(ID).job == "15"
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name)
    with store.claim(ID, **CLAIM):
        assert (store.status(ID).job, store.status(ID).restart) == (None, 0)


@pytest.mark.parametrize(
    ("job", "restart", "free"),
    [("12_3", "1", True), ("12_3", "0", False), ("12_4", "1", False), ("13_3", "1", False)],
)
def test_only_a_job_that_was_started_again_knows_that_it_is_dead(
    job, restart, free, store, monkeypatch
):
    of_job(store, job)  # its heart still seems to beat
    in_job(monkeypatch, restart=restart)
    if free:
        with store.claim(ID, **CLAIM):
            assert store.status(ID).restart == 1
    else:
        with pytest.raises(RunBusy, match="on elsewhere"), store.claim(ID, **CLAIM):
            pytest.fail("claimed")


def test_a_job_that_was_started_again_waits_for_the_lock_of_its_dead_self(
    tmp_path, worker, monkeypatch
):
    store = Store(tmp_path, heartbeat=1.0)
    held = worker()
    say_go(held)
    held.stdout.readline()
    of_job(store, "12_3")
    in_job(monkeypatch, restart="1")
    timer = threading.Timer(0.8, held.kill)  # the file server frees it
    timer.start()
    began = time.monotonic()
    with store.claim(ID, **CLAIM):
        assert time.monotonic() - began > 0.5
    timer.join()


@pytest.mark.parametrize(("job", "state"), [("12_3", "interrupted"), ("12_4", "running")])
def test_a_run_is_released_from_the_job_that_has_ended_and_from_no_other(job, state, store):
    of_job(store, "12_3")
    store.release(ID, job)
    assert read_json(store.folder(ID) / "status.json")["state"] == state
    assert store.status(ID).state == state
    store.release("fedcba9876543210", job)  # nobody ever had it
    assert store.ids() == [ID]
