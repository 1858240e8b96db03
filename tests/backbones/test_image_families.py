"""Encoders for images beside ViT: loaded with a new head, in any size, with stochastic depth."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, ViTImageProcessor

from moe_runner.backbones.drop_path import DropPath, add_drop_path
from moe_runner.backbones.families import family_of_type
from moe_runner.backbones.loading import load_image_classifier
from moe_runner.backbones.weights import find_weights
from moe_runner.options.model import Model

TYPES = ("vit", "deit", "beit", "data2vec-vision", "dinov2")


def write(model_type: str, folder) -> Model:
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "use_relative_position_bias": model_type != "dinov2",
    }  # fmt: skip
    if model_type != "dinov2":
        sizes["intermediate_size"] = 128
    AutoModel.from_config(AutoConfig.for_model(model_type, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    family = family_of_type(model_type)
    assert family is not None
    found = {"d_model": 32, "d_ff": 128, "num_layers": 3}
    assert family.sizes_of({"model_type": model_type, **sizes, "vocab_size": 8192}).items() >= (
        found.items()
    )
    return Model(
        name="mine", family=family.name, path=str(folder), lora_targets=family.lora_targets, **found
    )


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("model_type", TYPES)
def test_it_is_loaded_with_a_new_head_for_images_of_any_size(model_type, size, tmp_path):
    torch.manual_seed(0)
    options = write(model_type, tmp_path)
    backbone = load_image_classifier(options, find_weights(options), ("a", "b", "c"), size)
    logits = backbone.model(torch.randn(2, 3, size, size)).logits
    assert logits.shape == (2, 3)
    assert "classifier.weight" in backbone.head


@pytest.mark.parametrize("model_type", TYPES)
def test_both_branches_of_a_block_have_stochastic_depth(model_type, tmp_path):
    options = write(model_type, tmp_path)
    model = load_image_classifier(options, find_weights(options), ("a", "b"), 32).model
    add_drop_path(model, 0.5)
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert [drop.rate for drop in drops] == [0.0, 0.25, 0.5]
    called = {id(drop): 0 for drop in drops}
    for drop in drops:
        drop.register_forward_hook(
            lambda module, *_: called.update({id(module): called[id(module)] + 1})
        )  # noqa: E501
    model(torch.randn(2, 3, 32, 32))
    assert list(called.values()) == [2, 2, 2]
