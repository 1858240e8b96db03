"""Balanced clustering: sizes, quality, determinism; and its cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_runner.methods import cluster_cache
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.moe.clustering import ALGORITHMS, constrained_kmeans, inertia, random_clusters


def planted(seed: int = 0, per_group: int = 6, groups: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Keys around orthogonal directions, of very different lengths, shuffled."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), per_group))
    keys = np.eye(groups)[group] + 0.05 * rng.normal(size=(len(group), groups))
    return (keys * rng.uniform(0.1, 10, size=(len(group), 1))).astype(np.float32), group


def test_constrained_kmeans_finds_planted_directions_whatever_their_length():
    keys, group = planted()
    found = constrained_kmeans(keys, 4, seed=0)
    pairs = {(int(a), int(b)) for a, b in zip(found, group, strict=True)}
    assert len(pairs) == 4
    assert inertia(keys, found) < 0.1 * inertia(keys, random_clusters(keys, 4, seed=1))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(ALGORITHMS)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99)
)
def test_every_expert_gets_equally_many_neurons_and_a_seed_repeats(algorithm, experts, size, seed):
    keys = np.random.default_rng(seed).normal(size=(experts * size, 3)).astype(np.float32)
    found = ALGORITHMS[algorithm](keys, experts, seed)
    assert np.bincount(found, minlength=experts).tolist() == [size] * experts
    assert np.array_equal(found, ALGORITHMS[algorithm](keys, experts, seed))


def test_inertia_by_hand():
    keys = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], dtype=np.float32)
    # unit keys (1,0) (0,1) in one expert: mean (.5,.5), four times .25; the third is alone
    assert inertia(keys, np.array([0, 0, 1])) == pytest.approx(1.0)


def test_a_number_of_experts_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="num_experts=5 does not divide the 12 neurons"):
        constrained_kmeans(np.ones((12, 2)), 5, seed=0)


@pytest.fixture
def counted(monkeypatch):
    calls = []

    def algorithm(keys, num_experts, seed):
        calls.append(seed)
        return random_clusters(keys, num_experts, seed)

    monkeypatch.setitem(cluster_cache.ALGORITHMS, "random", algorithm)
    return calls


def test_the_cache_clusters_once_per_content_and_settings(tmp_path, counted):
    keys, _ = planted()
    first = ClusterCache(tmp_path).get(keys, 4, "random", 0)
    assert torch.equal(ClusterCache(tmp_path).get(keys, 4, "random", 0), first)
    assert len(counted) == 1
    changed = keys.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    ClusterCache(tmp_path).get(changed, 4, "random", 0)
    ClusterCache(tmp_path).get(keys, 4, "random", 1)
    ClusterCache(tmp_path).get(keys, 2, "random", 0)
    assert len(counted) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [0] * 24, "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [-1] * 24, "sha256": "0"}),
    ],
)
def test_a_damaged_entry_is_noticed_and_made_anew(tmp_path, counted, damage, caplog):
    keys, _ = planted()
    first = ClusterCache(tmp_path).get(keys, 4, "random", 0)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage(file.read_text()))
    assert torch.equal(ClusterCache(tmp_path).get(keys, 4, "random", 0), first)
    assert "are damaged" in caplog.text
    assert len(counted) == 2
    ClusterCache(tmp_path).get(keys, 4, "random", 0)
    assert len(counted) == 2


def test_without_a_folder_nothing_is_kept(counted):
    keys, _ = planted()
    ClusterCache(None).get(keys, 4, "random", 0)
    ClusterCache(None).get(keys, 4, "random", 0)
    assert len(counted) == 2
