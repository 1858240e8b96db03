"""A disk that fills up: the path is named, what is finished is kept, the same command goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.supply.commands import ROOT, SHORT
from tests.torture.kills import fill

KEPT = "what is finished is kept: free some space, and the same command goes on"
WRITES = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from PIL import Image
from moe_runner.files import append_line, naming, one_line, write_json
from moe_runner.report.command import run
from moe_runner.tasks.images import decode

disk, output = Path(sys.argv[1]), sys.argv[2]
(disk / "filler").write_bytes(b"x" * 52_000)  # of 64 KiB

def told(name, write):
    try:
        write()
    except OSError as error:
        print(name, one_line(error))

def hidden():  # as datasets does
    with naming(disk / "c.arrow", disk / "c.tmp"):
        try:
            (disk / "c.tmp").write_bytes(bytes(20_000))
        finally:
            (disk / "c.tmp").unlink()
            raise ValueError("I/O operation on closed file")

write_json(disk / "a.json", {"kept": 1})
told("json", lambda: write_json(disk / "a.json", list(range(10_000))))
print("old", json.loads((disk / "a.json").read_text()))
told("line", lambda: append_line(disk / "b.jsonl", {"x": "y" * 20_000}))
(disk / "b.jsonl").unlink()
told("hidden", hidden)
domain = SimpleNamespace(labels=[0] * 9, read=lambda index: Image.new("RGB", (64, 64)))
told("images", lambda: decode(domain, 64, disk / "d.npy"))  # 110 kB, mapped into memory
run(["tables", "study=emoe_gates", f"output={output}", f"to={disk}/report", "format=md,csv"])
print("left", sorted(path.name for path in disk.glob(".*")))
"""
RUNS = """
import os, subprocess, sys
from pathlib import Path
from tests.torture import commands

disk, *words = sys.argv[1:]
commands.warm_up()
for size in ("64k", "64m"):
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    done = commands.forked("moe-run", *words, folder=Path(disk)).wait()
    print(f"code {done.code}")
    print(done.err)
print(*sorted(path.name for path in Path(disk).glob("outputs/runs/*/*")))
"""


@pytest.fixture
def on_small_disk(tmp_path):
    """Run Python code that finds a file system of 64 KiB at its first argument."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
    words = ["unshare", "--mount", "--", "sh", "-c", script, str(disk)]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(code: str, *more: str) -> tuple[str, str]:
        command = [*words, sys.executable, "-c", code, str(disk), *more]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


def test_every_kind_of_write_names_its_path(on_small_disk, tmp_path):
    fill(tmp_path / "outputs")
    out, err = on_small_disk(WRITES, f"{tmp_path}/outputs")
    lines = {line.partition(" ")[0]: line.partition(" ")[2] for line in out.splitlines()}
    disk = tmp_path / "disk"
    full = f"No space left on device; {KEPT}"
    assert lines["json"] == f"{disk}/a.json: {full}"
    assert lines["old"] == "{'kept': 1}"
    assert lines["line"] == f"{disk}/b.jsonl: {full}"
    assert lines["hidden"] == f"{disk}/c.arrow: {full}"
    assert lines["images"] == f"{disk}/d.npy: {full}"
    assert err.startswith(f"{disk}/report/emoe_gates")
    assert err.endswith(f".csv: {full}\n")
    assert err.count("\n") == 1
    assert lines["left"] == "[]"


@pytest.mark.long
@pytest.mark.parametrize("cache", ["on the full disk", "elsewhere"])
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(cache, on_small_disk, tmp_path):
    place = [] if cache == "on the full disk" else [f"paths.cache={tmp_path / 'cache'}"]
    out, _ = on_small_disk(RUNS, *SHORT, *place)
    first, second = out.split("code ")[1:]
    assert first.startswith("1\n")
    full = "checkpoint-1 cannot be written; is the disk full? ("
    assert (".arrow: No space left on device" if not place else full) in first
    assert first.count(KEPT) == 1
    assert "Traceback" not in out
    assert second.startswith("0\n")
    assert "result.json" in second
    assert "error.txt" not in second
