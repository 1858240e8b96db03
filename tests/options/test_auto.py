"""`model=auto`: everything follows from config.json, and what cannot be read is one line."""

from __future__ import annotations

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModel

from moe_runner.cli.values import parse_config
from moe_runner.options.auto import label_of
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF

LLAMA = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 90}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_positions": 40, "n_inner": None, "vocab_size": 90}
DISTILBERT = {"dim": 64, "hidden_dim": 256, "n_layers": 3, "vocab_size": 90}


def parsed(*words: str):
    overrides = ["model=auto", "method.num_experts=8", "method.top_k=2", *words]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse_config(compose("config", overrides)).model


def problems(*words: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parsed(*words)
    return caught.value.problems


@pytest.fixture
def folder(tmp_path):
    def write(model_type: str | None, **config):
        place = tmp_path / "my-model"
        place.mkdir()
        kind = {} if model_type is None else {"model_type": model_type}
        (place / "config.json").write_text(json.dumps({**kind, **config}))
        return place

    return write


@pytest.mark.parametrize(
    ("model_type", "config", "family", "gated", "targets"),
    [
        ("qwen2", LLAMA, "qwen2", True, ("q_proj", "v_proj")),
        ("mistral", LLAMA, "mistral", True, ("q_proj", "v_proj")),
        ("gpt2", GPT2, "gpt2", False, ("c_attn",)),
        ("camembert", LLAMA, "roberta", False, ("query", "value")),
        ("distilbert", DISTILBERT, "distilbert", False, ("q_lin", "v_lin")),
        ("deberta-v2", LLAMA, "deberta-v2", False, ("query_proj", "value_proj")),
    ],
)
def test_family_sizes_and_targets_are_those_of_the_file(
    folder, model_type, config, family, gated, targets
):
    model = parsed(f"model.path={folder(model_type, **config)}")
    assert (model.family, model.gated, model.lora_targets) == (family, gated, targets)
    assert (model.d_model, model.d_ff, model.num_layers, model.vocab_size) == (64, 256, 3, 90)
    assert (model.name, model.label) == ("auto", "my-model")


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet", "xmod"])
def test_positions_are_as_many_as_the_model_takes(folder, model_type):
    """RoBERTa's kind counts positions behind the padding: its last two rows are no tokens."""
    sizes = {**LLAMA, "max_position_embeddings": 20, "pad_token_id": 1, "num_hidden_layers": 1}
    most = parsed(f"model.path={folder(model_type, **sizes)}", "task.max_length=8").max_positions
    languages = {"languages": ["en"], "default_language": "en"} if model_type == "xmod" else {}
    heads = {"num_attention_heads": 2, "hidden_size": 64, "num_hidden_layers": 1}
    config = AutoConfig.for_model(model_type, **{**sizes, **heads, **languages})
    model = AutoModel.from_config(config).eval()
    ids = torch.full((1, most + 1), 5)
    model(input_ids=ids[:, :most])
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=ids)


def test_own_lora_targets_stay(folder):
    place = folder("qwen2", **LLAMA)
    assert parsed(f"model.path={place}", "model.lora_targets=[o_proj]").lora_targets == ("o_proj",)


def test_it_needs_a_place():
    assert problems() == ("model=auto needs model.path=<folder> or model.hub_id=<id>",)


def test_a_model_that_is_not_in_the_cache_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (line,) = problems("model.hub_id=me/mine")
    assert line == (
        "model.hub_id=me/mine: its config.json (revision main), which model=auto reads, is neither "
        "in the local Hugging Face cache nor to be had from the Hub; check the id, or fetch it "
        "where there is a connection (hf download me/mine), or use model.path=<folder>"
    )


def test_a_folder_without_config_is_named(tmp_path):
    file = tmp_path / "config.json"
    assert problems(f"model.path={tmp_path}") == (
        f"model.path={tmp_path} is not a model folder: {file} does not exist",
    )


def test_an_unknown_type_is_refused_with_the_nearest_and_all_that_are_known(folder):
    place = folder("qwen22", **LLAMA)
    (line,) = problems(f"model.path={place}")
    assert line.startswith(
        f"model.path={place}: model_type=qwen22 in {place}/config.json is of no family that has "
        "tasks; did you mean qwen2? known are albert, "
    )
    assert "roberta" in line


@pytest.mark.parametrize(
    ("model_type", "config", "ending"),
    [
        (None, LLAMA, "has no model_type; add the one of its architecture"),
        ("qwen2", {**LLAMA, "intermediate_size": None}, "has no intermediate_size; add it"),
    ],
)
def test_what_the_file_lacks_is_named(folder, model_type, config, ending):
    place = folder(model_type, **config)
    assert problems(f"model.path={place}") == (f"model.path={place}: {place}/config.json {ending}",)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("option", ["auto", "llama_tiny"])
def test_a_size_of_zero_is_named_with_key_and_file(folder, option, key):
    place = folder("llama", **{**LLAMA, key: 0})
    lines = problems(f"model={option}", f"model.path={place}")
    assert (
        f"{place}/config.json: {key}=0 is not a size of a model; use the one of its weights"
    ) in lines


def test_a_size_that_contradicts_the_file_is_refused_and_an_equal_one_is_not(folder):
    place = folder("qwen2", **LLAMA)
    assert parsed(f"model.path={place}", "model.d_model=64", "model.family=qwen2").d_model == 64
    assert problems(f"model.path={place}", "model.d_model=32") == (
        f"model.d_model=32 contradicts {place}/config.json, which says 64; leave model.d_model out",
    )


def test_labels_are_names_of_folders_and_repositories_never_hashes(tmp_path):
    snapshot = tmp_path / "models--me--stories260K" / "snapshots" / ("a" * 40)
    assert label_of(str(snapshot), None) == "stories260K"
    assert label_of(None, "me/stories260K") == "stories260K"
    assert label_of(f"{tmp_path}/stories260K/", None) == "stories260K"
