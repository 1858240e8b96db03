"""How long runs take on this machine: by what alike runs took, or by its measured speed."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_runner.console import duration
from moe_runner.runs.objects import StoreError
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.sweeps.cost import estimate, training_examples

GPU_FLOPS = 100e12  # of one A100 in half precision: an assumption, about a third of its peak
REACHED = 0.5  # of the speed of large products, by training: an assumption
CALIBRATION = 0.3  # seconds
SIZE = 768  # of the matrices whose product is timed
RECENT = 300  # stored runs that are looked at, the newest
GPUS = Path("/proc/driver/nvidia/gpus")
AXES = ("model", "suite", "task", "method", "tuning")
LENGTHS = (  # an example takes as long as it has tokens
    "task.block_size", "task.max_length", "task.target_length", "task.answer_length",
    "task.image_size",
)  # fmt: skip
EVALUATED = ("task.eval_limit",)
ALIKE = (  # in what a stored run may be alike, the best kind of likeness first
    (*AXES, *LENGTHS, *EVALUATED),
    (*AXES, *LENGTHS),
    (*AXES[:3], *LENGTHS),
    (*AXES[:2], *LENGTHS),
)

Kind = tuple[str, ...]


@dataclass(frozen=True)
class Pace:
    """What a run took.

    Args:
        per_example: seconds of training.
        besides: seconds of everything else: loading, evaluations, saving.
    """

    per_example: float
    besides: float


class Clock:
    """Estimates the seconds of runs, one after the other, evaluations and all.

    Args:
        store: where alike runs may be.
        device: that was asked for: auto, cpu, cuda, ...
    """

    def __init__(self, store: Store, device: str) -> None:
        self.on_gpu = device != "cpu" and device != "mps" and has_gpu()
        self.known = paces(store, on_gpu=self.on_gpu)
        self.flops: float | None = None  # per second; None: not needed so far
        self.sources: Counter[str] = Counter()

    def seconds(self, run: Run) -> float | None:
        """Estimate the seconds of a run; None: the size of its data is not known."""
        examples, flops = training_examples(run), estimate(run).flops
        if examples is None or flops is None:
            self.sources["unknown"] += 1
            return None
        for kind in kinds(run.axes(), run.settings()):
            if kind in self.known:
                self.sources["stored"] += 1
                pace = self.known[kind]
                return examples * pace.per_example + pace.besides
        self.sources["speed"] += 1
        if self.flops is None:
            self.flops = GPU_FLOPS if self.on_gpu else REACHED * measured_flops()
        return flops / self.flops

    def explained(self) -> str:
        """Say how the estimates were got."""
        said = []
        if count := self.sources["stored"]:
            said.append(f"{count} from the seconds of alike runs that are stored here")
        if count := self.sources["speed"]:
            assert self.flops is not None
            said.append(
                f"{count} from an assumed {GPU_FLOPS / 1e12:.0f} TFLOP/s of the GPU, as of an A100"
                if self.on_gpu
                else f"{count} from {self.flops / REACHED / 1e9:.0f} GFLOP/s in matrix products, "
                f"measured just now, of which training is taken to reach {REACHED:.0%}, with texts "
                "as long as allowed"
            )
        if count := self.sources["unknown"]:
            said.append(f"{count} not known: the size of the data is not")
        return "; ".join(said)


def time_of(runs: Iterable[Run], clock: Clock) -> str:
    """Write the time of some runs: "4.2 min", with ">" if that of some is not known."""
    each = [clock.seconds(run) for run in runs]
    known = [seconds for seconds in each if seconds is not None]
    return (">" if len(known) < len(each) else "") + duration(sum(known))


def kinds(axes: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Kind]:
    """Give what a run is alike in, see `ALIKE`; each kind has its own length."""
    values = {**settings, **axes}
    return [tuple(str(values.get(name)) for name in each) for each in ALIKE]


def paces(store: Store, *, on_gpu: bool) -> dict[Kind, Pace]:
    """Average what stored runs took, by what they are alike in: those of a GPU, or the others."""
    found: dict[Kind, list[Pace]] = defaultdict(list)
    for run_id in newest(store):
        try:
            result = store.result(run_id)
        except StoreError:  # told where it is read for its figures
            continue
        if result is None or result.resumed_at_update or not result.updates:
            continue
        if result.device.startswith("cuda") != on_gpu:
            continue
        size, rate = result.settings.get("trainer.batch_size"), result.speed.examples_per_second
        if not isinstance(size, int) or not rate:
            continue
        training = result.updates * size / rate
        pace = Pace(1 / rate, max(0.0, result.wall_seconds - training))
        axes = {axis: getattr(result.axes, axis) for axis in AXES}
        for kind in kinds(axes, result.settings):
            found[kind].append(pace)
    return {
        kind: Pace(
            sum(pace.per_example for pace in each) / len(each),
            sum(pace.besides for pace in each) / len(each),
        )
        for kind, each in found.items()
    }


def newest(store: Store) -> list[str]:
    """List the ids of the runs that were finished last."""
    times = {}
    for run_id in store.ids():
        try:
            times[run_id] = (store.folder(run_id) / "result.json").stat().st_mtime
        except OSError:
            continue
    return sorted(times, key=lambda run_id: -times[run_id])[:RECENT]


def measured_flops() -> float:
    """Time products of matrices for a moment: FLOPs per second, fp32, with the threads of runs."""
    import numpy as np

    one = np.ones((SIZE, SIZE), dtype=np.float32)
    one @ one  # threads start with the first
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < CALIBRATION:
        one @ one
        count += 1
    return 2 * SIZE**3 * count / taken


def has_gpu() -> bool:
    """Tell, without torch, whether there is a GPU of NVIDIA that programs may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and GPUS.is_dir() and any(GPUS.iterdir())
