"""The cache of clusters, and the choice of an algorithm for the layers of a model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_runner.methods import cluster_cache
from moe_runner.methods.building import OpenSite
from moe_runner.methods.cluster_cache import ClusterCache
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.emoe_learn.options import EMoELearn
from moe_runner.methods.neurons import Neurons
from moe_runner.methods.reference_code import algorithm_of
from moe_runner.moe import clustering
from moe_runner.moe.clustering import constrained_kmeans, random_clusters
from moe_runner.moe.experts import FFN
from moe_runner.options.errors import ConfigError
from moe_runner.options.protocol import Protocol


def assign_neurons(ffns, method, protocol, clusters) -> dict:
    sites = [OpenSite(key, "bert", "encoder", ffn) for key, ffn in ffns.items()]
    found = Neurons(clusters).share(sites, method, algorithm_of(method.clustering, protocol))
    return dict(zip(ffns, found, strict=True))


def some_keys(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(24, 4)).astype(np.float32)


@pytest.fixture
def counted(monkeypatch):
    """The seeds with which `random` was called."""
    calls = []

    def algorithm(keys, num_experts, seed):
        calls.append(seed)
        return random_clusters(keys, num_experts, seed)

    monkeypatch.setitem(clustering.ALGORITHMS, "random", algorithm)
    return calls


def get(folder, keys=None, num_experts=4, seed=0):
    keys = some_keys() if keys is None else keys
    return ClusterCache(folder).get({"site": keys}, num_experts, "random", seed)["site"]


def test_the_cache_clusters_once_per_content_and_settings(tmp_path, counted):
    first = get(tmp_path)
    assert torch.equal(get(tmp_path), first)
    assert len(counted) == 1
    changed = some_keys()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    get(tmp_path, changed)
    get(tmp_path, seed=1)
    get(tmp_path, num_experts=2)
    ClusterCache(tmp_path).get({"site": some_keys()}, 4, "contiguous", 0)
    assert len(counted) == 4
    assert len(list(tmp_path.iterdir())) == 5


def test_the_name_of_a_site_does_not_matter(tmp_path, counted):
    get(tmp_path)
    ClusterCache(tmp_path).get({"other": some_keys()}, 4, "random", 0)
    assert len(counted) == 1


def test_entries_of_an_older_version_are_not_read(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(cluster_cache, "VERSION", cluster_cache.VERSION - 1)
    get(tmp_path)
    monkeypatch.undo()
    get(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_is_missing_is_clustered(tmp_path, counted):
    keys = {f"ffn {i}": some_keys(i) for i in range(4)}
    cache = ClusterCache(tmp_path)
    cache.get({"ffn 2": keys["ffn 2"]}, 4, "random", 0)
    found = cache.get(keys, 4, "random", 0)
    assert len(counted) == 4
    assert list(found) == list(keys)
    for name, expert_of_neuron in found.items():
        assert expert_of_neuron.tolist() == random_clusters(keys[name], 4, 0).tolist()
        assert expert_of_neuron.dtype == torch.int64


def test_what_was_clustered_before_an_error_is_kept(tmp_path):
    bad = some_keys(1)
    bad[3] = np.nan
    cache = ClusterCache(tmp_path)
    with pytest.raises(ValueError, match=r"^b: 1 keys are not finite"):
        cache.get({"a": some_keys(), "b": bad, "c": some_keys(2)}, 4, "constrained_kmeans", 0)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x00\x00",
        lambda text: json.dumps({**json.loads(text), "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [0] * 24, "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [-1] * 24, "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [10**15] * 24, "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [10**40] * 24, "sha256": "0"}),
        lambda text: json.dumps({"expert_of_neuron": [[0], [1, 2]], "sha256": "0"}),
        lambda text: text.replace("0", "1", 1),
    ],
)
def test_a_damaged_entry_is_noticed_and_made_anew(tmp_path, counted, damage, caplog):
    first = get(tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage(file.read_text()))
    assert torch.equal(get(tmp_path), first)
    assert "are damaged" in caplog.text
    assert len(counted) == 2
    get(tmp_path)
    assert len(counted) == 2


def test_a_valid_checksum_does_not_excuse_unequal_experts(tmp_path, counted, caplog):
    first = get(tmp_path)
    (file,) = tmp_path.glob("*.json")
    uneven = np.zeros(24, np.int64)
    entry = {"expert_of_neuron": uneven.tolist(), "sha256": cluster_cache.checksum(uneven)}
    file.write_text(json.dumps(entry))
    assert torch.equal(get(tmp_path), first)
    assert "not of equal size" in caplog.text


def test_bytes_that_are_no_text_are_noticed(tmp_path, counted, caplog):
    first = get(tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(b"\xff\xfe\x80")
    assert torch.equal(get(tmp_path), first)
    assert "are damaged" in caplog.text


def test_without_a_folder_nothing_is_kept(counted):
    get(None)
    get(None)
    assert len(counted) == 2


def ffns(number: int = 3) -> dict[str, FFN]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for i in range(number):
        keys = torch.randn(24, 4, generator=generator)
        made[f"site {i}"] = FFN(keys=keys, values=keys.clone(), activation=torch.relu)
    return made


@pytest.mark.parametrize(
    ("clustering_option", "reference", "expected"),
    [
        ("constrained_kmeans", False, lambda keys: constrained_kmeans(keys, 4, 7)),
        ("constrained_kmeans", True, lambda keys: constrained_kmeans(keys, 4, 7)),
        ("random", False, lambda keys: random_clusters(keys, 4, 7)),
        ("random", True, lambda keys: np.repeat(np.arange(4), 6)),
    ],
)
def test_neurons_are_assigned_as_method_and_protocol_say(clustering_option, reference, expected):
    method = EMoE(num_experts=4, top_k=2, clustering=clustering_option, cluster_seed=7)
    dense = ffns()
    found = assign_neurons(dense, method, Protocol(contiguous_random=reference), ClusterCache(None))
    assert list(found) == list(dense)
    for name, expert_of_neuron in found.items():
        assert expert_of_neuron.tolist() == expected(dense[name].keys.numpy()).tolist()


@pytest.mark.parametrize("method", [EMoE, EMoELearn])
def test_a_seed_that_is_left_to_the_run_is_filled_in_by_it(method):
    open_seed = method(num_experts=4, top_k=2, clustering="random", cluster_seed=None)
    assert open_seed.seeded(5) == replace(open_seed, cluster_seed=5)
    assert replace(open_seed, cluster_seed=7).seeded(5).cluster_seed == 7
    with pytest.raises(ConfigError, match=r"method\.cluster_seed=null .* give a number"):
        assign_neurons(ffns(), open_seed, Protocol(), ClusterCache(None))


def test_layers_in_processes_are_assigned_as_one_after_the_other(tmp_path, monkeypatch):
    method, dense = EMoE(num_experts=4, top_k=2), ffns()
    expected = assign_neurons(dense, method, Protocol(), ClusterCache(None))
    monkeypatch.setattr(clustering, "WORK_FOR_PROCESSES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for _ in range(2):  # made, then read
        found = assign_neurons(dense, method, Protocol(), ClusterCache(tmp_path))
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(list(tmp_path.iterdir())) == 3


def test_half_precision_keys_are_clustered(tmp_path):
    dense = ffns(1)
    dense["site 0"] = replace(dense["site 0"], keys=dense["site 0"].keys.bfloat16())
    found = assign_neurons(dense, EMoE(num_experts=4, top_k=2), Protocol(), ClusterCache(tmp_path))
    assert torch.bincount(found["site 0"]).tolist() == [6] * 4
