"""Estimates of the plan against what is really there."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from moe_runner import tasks
from moe_runner.backbones.weights import ASSETS
from moe_runner.conversion.convert import convert
from moe_runner.options.folders import option_folders
from moe_runner.registry import METHODS
from moe_runner.runs.store import Store
from moe_runner.sweeps import speed
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.cost import estimate, training_examples
from moe_runner.sweeps.plan import Inventory, list_runs
from moe_runner.sweeps.speed import Clock, time_of
from moe_runner.sweeps.study_plan import short
from tests.results import make_result

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


@pytest.mark.parametrize("method", ["moe_share", "moe_adapter", "hypermoe"])
def test_what_stands_beside_the_experts_is_counted(method, cost):
    options = {"method__shared": False} if method == "moe_adapter" else {}
    chosen = {"model": "bert_tiny", "task": "glue_mini/cola", "method__layers": "all"}
    found = cost(method=method, **chosen, **options)
    bare = cost(method="moe", **chosen)
    sizes = []
    for name in ("moe", method):
        model = AutoModelForSequenceClassification.from_pretrained(ASSETS / "bert_tiny")
        shared = {"shared": False} if name == "moe_adapter" else {}
        convert(model, METHODS[name](layers="all", **shared))
        sizes.append(model.num_parameters())
    real = sizes[1] - sizes[0]
    difference = found.parameters - bare.parameters
    assert difference == pytest.approx(real, rel=0.01)  # an expert's biases are left out


def test_blocks_that_train_whole_count(cost):
    own = {"model": "bert", "task": "glue/cola", "trainer__epochs": 3}
    lora = cost(method="dense", tuning="lora", **own)
    block = 4 * 768**2 + 2 * 768 * 3072
    blocks = {"tuning": "lora_block", "tuning__blocks": "last:2"}
    assert cost(method="dense", **blocks, **own).trainable == lora.trainable + 2 * block
    emoe = cost(method="emoe", method__layers="last:3", tuning="lora_block", **own)
    assert emoe.trainable == lora.trainable + 3 * block


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


def planned(tmp_path, **choices):
    """One run of the settings."""
    common = {"paths.output": str(tmp_path), "task": "glue_mini/cola", "method": "dense"}
    settings = compose_settings(FOLDERS, {**common, **choices})
    return list_runs(settings, Inventory(tmp_path / "hashes.json")).runs[0]


def keep(store, run, updates: int, seconds: float, rate: float, device: str = "cpu") -> None:
    """Store what a run took."""
    result = make_result(run.axes(), 0.5, id=run.id, settings=run.settings(), device=device)
    result = replace(
        result,
        updates=updates, wall_seconds=seconds,
        speed=replace(result.speed, examples_per_second=rate),
    )  # fmt: skip
    with store.claim(run.id, config_yaml="", environment={}) as folder:
        folder.finish(result)


def test_alike_stored_runs_tell_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measured_flops", lambda: pytest.fail("nothing has to be measured"))
    store = Store(tmp_path / "out")
    short = planned(tmp_path, **{"trainer.max_steps": 10})
    keep(store, short, updates=10, seconds=7.0, rate=64.0)  # 5 s of training, 2 s besides
    clock = Clock(store, "cpu")
    longer = planned(tmp_path, **{"trainer.max_steps": 100, "seed": 1})
    assert clock.seconds(longer) == pytest.approx(100 * 32 / 64 + 2)
    other = planned(tmp_path, **{"trainer.max_steps": 100, "method": "emoe"})
    assert clock.seconds(other) == clock.seconds(longer)  # of the same model and task
    assert clock.explained() == "3 from the seconds of alike runs that are stored here"
    assert time_of([longer, other], clock) == "1.7 min"


def test_runs_with_longer_examples_or_another_evaluation_are_less_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measured_flops", lambda: 40e9)
    store = Store(tmp_path / "out")
    own = {"model": "gpt2_tiny", "task": "wikitext_mini", "trainer.max_steps": 10}
    for block, limit, rate in ((32, 8, 40.0), (32, 16, 20.0), (64, 8, 10.0)):
        sizes = {"task.block_size": block, "task.eval_limit": limit}
        keep(store, planned(tmp_path, **own, **sizes), 10, 40 / rate + limit, rate)

    def seconds(block, limit):
        sizes = {"task.block_size": block, "task.eval_limit": limit}
        return clock.seconds(planned(tmp_path, seed=1, **own, **sizes))

    clock = Clock(store, "cpu")
    assert seconds(32, 16) == pytest.approx(40 / 20 + 16)
    assert seconds(64, 8) == pytest.approx(40 / 10 + 8)
    assert seconds(64, 99) == pytest.approx(40 / 10 + 8)
    assert seconds(32, 99) == pytest.approx((40 / 20 + 16 + 40 / 40 + 8) / 2)
    seconds(128, 8)
    assert clock.sources == {"stored": 4, "speed": 1}


def test_a_text_is_counted_in_blocks(tmp_path):
    for block in (32, 64):
        run = planned(
            tmp_path, model="llama_tiny", task="wikitext_mini", **{"task.block_size": block}
        )
        assert training_examples(run) == pytest.approx(1200 * 39.0 / block * 2)  # two epochs
    data = tasks.load(run.task, run.task_name)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llama_tiny")
    tokens = sum(map(len, tokenizer(list(data.train["text"]))["input_ids"]))
    assert tokens / len(data.train) == pytest.approx(39.0, rel=0.05)


def test_a_gpu_and_a_processor_say_nothing_about_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "has_gpu", lambda: True)
    store = Store(tmp_path / "out")
    own = {"trainer.max_steps": 100}
    keep(store, planned(tmp_path, **own), updates=100, seconds=52.0, rate=64.0)
    keep(store, planned(tmp_path, seed=1, **own), 100, 3.0, 3200.0, device="cuda:0")
    run = planned(tmp_path, seed=2, **own)
    assert Clock(store, "cpu").seconds(run) == pytest.approx(52)
    assert Clock(store, "cuda").seconds(run) == pytest.approx(3)


def test_without_stored_runs_the_speed_of_this_machine_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measured_flops", lambda: 40e9)
    monkeypatch.setattr(speed, "has_gpu", lambda: True)
    run = planned(tmp_path, **{"trainer.max_steps": 100})
    clock = Clock(Store(tmp_path / "none"), "cpu")
    assert clock.seconds(run) == pytest.approx(estimate(run).flops / 20e9)
    assert "from 40 GFLOP/s in matrix products, measured just now" in clock.explained()
    clock = Clock(Store(tmp_path / "none"), "auto")  # with the GPU
    assert clock.seconds(run) == pytest.approx(estimate(run).flops / 100e12)
    assert "assumed 100 TFLOP/s of the GPU" in clock.explained()


def test_a_run_of_unknown_size_has_no_time_and_is_told(tmp_path):
    run = planned(tmp_path, task="glue/rte", model="bert")
    clock = Clock(Store(tmp_path / "none"), "cpu")
    assert clock.seconds(run) is None
    assert time_of([run], clock) == ">0 s"
    assert clock.explained() == "2 not known: the size of the data is not"


def test_the_measured_speed_is_one_that_a_machine_can_have():
    started = time.perf_counter()
    assert 1e8 < speed.measured_flops() < 1e14
    assert time.perf_counter() - started < 20
