"""What the benchmark scripts share: interleaved timing, peak memory, rows of a table.

Every figure is a ratio within one run: the variants take turns, so that whatever else the machine
does hits all of them alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

OUTPUT = Path("outputs/bench")


@dataclass
class Row:
    """One measurement.

    Args:
        case: sizes.
        variant: what was run.
        phase: part of the work, for example forward.
        seconds: median.
        ratio: seconds of the baseline / seconds: above 1 is faster than the baseline.
        peak_extra_mib: memory beyond what was held before; None: not measured.
        extra: further figures.
    """

    case: str
    variant: str
    phase: str
    seconds: float
    ratio: float
    peak_extra_mib: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def parser(description: str) -> argparse.ArgumentParser:
    """Make the arguments that all benchmarks have: --quick, --threads."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="a part of it, within a minute")
    made.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    return made


def set_threads(threads: int | None) -> None:
    """Set the threads of torch if asked to."""
    if threads is not None:
        torch.set_num_threads(threads)


def median_seconds(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time functions in turns, after one call of each that does not count.

    Args:
        functions: by name.
        repeats: calls of each.

    Returns:
        Median seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_extra_mib(function: Callable[[], object]) -> float:
    """Measure how far the resident memory of this process rises during one call, in MiB.

    Linux only. Memory that the allocator holds back from before is not seen, so freed memory is
    returned to the system first.
    """
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = status_kib("VmRSS")
    function()
    return max(status_kib("VmHWM") - before, 0) / 1024


def status_kib(name: str) -> int:
    """Read a figure of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def save(name: str, rows: list[Row]) -> None:
    """Write outputs/bench/<name>.json: a list of rows."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    file = OUTPUT / f"{name}.json"
    file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"written: {file}")


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    from rich.console import Console  # bench_cuda.py runs without
    from rich.table import Table

    table = Table(title=f"{title}; {torch.get_num_threads()} threads")
    extras = list(dict.fromkeys(name for row in rows for name in row.extra))
    for name in ("case", "variant", "phase", "ms", "x baseline", "extra MiB", *extras):
        table.add_column(name, justify="left" if name in ("case", "variant", "phase") else "right")
    for row in rows:
        memory = "" if row.peak_extra_mib is None else f"{row.peak_extra_mib:.0f}"
        table.add_row(
            row.case,
            row.variant,
            row.phase,
            f"{row.seconds * 1e3:.1f}",
            f"{row.ratio:.2f}",
            memory,
            *(str(row.extra.get(name, "")) for name in extras),
        )
    Console(width=130).print(table)
