"""The sizes of a backbone in a local folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from moe_runner.backbones.families import positions_of
from moe_runner.cli.values import parse_config
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import read_option
from moe_runner.options.folders import CONF, option_folders, option_names
from moe_runner.options.model import Model, families_with_options, with_own_sizes


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


FOLDERS = [  # family, config.json, d_model, d_ff, num_layers, gated, vocab_size, max_positions
    (
        "bert",
        {"model_type": "bert", "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3,
         "vocab_size": 77, "max_position_embeddings": 40},
        (32, 96, 3, False, 77, 40),
    ),
    (
        "gpt2",
        {"model_type": "gpt2", "n_embd": 24, "n_inner": None, "n_layer": 5, "vocab_size": 55,
         "n_positions": 60, "n_ctx": 60},
        (24, 96, 5, False, 55, 60),
    ),
    (
        "gpt2",
        {"model_type": "gpt2", "n_embd": 24, "n_inner": 48, "n_layer": 5, "vocab_size": 55,
         "n_positions": 60},
        (24, 48, 5, False, 55, 60),
    ),
    (
        "llama",
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 6,
         "vocab_size": 99, "max_position_embeddings": 128},
        (32, 88, 6, True, 99, 128),
    ),
    (
        "t5",
        {"model_type": "t5", "d_model": 16, "d_ff": 64, "num_layers": 7, "vocab_size": 33,
         "n_positions": 50, "feed_forward_proj": "relu"},
        (16, 64, 7, False, 33, None),
    ),
    (
        "t5",
        {"model_type": "t5", "d_model": 16, "d_ff": 40, "num_layers": 8, "vocab_size": 33,
         "num_decoder_layers": 8, "feed_forward_proj": "gated-gelu"},
        (16, 40, 8, True, 33, None),
    ),
    (
        "switch",
        {"model_type": "switch_transformers", "d_model": 16, "d_ff": 64, "num_layers": 6,
         "vocab_size": 33, "num_sparse_encoder_layers": 3},
        (16, 64, 6, False, 33, None),
    ),
    (
        "vit",
        {"model_type": "vit", "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 4,
         "image_size": 32},
        (48, 192, 4, False, None, None),
    ),
    (
        "vit",
        {"model_type": "deit", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
        (48, 96, 2, False, None, None),
    ),
]  # fmt: skip


def option_of(family: str) -> Model:
    files = {"bert": "bert", "gpt2": "gpt2", "llama": "llama2", "t5": "t5_base"}
    files |= {"switch": "switch_base_8", "vit": "vit_small"}
    problems: list[str] = []
    tree = read_option(option_folders(), "model", files[family])
    model = build(Model, tree, "model", problems)
    assert model is not None
    return model


@pytest.mark.parametrize(("family", "content", "sizes"), FOLDERS)
def test_sizes_of_a_local_folder_win(tmp_path, family, content, sizes):
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = dataclasses.replace(option_of(family), path=str(tmp_path))
    problems: list[str] = []
    found = with_own_sizes(model, problems)
    assert problems == []
    names = ("d_model", "d_ff", "num_layers", "gated", "vocab_size", "max_positions")
    assert tuple(getattr(found, name) for name in names) == sizes


def test_the_families_of_the_option_files_are_those_that_messages_name():
    folders = option_folders()
    names = option_names(folders, "model")
    found = {read_option(folders, "model", name)["family"] for name in names if name != "auto"}
    assert set(families_with_options()) == found


def test_an_unknown_family_is_named_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", ["model.family=robertaa"]))
    assert caught.value.problems == (
        "model.family=robertaa is not a known family; did you mean roberta?",
    )


def test_the_layers_of_an_albert_are_named_all_or_not_at_all(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert", **sizes}))
    overrides = ["model.family=albert", "method.num_experts=8", "method.top_k=2"]
    overrides.append(f"model.path={tmp_path}")
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", [*overrides, "method.layers=last:1"]))
    assert caught.value.problems == (
        "method.layers=last:1 names 1 of 4 layers of model=bert_tiny, which share one FFN; "
        "use method.layers=all",
    )
    parse_config(compose("config", [*overrides, "method.layers=all"]))


def test_experts_are_checked_against_the_local_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS[0][1]))
    cfg = compose("config", ["model=bert", f"model.path={tmp_path}", "task.max_length=64"])
    with pytest.raises(ConfigError) as caught:
        parse_config(cfg)
    assert caught.value.problems == (
        "task.max_length=64 is more than the 40 positions of model=bert; use at most 40",
        "method.num_experts=64 does not divide d_ff=96 of model=bert; use one of 32, 48, 96, ...",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "model.path={0} is not a model folder: {0}/config.json does not exist"),
        ("{", "model.path={0} is not a model folder: {0}/config.json is not readable"),
        ("3", "model.path={0} is not a model folder: {0}/config.json is not readable"),
        (
            '{"model_type": "roberta"}',
            "model.path={0} holds a model of type roberta; model=bert is of the family bert",
        ),
        (
            '{"model_type": "gpt2"}',
            "model.path={0} holds a model of type gpt2; model=bert is of the family bert",
        ),
    ],
)
def test_a_wrong_local_folder_is_told(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    model = dataclasses.replace(option_of("bert"), path=str(tmp_path))
    problems: list[str] = []
    assert with_own_sizes(model, problems) == model
    assert problems == [problem.format(tmp_path)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama", "max_position_embeddings": 9}, 9),
        ({"model_type": "gpt2", "n_positions": 9}, 9),
        ({"model_type": "roberta", "max_position_embeddings": 9, "pad_token_id": 1}, 7),
        ({"model_type": "t5", "n_positions": 9}, None),  # relative: no limit
        ({"model_type": "mpt", "max_seq_len": 9}, 9),
        ({"model_type": "a_new_one", "n_positions": 9}, 9),
        ({"model_type": "bloom"}, None),
        ({}, None),
    ],
)
def test_positions_go_by_several_names(config, expected):
    assert positions_of(config) == expected
