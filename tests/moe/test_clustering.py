"""Balanced clustering: sizes, quality, determinism, several FFNs at once."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from k_means_constrained import KMeansConstrained
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

import moe_runner
from moe_runner.moe import clustering
from moe_runner.moe.balanced_kmeans import exchange, initial_groups, standardize
from moe_runner.moe.clustering import (
    ALGORITHMS,
    cluster_all,
    constrained_kmeans,
    contiguous_clusters,
    inertia,
    random_clusters,
    unit_keys,
)

BERT_TINY = Path(moe_runner.__file__).parent / "assets" / "bert_tiny"


def planted(
    seed: int = 0, per_group: int = 6, groups: int = 4, noise: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Keys around orthogonal directions, of very different lengths, shuffled."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), per_group))
    keys = np.eye(groups)[group] + noise * rng.normal(size=(len(group), groups))
    return (keys * rng.uniform(0.1, 10, size=(len(group), 1))).astype(np.float32), group


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def real_keys() -> list[np.ndarray]:
    """Keys of the four FFNs of bert_tiny, (512, 128)."""
    tensors = load_file(BERT_TINY / "model.safetensors")
    names = sorted(name for name in tensors if name.endswith("intermediate.dense.weight"))
    assert len(names) == 4
    return [tensors[name].astype(np.float32) for name in names]


@settings(max_examples=60, deadline=None)
@given(
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    experts=st.integers(1, 7),
    size=st.integers(1, 6),
    d_model=st.integers(1, 4),
    distinct=st.integers(0, 42),
    seed=st.integers(0, 99),
)
def test_every_expert_gets_equally_many_neurons_and_a_seed_repeats(
    algorithm, experts, size, d_model, distinct, seed
):
    keys = gaussian(experts * size, d_model, seed=seed)
    keys[distinct:] = keys[:1]  # duplicates,
    keys[:distinct:3] = 0  # zero keys
    before = keys.copy()
    found = ALGORITHMS[algorithm](keys, experts, seed)
    assert found.dtype == np.int64
    assert np.bincount(found, minlength=experts).tolist() == [size] * experts
    assert np.array_equal(found, ALGORITHMS[algorithm](keys, experts, seed))
    assert np.array_equal(keys, before)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(2, 12),
    per_group=st.integers(2, 12),
    noise=st.sampled_from([0, 0.01, 0.05]),
    seed=st.integers(0, 999),
)
def test_constrained_kmeans_finds_planted_directions_whatever_their_length(
    groups, per_group, noise, seed
):
    keys, group = planted(seed, per_group, groups, noise)
    found = constrained_kmeans(keys, groups, seed)
    assert len(set(zip(found.tolist(), group.tolist(), strict=True))) == groups


def test_planted_directions_are_found_where_there_are_many_large_groups():
    keys, group = planted(per_group=24, groups=64, noise=0.05)
    found = constrained_kmeans(keys, 64, seed=0)
    assert len(set(zip(found.tolist(), group.tolist(), strict=True))) == 64


def test_constrained_kmeans_mostly_finds_the_best_of_all_groupings_of_a_few_neurons():
    ratios = []
    for seed in range(40):
        keys = gaussian(8, 3, seed=seed)
        best = min(
            inertia(keys, np.isin(np.arange(8), [0, *others]).astype(np.int64))
            for others in itertools.combinations(range(1, 8), 3)
        )
        ratios.append(inertia(keys, constrained_kmeans(keys, 2, seed)) / best)
    assert min(ratios) > 1 - 1e-9
    assert sum(ratio < 1 + 1e-5 for ratio in ratios) >= 34  # it is a local search


def test_keys_that_are_all_alike_are_clustered_by_what_differs():
    keys, group = planted()
    keys = 1 + 1e-4 * keys / np.linalg.norm(keys, axis=1, keepdims=True)
    found = constrained_kmeans(keys, 4, seed=0)
    assert len(set(zip(found.tolist(), group.tolist(), strict=True))) == 4


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize(("num_experts", "at_most"), [(8, 1.005), (16, 1.0), (64, 0.985)])
def test_inertia_of_pretrained_keys_is_not_above_the_librarys(
    real_keys, layer, num_experts, at_most
):
    keys, size = real_keys[layer], 512 // num_experts
    solver = KMeansConstrained(
        num_experts, size_min=size, size_max=size, max_iter=1000, random_state=0
    )
    theirs = inertia(keys, solver.fit_predict(unit_keys(keys)))
    for seed in range(2):
        assert inertia(keys, constrained_kmeans(keys, num_experts, seed)) <= at_most * theirs


def test_clusters_of_pretrained_keys_are_far_better_than_random_ones(real_keys):
    for keys in real_keys:
        clustered = inertia(keys, constrained_kmeans(keys, 64, seed=0))
        assert clustered < 0.75 * inertia(keys, random_clusters(keys, 64, seed=0))


def test_exchanges_lower_the_inertia_of_any_grouping(real_keys):
    x = standardize(real_keys[0].astype(np.float64))
    rough = initial_groups(x, 16, np.random.default_rng(0))
    for start in (rough, np.arange(512).reshape(16, 32)):
        better = exchange(x, start)
        assert sorted(better.flat) == list(range(512))
        spread = [
            ((x[group] - x[group].mean(1, keepdims=True)) ** 2).sum() for group in (start, better)
        ]
        assert spread[1] < 0.995 * spread[0]


def test_the_order_of_the_neurons_hardly_matters(real_keys):
    keys = real_keys[0]
    shuffled = np.random.default_rng(0).permutation(keys)
    plain = inertia(keys, constrained_kmeans(keys, 16, seed=0))
    assert inertia(shuffled, constrained_kmeans(shuffled, 16, seed=0)) == pytest.approx(
        plain, rel=0.015
    )


def test_the_length_of_the_keys_does_not_matter(real_keys):
    keys = real_keys[0]
    scaled = keys * 2.0 ** np.arange(-40, 40)[np.arange(512) % 80, None].astype(np.float32)
    found = constrained_kmeans(keys, 16, seed=0)
    assert np.array_equal(constrained_kmeans(scaled, 16, seed=0), found)
    assert inertia(scaled, found) == pytest.approx(inertia(keys, found), rel=1e-12)


def test_the_number_of_threads_does_not_matter(real_keys):
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(constrained_kmeans(real_keys[0], 16, seed=0))
    assert np.array_equal(*found)


def test_seeds_differ(real_keys):
    keys = real_keys[0]
    for algorithm in (constrained_kmeans, random_clusters):
        assert not np.array_equal(algorithm(keys, 16, 0), algorithm(keys, 16, 1))


def test_contiguous_clusters_are_blocks_in_neuron_order():
    keys = gaussian(6, 2)
    for seed in (0, 1):
        assert contiguous_clusters(keys, 3, seed).tolist() == [0, 0, 1, 1, 2, 2]


def test_many_experts_of_two_neurons():
    keys, group = planted(per_group=2, groups=120, noise=0.01)
    found = constrained_kmeans(keys, 120, seed=0)
    assert len(set(zip(found.tolist(), group.tolist(), strict=True))) == 120


def test_inertia_by_hand():
    keys = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], dtype=np.float32)
    # unit keys (1,0) (0,1) in one expert: mean (.5,.5), four times .25; the third is alone
    assert inertia(keys, np.array([0, 0, 1])) == pytest.approx(1.0)


def test_inertia_is_that_of_a_loop_over_experts_of_any_size():
    keys = gaussian(40, 5)
    keys[3] = 0
    label = np.random.default_rng(0).integers(0, 6, 40)
    label[label == 2] = 5  # nobody is in 2
    unit = keys.astype(np.float64) / np.maximum(np.linalg.norm(keys, axis=1), 1e-30)[:, None]
    loop = sum(((unit[label == e] - unit[label == e].mean(0)) ** 2).sum() for e in set(label))
    assert inertia(keys, label) == pytest.approx(loop, rel=1e-6)


def test_inertia_of_alike_keys_is_zero():
    keys = np.outer(np.arange(1, 9), [1.0, 2.0, 3.0]).astype(np.float32)
    assert inertia(keys, np.zeros(8, np.int64)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("num_experts", [5, 0, -4, 24])
def test_a_number_of_experts_that_does_not_divide_is_refused(algorithm, num_experts):
    message = f"num_experts={num_experts} does not divide the 12 neurons"
    with pytest.raises(ValueError, match=message):
        ALGORITHMS[algorithm](np.ones((12, 2)), num_experts, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_keys_that_are_not_finite_are_refused(value):
    keys = gaussian(12, 2)
    keys[7, 1] = keys[9, 0] = value
    message = "2 keys are not finite, the first is that of neuron 7"
    with pytest.raises(ValueError, match=message):
        constrained_kmeans(keys, 3, 0)
    with pytest.raises(ValueError, match=message):
        inertia(keys, np.zeros(12, np.int64))


def test_large_and_tiny_keys_are_fine():
    keys, group = planted()
    for scale in (1e30, 1e-30):
        found = constrained_kmeans(keys * np.float32(scale), 4, seed=0)
        assert len(set(zip(found.tolist(), group.tolist(), strict=True))) == 4


@pytest.fixture
def processes_for_any_work(monkeypatch):
    monkeypatch.setattr(clustering, "WORK_FOR_PROCESSES", 1)


def test_processes_give_the_same_clusters_in_the_same_order(
    real_keys, processes_for_any_work, caplog
):
    caplog.set_level(logging.INFO)
    keys = {f"ffn {i}": layer for i, layer in enumerate(real_keys[:3])}
    parallel = list(cluster_all(keys, 16, "constrained_kmeans", 0, processes=2))
    assert "clustering 3 FFNs of 512 neurons into 16 experts (processes: 2)" in caplog.text
    single = [constrained_kmeans(layer, 16, 0) for layer in keys.values()]
    assert all(map(np.array_equal, parallel, single))
    assert len(parallel) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_the_ffn(processes, processes_for_any_work):
    bad = gaussian(12, 2)
    bad[5] = np.nan
    keys = {"layer 0": gaussian(12, 2), "layer 1": bad}
    with pytest.raises(ValueError, match=r"^layer 1: 1 keys are not finite"):
        list(cluster_all(keys, 3, "constrained_kmeans", 0, processes))


def test_little_work_is_done_here_and_in_silence(real_keys, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "joblib", None)  # an import would fail
    keys = dict(enumerate(real_keys[:2]))
    assert len(list(cluster_all(keys, 16, "constrained_kmeans", 0, processes=2))) == 2
    assert len(list(cluster_all({}, 16, "constrained_kmeans", 0, processes=2))) == 0
    assert not caplog.records


def test_a_worker_imports_nothing_heavy():
    code = (
        "import sys, moe_runner.moe.clustering\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'ortools'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
