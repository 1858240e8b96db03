"""Estimates of the plan against what is really there."""

from __future__ import annotations

import math

import pytest
from safetensors import safe_open

from moe_runner.backbones.weights import ASSETS
from moe_runner.options.folders import option_folders
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.cost import estimate
from moe_runner.sweeps.plan import Inventory, list_runs
from moe_runner.sweeps.study_plan import short

FOLDERS = option_folders()


@pytest.fixture
def cost(tmp_path):
    def build(**choices):
        settings = compose_settings(
            FOLDERS,
            {
                "paths.output": str(tmp_path),
                **{k.replace("__", "."): v for k, v in choices.items()},
            },
        )
        return estimate(list_runs(settings, Inventory(tmp_path / "hashes.json")).runs[0])

    return build


@pytest.mark.parametrize("name", ["bert_tiny", "gpt2_tiny", "llama_tiny"])
def test_parameters_of_a_bundled_backbone_are_met_within_three_percent(name, cost):
    with safe_open(ASSETS / name / "model.safetensors", "numpy") as file:
        real = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert cost(model=name, method="dense").parameters == pytest.approx(real, rel=0.03)


def test_what_a_method_adds(cost):
    dense = cost(model="bert", method="dense", task="glue/cola")
    ffn = 2 * 768 * 3072
    emoe = cost(model="bert", method="emoe", task="glue/cola")
    assert emoe.parameters == dense.parameters  # no new parameter
    gmoe = cost(model="bert", method="gmoe", task="glue/cola")
    assert gmoe.parameters - dense.parameters == 7 * ffn  # eight experts in one layer
    moe = cost(model="bert", method="moe", task="glue/cola", method__layers="all")
    assert moe.parameters - dense.parameters == 12 * 7 * ffn
    tokens = 8551 * 10 * 128  # CoLA, ten epochs, the longest texts
    assert dense.flops - emoe.flops == pytest.approx(6 * 0.75 * ffn * tokens)
    assert moe.flops == dense.flops  # one of eight


def test_lora_trains_little_and_costs_two_thirds(cost):
    full = cost(model="bert", method="dense", task="glue/cola", trainer__epochs=3)
    lora = cost(model="bert", method="dense", task="glue/cola", trainer__epochs=3, tuning="lora")
    assert lora.trainable == 12 * 2 * 2 * 8 * 768
    assert lora.flops == pytest.approx(full.flops * 2 / 3)
    assert lora.disk < full.disk / 100


def test_steps_and_fractions_count(cost):
    steps = cost(model="bert", method="dense", task="glue/cola", trainer__max_steps=100)
    part = cost(model="bert", method="dense", task="glue/cola", task__train_fraction=0.5)
    whole = cost(model="bert", method="dense", task="glue/cola")
    assert part.flops == pytest.approx(whole.flops / 2)
    assert steps.flops / whole.flops == pytest.approx(100 * 32 / (8551 * 10))


def test_unknown_sizes_give_no_number(cost):
    assert cost(model="bert", method="dense", task="glue/rte").flops is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "0.5 "), (999, "999 "), (1234, "1.23 k"), (1.5e9, "1.5 G"), (4.34e18, "4.34 E")],
)
def test_numbers_are_written_with_three_digits(number, text):
    assert short(number) == text
