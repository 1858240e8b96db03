"""`trainer.inference=kernel`: evaluations by the C++ kernel, only where it was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from moe_runner.analysis.subjects import without_kernel
from moe_runner.conversion.convert import convert
from moe_runner.kernels import building
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.moe import inference, kernel_experts
from moe_runner.options.checks import measuring_problems
from moe_runner.options.errors import ConfigError
from moe_runner.options.training import Trainer
from moe_runner.runs.store import Store
from moe_runner.training.device import check_kernel, check_measuring
from moe_runner.training.execute import execute, find_resources
from moe_runner.training.fit import build
from moe_runner.training.timing import PASSES, time_inference
from tests.moe.test_kernel import library  # noqa: F401

BY_KERNEL = Trainer(inference="kernel")


def test_it_is_refused_where_it_is_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kernel_experts, "load", lambda: False)
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"trainer.inference=kernel: .*kernels build.*=plain"):
        check_kernel(EMoE(), BY_KERNEL, cpu)
    with pytest.raises(ConfigError, match=r"method.backend=kernel: .*kernels build.*=auto"):
        check_kernel(EMoE(backend="kernel"), Trainer(), cpu)
    check_kernel(EMoE(), Trainer(), cpu)
    check_kernel(Dense(), Trainer(), cpu)


@pytest.mark.parametrize(
    ("method", "options"), [(EMoE(), BY_KERNEL), (EMoE(backend="kernel"), Trainer())]
)
@pytest.mark.parametrize(
    ("device", "precision", "wrong"),
    [("cuda", "fp32", "device=cuda"), ("cpu", "bf16", "trainer.precision=bf16")],
)
def test_it_is_refused_where_it_cannot_compute(
    method, options, device, precision, wrong, monkeypatch
):
    monkeypatch.setattr(kernel_experts, "load", lambda: True)
    options = dataclasses.replace(options, precision=precision)
    with pytest.raises(ConfigError, match=f"does not go with {wrong}"):
        check_kernel(method, options, torch.device(device))


@pytest.mark.kernel
@pytest.mark.parametrize("convert_at", ["both", "eval"])
def test_evaluations_use_it_and_scores_are_those_of_the_plain_path(
    convert_at, make_settings, only_run, monkeypatch, request
):
    method = EMoE(num_experts=4, top_k=2, convert_at=convert_at)
    request.getfixturevalue("library")
    calls = []

    def counted(x_TD, *rest, **options):
        calls.append(len(x_TD))
        return kernel_experts.kernel_layer(x_TD, *rest, **options)

    monkeypatch.setattr(inference, "kernel_layer", counted)
    monkeypatch.setattr(kernel_experts, "load", lambda: True)
    results = []
    for name in ("plain", "kernel"):
        settings = make_settings(method=method, epochs=1)
        trainer = dataclasses.replace(settings.trainer, inference=name)
        settings = dataclasses.replace(settings, trainer=trainer)
        results.append(execute(only_run(settings), settings, Store(Path(settings.paths.output))))
        assert bool(calls) == (name == "kernel")
    plain, kernel = results
    assert plain.id != kernel.id
    assert kernel.settings["trainer.inference"] == "kernel"
    assert "trainer.inference" not in plain.settings
    ours, theirs = kernel.id_metrics["validation"], plain.id_metrics["validation"]
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.metrics == pytest.approx(theirs.metrics)


@pytest.mark.kernel
def test_a_run_that_trains_by_it_is_another_run_with_nearly_the_same_numbers(
    make_settings, only_run, monkeypatch, request
):
    request.getfixturevalue("library")
    monkeypatch.setattr(kernel_experts, "load", lambda: True)
    runs, results = {}, {}
    for backend in ("auto", "sorted", "kernel"):
        method = EMoE(num_experts=4, top_k=2, backend=backend)
        settings = make_settings(method=method, epochs=1)
        runs[backend], before = only_run(settings), kernel_experts.calls
        results[backend] = execute(
            runs[backend], dataclasses.replace(settings, rerun=True),
            Store(Path(settings.paths.output)),
        )  # fmt: skip
        assert (kernel_experts.calls > before) == (backend == "kernel")
    assert runs["sorted"].id == runs["auto"].id != runs["kernel"].id
    ours, theirs = (results[name].id_metrics["validation"] for name in ("kernel", "sorted"))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_what_experts_are_is_looked_at_without_it(make_settings, only_run, monkeypatch):
    monkeypatch.setattr(kernel_experts, "load", lambda: False)
    method = EMoE(num_experts=4, top_k=2, backend="kernel")
    settings = make_settings(method=method, inference="kernel")
    run, resources = only_run(settings), find_resources(settings)
    with pytest.raises(ConfigError, match=r"use method.backend=auto for a new run"):
        build(run, resources)
    plain = without_kernel(run)
    assert (plain.method.backend, plain.trainer.inference) == ("auto", "plain")
    build(plain, resources)


def test_a_run_that_was_trained_in_fp16_is_looked_at_on_a_cpu(make_settings, only_run):
    settings = make_settings(method=EMoE(num_experts=4, top_k=2))
    run, resources = only_run(settings), find_resources(settings)
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, precision="fp16"))
    with pytest.raises(ConfigError, match="trainer.precision=fp16 needs a CUDA device"):
        build(run, resources)
    build(without_kernel(run), resources)


@pytest.mark.kernel
@pytest.mark.parametrize(("method", "backend"), [(Dense(), "torch"), (None, "kernel")])
def test_the_back_end_that_is_told_is_the_one_that_computed(
    method, backend, make_settings, only_run, monkeypatch, request
):
    request.getfixturevalue("library")
    monkeypatch.setattr(kernel_experts, "load", lambda: True)
    settings = make_settings(method=method, epochs=1, time_inference=True)
    result = execute(only_run(settings), settings, Store(Path(settings.paths.output)))
    assert result.inference.backend == backend


def test_evaluating_first_adds_scores_and_changes_none(make_settings, only_run):
    found = []
    for first in (False, True):
        settings = make_settings(epochs=1, evaluate_first=first)
        found.append(execute(only_run(settings), settings, Store(Path(settings.paths.output))))
    without, result = found
    assert result.learning_curve == without.learning_curve
    assert result.id_metrics == without.id_metrics
    assert without.before == {}
    (before,) = result.before.values()
    assert result.before.keys() == {"validation"}
    assert before.examples == 40
    assert before.loss != result.id_metrics["validation"].loss


@pytest.mark.parametrize(
    ("family", "tuning"), [("bert", "lora"), pytest.param("t5", "full", marks=pytest.mark.long)]
)
def test_inference_is_timed_in_turns_with_the_dense_model(
    family, tuning, make_settings, only_run, monkeypatch
):
    monkeypatch.setattr(kernel_experts, "load", lambda: False)
    settings = make_settings(family, tuning=tuning, epochs=1, time_inference=True)
    run = only_run(settings)
    result = execute(run, settings, Store(Path(settings.paths.output)))
    timed = result.inference
    assert timed.backend == "torch"  # what computed, not what could have
    assert timed.seconds > 0 < timed.dense_seconds
    assert 40 < timed.tokens <= 40 * 16  # the validation set; at most max_length each
    trainer = dataclasses.replace(settings.trainer, time_inference=False)
    plain = dataclasses.replace(settings, trainer=trainer)
    other = execute(only_run(plain), plain, Store(Path(settings.paths.output)))
    assert other.inference is None
    assert other.id_metrics == result.id_metrics


def test_passes_take_turns_under_the_same_conditions(tiny_model):
    order: list[str] = []
    models = {"tuned": tiny_model("llama"), "dense": tiny_model("llama")}
    convert(models["tuned"], EMoE(num_experts=4, top_k=2))
    models["tuned"].config.use_cache = False  # as the Trainer leaves it
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    found = time_inference(models["tuned"], models["dense"], batch)
    assert order == ["tuned", "dense"] * (PASSES + 1)
    assert found.tokens == 2
    assert not models["dense"].config.use_cache
    assert not models["dense"].training


def test_without_memory_for_both_the_run_is_kept(tiny_model, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, dense = tiny_model("bert"), tiny_model("bert")
    dense.register_forward_pre_hook(fail)
    with caplog.at_level("WARNING", logger="moe_runner"):
        assert time_inference(model, dense, {"input_ids": torch.tensor([[1, 2]])}) is None
    assert "inference was not timed" in caplog.text


def test_what_would_not_mean_what_it_says_is_refused(monkeypatch):
    emoe = EMoE(num_experts=4, top_k=2)
    right = Trainer(inference="kernel", evaluate_first=True, time_inference=True)
    assert measuring_problems(emoe, right) == []
    problems = measuring_problems(
        dataclasses.replace(emoe, backend="sorted", convert_at="eval"),
        dataclasses.replace(right, precision="bf16"),
    )
    assert [problem.partition(" ")[0] for problem in problems] == [
        "trainer.inference=kernel", "trainer.evaluate_first=true", "trainer.time_inference=true",
    ]  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="does not go with FSDP"):
        check_measuring(Trainer(evaluate_first=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="needs one process, and there are 2"):
        check_measuring(Trainer(time_inference=True))
