"""Ctrl-C in a study, with a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from moe_runner.files import read_json
from moe_runner.runs.store import Store


@pytest.mark.long
def test_ctrl_c_in_a_study_leaves_its_run_interrupted_and_says_so(tmp_path):
    command = [
        sys.executable, "-m", "moe_runner.train", "study=emoe_layers", "study.only.seed=0",
        "device=cpu", "paths.output=out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background: ignored
    )  # fmt: skip
    try:
        status, deadline = None, time.monotonic() + 240
        while status is None and process.poll() is None and time.monotonic() < deadline:
            status = next(tmp_path.glob("out/runs/*/status.json"), None)
            time.sleep(0.1)
        assert status is not None, "no run began"
        assert read_json(status)["state"] == "running"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, text = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    store = Store(tmp_path / "out")
    assert [store.status(run_id).state for run_id in store.ids()] == ["interrupted"]
    assert read_json(status)["state"] == "interrupted"
    assert not (status.parent / "error.txt").exists()
