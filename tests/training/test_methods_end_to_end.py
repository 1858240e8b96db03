"""Whole runs of every method: training, resuming, keeping, evaluating again, exporting."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from moe_runner import auxiliary_loss, convert, from_pretrained, merge, train
from moe_runner.conversion.counts import moe_layers
from moe_runner.conversion.record import spans
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.methods.moe.options import MoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.method import Method
from moe_runner.options.protocol import Protocol
from moe_runner.registry import METHODS
from moe_runner.runs.result import figures_by_set
from moe_runner.runs.store import RunFolder, Store
from moe_runner.training import checkpoint, fit
from moe_runner.training.callbacks import ShowProgress
from moe_runner.training.evaluate import evaluate_kept
from moe_runner.training.execute import execute
from tests.methods.rows import CONVERTING, ROWS, a_few, small
from tests.training.test_command import moe_run
from tests.training.test_runs import carry_out, cut_short, elsewhere, numbers

TUNINGS = ["full", "lora"]


@pytest.fixture
def loud_settings(make_settings, backbone_folder, tmp_path):
    """Settings with a backbone whose FFNs matter so much that a mixture's loss is another."""

    def build(method, tuning, **trainer):
        folder = tmp_path / "loud"
        if not folder.exists():
            shutil.copytree(backbone_folder("bert"), folder)
            weights = load_file(folder / "model.safetensors")
            for name in weights:
                if name.endswith("output.dense.weight") and "attention" not in name:
                    weights[name] *= 10
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        settings = make_settings("bert", method, tuning, **trainer)
        model = dataclasses.replace(settings.model, path=str(folder))
        return dataclasses.replace(settings, model=model)

    return build


def kept(settings, **changes):
    """The same settings, with the best weights kept."""
    return dataclasses.replace(settings, keep_model="best", **changes)


def trained_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(folder).best / checkpoint.WEIGHTS)


def as_trained(settings, run, folder):
    """Build a run's model as it was trained and load its best weights."""
    ready = fit.build(run, train.find_resources(settings))
    checkpoint.load_trained(ready.backbone.model, RunFolder(folder).best)
    ready.backbone.model.eval()
    return ready


@torch.no_grad()
def by_hand(model, ready) -> tuple[float, float]:
    """Evaluate one example after the other: mean loss, and accuracy."""
    data = ready.data.validation["validation"]
    loss, right = 0.0, 0
    for text, label in zip(data["sentence"], data["label"], strict=True):
        logits = model(**ready.backbone.processor(text, return_tensors="pt")).logits
        loss += float(functional.cross_entropy(logits, torch.tensor([label])))
        right += int(logits.argmax()) == label
    return loss / len(data), right / len(data)


# -------------------------------------------------- convert_at: when the model is a mixture


@pytest.mark.parametrize("tuning", TUNINGS)
def test_converting_at_evaluation_trains_the_dense_model_and_evaluates_the_mixture(
    tuning, loud_settings, only_run
):
    method = EMoE(num_experts=8, top_k=2, layers="all", convert_at="eval")
    settings = kept(loud_settings(Dense(), tuning, epochs=1))
    dense_run = only_run(settings)
    dense, dense_folder = carry_out(settings, dense_run)
    late_run = only_run(settings, method=method)
    late, folder = carry_out(settings, late_run)
    assert late_run.id != dense_run.id
    expected, found = trained_weights(dense_folder), trained_weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert late["learning_curve"] == dense["learning_curve"]

    ready = as_trained(settings, dense_run, dense_folder)
    model = ready.backbone.model
    stored = late["id_metrics"]["validation"]
    before = dense["id_metrics"]["validation"]["loss"]
    assert by_hand(model, ready)[0] == pytest.approx(before, rel=3e-6)
    merge(model)
    convert(model, method)
    loss, _ = by_hand(model, ready)
    assert stored["loss"] == pytest.approx(loss, rel=3e-6)
    assert abs(stored["loss"] - before) > 2e-5
    assert "routing/entropy" in stored
    assert late["flops_per_token"]["converted"] < late["flops_per_token"]["dense"]
    assert len(late["converted_layers"]) == 4
    plain = dense["parameters"]
    assert late["flops_per_token"]["dense"] == dense["flops_per_token"]["dense"]
    told = {key: late["parameters"][key] for key in ("dense", "total", "lora")}
    assert told == {"dense": plain["dense"], "total": plain["dense"], "lora": plain["lora"]}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_converting_for_training_only_evaluates_the_merged_dense_model(
    tuning, loud_settings, only_run
):
    method = EMoE(num_experts=8, top_k=2, layers="all")
    settings = kept(loud_settings(method, tuning, epochs=1))
    both_run = only_run(settings)
    both, both_folder = carry_out(settings, both_run)
    early, folder = carry_out(
        settings, only_run(settings, method=dataclasses.replace(method, convert_at="train"))
    )
    expected, found = trained_weights(both_folder), trained_weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert early["learning_curve"] == both["learning_curve"]

    ready = as_trained(settings, both_run, both_folder)
    assert len(moe_layers(ready.backbone.model)) == 4
    merge(ready.backbone.model)
    loss, _ = by_hand(ready.backbone.model, ready)
    stored = early["id_metrics"]["validation"]
    assert stored["loss"] == pytest.approx(loss, rel=3e-6)
    assert abs(stored["loss"] - both["id_metrics"]["validation"]["loss"]) > 2e-5
    assert "routing/entropy" not in stored
    assert early["flops_per_token"]["converted"] == early["flops_per_token"]["dense"]
    assert early["converted_layers"] == []
    assert 0 < early["routing"]["routing/entropy"] <= 1  # of training


@pytest.mark.long
@pytest.mark.parametrize(("when", "tuning"), [("train", "full"), ("eval", "lora")])
def test_killed_or_evaluated_again_a_late_or_early_conversion_has_the_same_numbers(
    when, tuning, make_settings, only_run, monkeypatch
):
    method = EMoE(num_experts=8, top_k=2, convert_at=when)
    settings = kept(make_settings("bert", method, tuning, epochs=2, save_steps=5))
    run = only_run(settings)
    whole, folder = carry_out(settings, run)
    store, resources = Store(train.Path(settings.paths.output)), train.find_resources(settings)
    assert figures_by_set(evaluate_kept(run, settings, store, resources)) == whole["ood_metrics"]

    settings = elsewhere(settings)
    cut_short(settings, run, monkeypatch, at=18)
    monkeypatch.setattr(fit, "evaluate_ood", lambda *_: 1 / 0)  # after the final form was taken
    with pytest.raises(ZeroDivisionError):
        carry_out(settings, run)
    monkeypatch.undo()
    result, again = carry_out(settings, run)
    assert result["resumed_at_update"] > 0
    assert numbers(result) == numbers(whole)
    expected, found = trained_weights(folder), trained_weights(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# ---------------------------------------------------------------- kept, exported, loaded again


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        pytest.param(name, tuning, marks=pytest.mark.long if long else ())
        for name in METHODS
        for tuning in (*TUNINGS, *(["lora_block"] if name == "emoe" else []))
        for long in [tuning != "full" and name != "emoe"]
    ],
)
def test_kept_weights_and_exports_give_the_stored_numbers(name, tuning, make_settings, only_run):
    family = "gpt2" if tuning == "lora" else "bert"
    settings = make_settings(family, small(name), "full", max_steps=4)
    if tuning != "full":
        lora = dataclasses.replace(settings.tuning, name=tuning, rank=2, alpha=4, dropout=0.1)
        settings = dataclasses.replace(settings, tuning=dataclasses.replace(lora, blocks=(1,)))
    settings = kept(settings, export="moe" if name in CONVERTING else "dense")
    run = only_run(settings)
    result, folder = carry_out(settings, run)
    store, resources = Store(train.Path(settings.paths.output)), train.find_resources(settings)
    assert figures_by_set(evaluate_kept(run, settings, store, resources)) == result["ood_metrics"]

    ready = as_trained(settings, run, folder)
    loss, _ = by_hand(ready.backbone.model, ready)
    assert loss == pytest.approx(result["id_metrics"]["validation"]["loss"], rel=1e-5)

    exported = RunFolder(folder).export
    assert len(AutoTokenizer.from_pretrained(exported)) == len(ready.backbone.processor)
    if name in CONVERTING:
        model = from_pretrained(exported)
        assert not any("lora" in n for n, _ in model.named_parameters())
        assert by_hand(model, ready)[0] == pytest.approx(loss, rel=1e-5)
        if not ROWS[name].merges:
            with pytest.raises(ValueError, match="moe_runner_"):
                AutoModelForSequenceClassification.from_pretrained(exported)
            return
        shutil.rmtree(exported)
        settings = dataclasses.replace(settings, export="dense", rerun=True)
        carry_out(settings, run)
        merge(ready.backbone.model)
        loss, _ = by_hand(ready.backbone.model, ready)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        exported, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model) is type(ready.backbone.model)
    assert by_hand(model, ready)[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("when", "form"), [("train", "dense"), ("eval", "moe"), ("both", "moe"), ("both", "dense")]
)
def test_the_export_has_the_logits_of_what_was_evaluated(when, form, loud_settings, only_run):
    method = EMoE(num_experts=8, top_k=2, layers="all", convert_at=when)
    settings = kept(loud_settings(method, "lora", max_steps=4), export=form)
    run = only_run(settings)
    result, folder = carry_out(settings, run)
    load = from_pretrained if form == "moe" else AutoModelForSequenceClassification.from_pretrained
    model = load(RunFolder(folder).export)
    assert len(moe_layers(model)) == (4 if form == "moe" else 0)
    ready = as_trained(settings, run, folder)
    fit.take_final_form(ready, run, train.find_resources(settings))
    expected = ready.backbone.model.eval()
    stored = result["id_metrics"]["validation"]["loss"]
    assert by_hand(expected, ready)[0] == pytest.approx(stored, rel=3e-6)
    if (when, form) == ("both", "dense"):  # EMoE2LoRA by hand
        merge(expected)
        assert abs(by_hand(expected, ready)[0] - stored) > 2e-5
    batch = ready.backbone.processor(["w1 w2 good", "bad w7"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, expected(**batch).logits, rtol=1e-5, atol=1e-6
        )


def test_a_run_ends_with_a_model_of_plain_transformers(make_settings, only_run, caplog):
    caplog.set_level(logging.INFO)
    settings = make_settings("llama", MoE(num_experts=4, top_k=2), "lora", max_steps=2)
    settings = kept(settings, export="hf")
    run = only_run(settings)
    result, folder = carry_out(settings, run)
    exported = RunFolder(folder).export
    assert "exported (hf)" in caplog.text
    assert not (exported / "moe_runner.json").exists()
    model, info = AutoModelForSequenceClassification.from_pretrained(
        exported, output_loading_info=True
    )
    assert type(model).__name__ == "MixtralForSequenceClassification"
    assert not any(info.values())
    ready = as_trained(settings, run, folder)
    assert len(AutoTokenizer.from_pretrained(exported)) == len(ready.backbone.processor)
    stored = result["id_metrics"]["validation"]
    loss, accuracy = by_hand(model, ready)
    assert loss == pytest.approx(stored["loss"], rel=1e-5)
    assert by_hand(ready.backbone.model, ready)[1] == accuracy

    execute(run, settings, Store(train.Path(settings.paths.output)))
    assert "exported before" in caplog.text
    again = dataclasses.replace(settings, export="moe")
    execute(run, again, Store(train.Path(settings.paths.output)))
    assert "it was exported in another form; add rerun=true" in caplog.text


def test_a_model_that_is_no_mixture_of_transformers_is_refused_before_training(
    make_settings, only_run, monkeypatch
):
    """The plan knows methods by what they say; here one says what is not so."""
    monkeypatch.setattr(HyperMoE, "not_standard", None)
    monkeypatch.setattr(fit, "make_trainer", None)
    method = HyperMoE(num_experts=4, width=2, embedding_dim=4, layer_dim=2)
    settings = dataclasses.replace(make_settings("llama", method), export="hf")
    run = only_run(settings)
    with pytest.raises(ConfigError, match="something stands beside the experts, which Mixtral"):
        execute(run, settings, Store(train.Path(settings.paths.output)))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=gmoe"], "export=dense: method=gmoe cannot be merged: its experts are different"),
        (["method=hypermoe"], "method=hypermoe cannot be merged: its experts are different FFNs"),
        (["method=emoe_learn"], "emoe_learn cannot be merged: its learned router weighs"),
        (["method=emoe", "method.convert_at=eval"], "method.convert_at=eval ends as moe"),
    ],
)
def test_an_impossible_export_is_refused_before_anything_is_loaded(words, reason, tmp_path):
    done = moe_run(*words, "export=dense", "model=bert_tiny", cwd=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "use export=moe" in done.stderr
    assert not (tmp_path / "outputs" / "runs").exists()


# ------------------------------------------------------------------------ every method, as typed


@pytest.mark.long
def test_every_method_trains_on_the_bundled_backbones(tmp_path):
    done = moe_run(
        "-m", f"method={','.join(METHODS)}", "model=bert_tiny,gpt2_tiny", "task=glue_mini/cola",
        "task.limit=16", "task.eval_limit=8", "task.ood=[]", "trainer.max_steps=2",
        "trainer.batch_size=8", "device=cpu", "threads=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(f.read_text()) for f in tmp_path.glob("outputs/runs/*/result.json")]
    assert {(r["axes"]["method"], r["axes"]["model"]) for r in results} == {
        (method, model) for method in METHODS for model in ("bert_tiny", "gpt2_tiny")
    }
    for result in results:
        name = result["axes"]["method"]
        counts, flops = result["parameters"], result["flops_per_token"]
        assert result["updates"] == 2
        assert math.isfinite(result["id_metrics"]["validation"]["loss"])
        assert counts["trainable"] == counts["total"]  # full fine-tuning
        assert counts["lora"] == 0
        if name not in CONVERTING:
            assert counts["total"] == counts["active_per_token"] == counts["dense"]
            assert flops["converted"] == flops["dense"]
            assert result["routing"] == {"routing/changed": None}
            assert result["converted_layers"] == []
            assert result["clusters"] is None
            continue
        assert counts["active_per_token"] < counts["total"]
        assert (counts["total"] == counts["dense"]) == (name == "emoe")
        assert (flops["converted"] < flops["dense"]) == (ROWS[name].experts == "groups")
        figures = {"entropy", "max_share", "active", "changed"}
        if name in ("hypermoe", "moe_adapter", "moe_share"):
            figures |= {"experts_norm", "beside_norm", "beside_ratio"}
        assert result["routing"].keys() == {f"routing/{figure}" for figure in figures}
        assert result["converted_layers"]
        if ROWS[name].experts == "groups":
            own, random = result["clusters"]["inertia"], result["clusters"]["random_inertia"]
            assert 0 < own < random
        else:
            assert result["clusters"] is None


def test_the_result_has_the_sizes_counted_by_hand(make_settings, only_run):
    method = small("gmoe")  # 4 layers of 4 copies, 2 per token; d_model 16, d_ff 32, router 8
    settings = make_settings("bert", method, max_steps=2)
    result, _ = carry_out(settings, only_run(settings))
    counts, flops = result["parameters"], result["flops_per_token"]
    expert = 2 * 32 * 16 + 32 + 16
    router = 8 * 16 + 8 + 4 * 8 + 1  # projection, its bias, a vector per expert, scale
    assert counts["total"] == counts["dense"] + 4 * (3 * expert + router)
    assert counts["active_per_token"] == counts["dense"] + 4 * (expert + router)
    assert flops["converted"] == flops["dense"] + 4 * 2 * (2 * 32 * 16 + 8 * 16 + 4 * 8)
    assert result["converted_layers"] == [f"encoder:{i}" for i in range(4)]
    assert result["clusters"] is None


def test_the_report_of_many_layers_is_short():
    assert spans(range(60)) == "0-59"  # every layer of a Llama-30B
    assert spans(range(0, 60, 2)) == "0, 2, 4, ..., 58 (30 layers)"
    assert spans([0, 2, 4, 6, 8, 10]) == "0, 2, 4, 6, 8, 10"


@pytest.mark.parametrize("name", a_few(CONVERTING))
def test_the_auxiliary_loss_is_logged_in_training(name, make_settings, only_run, monkeypatch):
    lines = []
    monkeypatch.setattr(ShowProgress, "on_log", lambda *args, logs, **_: lines.append(dict(logs)))
    settings = make_settings("gpt2", small(name), max_steps=11)
    protocol = Protocol(fixed_gate_balance_loss=0.005 if name == "emoe" else 0.0)
    carry_out(settings, only_run(settings, protocol=protocol))
    training = [line for line in lines if "loss" in line]
    assert len(training) == 1
    assert 0 < training[0]["aux/loss"] < training[0]["loss"]
    assert not any("aux/loss" in line for line in lines if line not in training)


@pytest.mark.parametrize("family", ["gpt2", "switch"])
def test_an_evaluation_reports_the_task_s_loss_without_the_auxiliary_one(
    family, make_settings, only_run, tmp_path
):
    name = "moe" if family == "switch" else "gmoe"
    method = dataclasses.replace(small(name, family), balance_loss=50.0)
    settings = make_settings(family, method, eval_batch_size=40)  # all in one batch
    run, resources = only_run(settings), train.find_resources(settings)
    ready = fit.build(run, resources)
    model, spec = ready.backbone.model, ready.data.spec
    data = ready.encode(ready.data.validation["validation"], spec.columns)
    folder = RunFolder(tmp_path)
    progress = ShowProgress("", spec.metrics)
    trainer = fit.make_trainer(run, folder, resources, ready, data, data, progress)
    (batch,) = fit.probe_batches(data, ready.form.collator, run, resources.device)
    with torch.no_grad():
        task = model.eval()(**batch).loss
        assert auxiliary_loss(model) > 1  # there is one, and it is not small
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), task)
        loss, output = trainer.compute_loss(model, dict(batch), return_outputs=True)
        torch.testing.assert_close(loss, output.loss)
    evaluated = trainer.evaluate()["eval_loss"]
    predicted = fit.predict(trainer, data, spec.metrics).loss
    assert trainer.auxiliary == []
    assert evaluated == pytest.approx(predicted, rel=1e-5)
    assert evaluated == pytest.approx(float(task), rel=1e-5)
    (line,) = folder.metrics()
    assert line["loss"] == evaluated
    model.train()
    assert trainer.compute_loss(model, dict(batch)) > 2 * task
    assert len(trainer.auxiliary) == 1


def test_without_an_auxiliary_loss_none_is_logged(make_settings, only_run, monkeypatch):
    lines = []
    monkeypatch.setattr(ShowProgress, "on_log", lambda *args, logs, **_: lines.append(dict(logs)))
    settings = make_settings("gpt2", small("emoe"), max_steps=11)
    carry_out(settings, only_run(settings))
    assert any("loss" in line for line in lines)
    assert not any("aux/loss" in line for line in lines)


@pytest.mark.long
@pytest.mark.parametrize(("name", "family"), [("moe", "bert"), ("hypermoe", "gpt2")])
def test_with_router_noise_killed_and_resumed_equals_never_killed(
    name, family, make_settings, only_run, monkeypatch
):
    settings = kept(make_settings(family, small(name), epochs=2, save_steps=5))
    run = only_run(settings)
    whole, folder = carry_out(settings, run)
    settings = elsewhere(settings)
    cut_short(settings, run, monkeypatch, at=18)  # in the second epoch
    result, again = carry_out(settings, run)
    assert result["resumed_at_update"] == 15
    assert numbers(result) == numbers(whole)
    expected, found = trained_weights(folder), trained_weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[n], found[n]) for n in expected)


@pytest.mark.long
def test_reference_trains_every_method(make_settings, only_run):
    import yaml

    values = yaml.safe_load((train.CONF / "protocol" / "reference.yaml").read_text())
    for name in CONVERTING:
        method: Method = small(name)
        assert ROWS[name].code != "none"
        settings = kept(make_settings("bert", method, "lora", max_steps=2))
        settings = dataclasses.replace(settings, protocol=Protocol(**values))
        run = only_run(settings)
        result, _ = carry_out(settings, run)
        assert result["axes"]["protocol"] == "reference"
        store, resources = Store(train.Path(settings.paths.output)), train.find_resources(settings)
        assert (
            figures_by_set(evaluate_kept(run, settings, store, resources)) == result["ood_metrics"]
        )
