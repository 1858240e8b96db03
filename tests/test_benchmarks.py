"""What the benchmark scripts share, and that each of them can be asked what it does."""

from __future__ import annotations

import importlib
import json
import sys
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
