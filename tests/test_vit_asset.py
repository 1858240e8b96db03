"""The bundled vit_tiny, and the drawings that it was pretrained on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from moe_runner.backbones.loading import load_image_classifier
from moe_runner.backbones.weights import ASSETS, find_weights
from moe_runner.options.model import Model
from moe_runner.tasks.mini.drawings import BACKGROUNDS, GLYPHS, LABELS, SIZE, blurred, draw
from tests.test_assets import inertia

FOLDER = ASSETS / "vit_tiny"
OPTIONS = Model(
    name="vit_tiny", family="vit", bundled=True, d_model=128, d_ff=512, num_layers=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained():
    model, info = AutoModelForImageClassification.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    return model


def test_folder_is_at_most_3_mb_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


def test_card_has_the_command_and_losses_that_fell():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "`python scripts/pretrain_tiny.py vit_tiny" in card
    section = card.split("## Loss")[1].split("\n## ")[0]
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| [\d.]+ \|\n", section)
    assert len(rows) == 2
    assert all(float(before) > float(after) for before, after in rows)


def test_sizes_are_those_of_the_option(pretrained):
    config = pretrained.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (128, 512, 4)
    assert config.image_size == SIZE == find_weights(OPTIONS).image_size()
    assert list(config.id2label.values()) == list(LABELS)


def test_fresh_drawings_are_recognised_far_better_than_by_chance(pretrained):
    images, labels = draw(400, np.random.default_rng(777_777))
    processor = AutoImageProcessor.from_pretrained(FOLDER, backend="pil")
    pixels = processor(list(images.transpose(0, 2, 3, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = pretrained.eval()(pixel_values=pixels).logits[:, : len(GLYPHS)]
    right = (logits.argmax(1).numpy() == labels[:, 0]).mean()
    assert right > 0.35  # chance: 0.024; the card: 0.48


def test_neurons_are_more_alike_than_shuffled_ones(pretrained):
    keys_FD = pretrained.vit.layers[3].mlp.fc1.weight.detach().double().numpy()
    shuffled_FD = np.random.default_rng(0).permuted(keys_FD, axis=0)
    assert inertia(keys_FD) < 0.95 * inertia(shuffled_FD)


@pytest.mark.parametrize("classes", [3, len(LABELS)])
def test_it_loads_with_a_new_head_whatever_the_number_of_classes(classes, pretrained):
    torch.manual_seed(0)
    labels = tuple(f"class {number}" for number in range(classes))
    backbone = load_image_classifier(OPTIONS, find_weights(OPTIONS), labels, SIZE)
    assert backbone.head == {"classifier.weight", "classifier.bias"}
    weight = backbone.model.classifier.weight
    assert weight.shape == (classes, 128)
    assert weight.shape != pretrained.classifier.weight.shape or not torch.equal(
        weight, pretrained.classifier.weight
    )
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not backbone.model.classifier.bias.any()
    assert backbone.model.config.id2label[classes - 1] == labels[-1]
    own, theirs = (model.vit.layers[0].mlp.fc1.weight for model in (backbone.model, pretrained))
    assert torch.equal(own, theirs)
    assert list(backbone.processor.image_mean) == [0.5] * 3


def test_drawings_are_made_from_a_seed():
    first, again = (draw(60, np.random.default_rng(3)) for _ in range(2))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    images, labels = first
    assert images.shape == (60, 3, SIZE, SIZE)
    assert images.dtype == np.uint8
    assert labels[:, 0].max() < len(GLYPHS)
    assert labels[:, 1].max() < len(BACKGROUNDS)
    assert images.std((1, 2, 3)).min() > 3  # nothing is blank


def test_blurring_keeps_the_mean_and_what_is_flat():
    flat = np.full((1, 3, SIZE, SIZE), 0.25, np.float32)
    assert blurred(flat, 4) == pytest.approx(0.25)
    noise = np.random.default_rng(0).random((4, 3, SIZE, SIZE), dtype=np.float32)
    assert blurred(noise, 4).std() < 0.3 * noise.std()
    assert blurred(noise, 4).mean() == pytest.approx(noise.mean(), abs=0.01)
