"""What the benchmark scripts share, and that each of them can be asked what it does."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench")


def test_variants_take_turns_after_a_call_that_does_not_count(bench):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = bench.median_seconds(functions, 3)
    assert "".join(calls) == "ab" + "ababab"
    assert seconds.keys() == {"a", "b"}
    assert all(value >= 0 for value in seconds.values())


def test_rows_are_written_as_documented(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "bench")
    row = bench.Row("T=1", "masked", "forward", 0.5, 2.0, extra={"of best": 1.0})
    bench.save("x", [row])
    assert json.loads((tmp_path / "bench" / "x.json").read_text()) == [
        {
            "case": "T=1",
            "variant": "masked",
            "phase": "forward",
            "seconds": 0.5,
            "ratio": 2.0,
            "peak_extra_mib": None,
            "extra": {"of best": 1.0},
        }
    ]
    bench.show("title", [row])
    assert "masked" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_peak_memory_sees_what_is_allocated_and_freed(bench):
    def use(mib: int) -> None:
        torch.ones(mib << 18)  # float32

    assert 60 < bench.peak_extra_mib(lambda: use(64)) < 100
    assert bench.peak_extra_mib(lambda: use(1)) < 20


@pytest.mark.parametrize("script", sorted(file.stem for file in SCRIPTS.glob("bench_*.py")))
def test_every_benchmark_explains_itself(script, bench, monkeypatch, capsys):
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert "--quick" in capsys.readouterr().out


def needed_by(*packages: str) -> set[str]:
    """List packages and what they need, extras left out."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform
            continue
        if name not in found:
            found.add(name)
            plain = [line for line in requirements if "extra ==" not in line]
            waiting += [re.match(r"[\w.-]+", line)[0] for line in plain]
    return found


@pytest.mark.long
def test_the_benchmark_of_gpus_runs_where_little_is_installed(tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in needed_by("torch", "transformers", "numpy", "safetensors"):
        tops = {Path(str(file)).parts[0] for file in distribution(name).files or []}
        for top in tops - {"..", "__pycache__"}:
            place = Path(distribution(name).locate_file(top))
            if place.exists() and not (packages / top).exists():
                (packages / top).symlink_to(place)
    assert not (packages / "hydra").exists()
    assert not (packages / "datasets").exists()
    done = subprocess.run(
        [sys.executable, "-S", SCRIPTS / "bench_cuda.py", "--device", "cpu", "--quick"],
        env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "outputs/bench/cuda_tried_on_cpu.json").read_text())
    assert len(found["parity"]) == 3 * 2 * 2 * 6  # back ends, dtypes, kinds of FFN, tensors
    assert all(check["ok"] for check in found["parity"])
    phases = {row["phase"] for row in found["rows"]}
    assert phases == {"forward", "forward+backward", "prefill", "decoding"}
    assert {"dense", "grouped_mm", "hypermoe", "emoe"} <= {row["variant"] for row in found["rows"]}


def test_the_benchmark_of_gpus_sees_what_is_off(bench, monkeypatch):
    cuda = importlib.import_module("bench_cuda")
    right = cuda.IN_TORCH["sorted"]
    wrong = {**cuda.IN_TORCH, "sorted": lambda *args: right(*args) * 1.1}
    monkeypatch.setattr(cuda, "IN_TORCH", wrong)
    checks = cuda.parity(cuda.TRYING[0], torch.device("cpu"))
    assert {c["what"].split()[0] for c in checks if not c["ok"]} == {"sorted"}
