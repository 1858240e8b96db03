"""Switch Transformers on texts that are answered by texts: runs, generation, router losses."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from moe_runner import train
from moe_runner.cli.values import parse_config
from moe_runner.conversion.convert import convert, merge
from moe_runner.conversion.counts import library_experts, moe_layers
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.methods.moe.options import MoE
from moe_runner.methods.moe_adapter.options import MoEAdapter
from moe_runner.methods.moe_share.options import MoEShare
from moe_runner.moe.layer import auxiliary_loss
from moe_runner.options.errors import ConfigError
from moe_runner.options.protocol import Protocol
from moe_runner.options.task import GenerationTask
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training.execute import execute
from tests.reference import naive_selection, naive_switch_balance, naive_z_loss

CONF = Path(__file__).parents[2] / "conf"
METHODS = [Dense(), MoE(), MoEShare(), MoEAdapter(width=8), HyperMoE(width=8, embedding_dim=16)]


@pytest.fixture
def settings_of(tmp_path):
    def build(*overrides: str):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [f"paths.output={tmp_path}", "threads=1", *overrides])
        return parse_config(cfg)

    return build


def carry_out(settings, run):
    store = Store(Path(settings.paths.output))
    return execute(run, settings, store).to_json(), store.folder(run.id)


# Runs


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_switch_learns_to_answer_with_a_digit(method, make_settings, only_run):
    settings = make_settings("switch", method, epochs=6, learning_rate=1e-2)
    run = only_run(settings)
    assert run.form == "text_to_text"
    result, folder = carry_out(settings, run)
    losses = [point["loss"] for point in result["learning_curve"]]
    assert losses[-1] < 0.5 * losses[0]
    assert result["id_metrics"]["validation"]["examples"] == 40
    assert set(result["ood_metrics"]) == {"cola_ood"}
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert len(line["load"]) == (0 if method == Dense() else 4)


def test_what_is_generated_is_scored_with_all_right_answers(settings_of):
    settings = settings_of(
        "model=switch_tiny", "method=hypermoe", "task=squad_mini", "task.limit=32",
        "task.eval_limit=10", "trainer.epochs=1",
    )  # fmt: skip
    (run,) = make_plan(settings).runs
    result, _ = carry_out(settings, run)
    found = result["id_metrics"]["validation"]
    assert 0 <= found["exact_match"] <= found["token_f1"] <= 1
    assert found["primary"] == pytest.approx((found["exact_match"] + found["token_f1"]) / 2)
    assert result["data"] == dict.fromkeys(("train", "validation"), "squad_mini v1 seed 0")


def test_a_model_that_diverged_has_no_score_though_it_writes_answers(settings_of):
    settings = settings_of(
        "model=switch_tiny", "method=dense", "task=glue_mini/sst2", "task.limit=32",
        "task.eval_limit=6", "trainer.max_steps=4", "trainer.learning_rate=1e30",
    )  # fmt: skip
    (run,) = make_plan(settings).runs
    with pytest.raises(FloatingPointError, match="the loss of an evaluation is nan at update"):
        carry_out(settings, run)


def test_summaries_are_searched_with_the_task_s_beams(settings_of, monkeypatch):
    from transformers.generation import GenerationMixin

    seen = []
    original = GenerationMixin.generate

    def generate(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        config = self.generation_config
        seen.append((config.num_beams, config.no_repeat_ngram_size, found.shape[1]))
        return found

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    settings = settings_of(
        "model=switch_tiny", "method=dense", "task=summarisation_mini", "task.limit=16",
        "task.eval_limit=6", "trainer.epochs=1", "task.beams=3", "task.answer_length=9",
        "task.min_length=5",
    )  # fmt: skip
    (run,) = make_plan(settings).runs
    result, _ = carry_out(settings, run)
    assert set(result["id_metrics"]["validation"]) >= {"rouge1", "rouge2", "rougeL"}
    assert len(seen) == 2  # after the epoch, and of the best one
    for beams, ngram, length in seen:
        assert (beams, ngram) == (3, 3)
        assert 1 + 5 <= length <= 1 + 9  # the first token is no answer


@pytest.mark.long
def test_a_mixture_is_one_run_with_the_metrics_of_every_task(settings_of):
    settings = settings_of(
        "model=switch_tiny", "method=dense", "task=glue_multitask_mini", "task.limit=4",
        "task.eval_limit=4", "trainer.epochs=1",
    )  # fmt: skip
    (run,) = make_plan(settings).runs
    result, _ = carry_out(settings, run)
    found = result["id_metrics"]["validation"]
    tasks: dict[str, list[float]] = {}
    for name in result["metrics"]:
        tasks.setdefault(name.partition("/")[0], []).append(found[name])
    assert len(tasks) == 8
    means = [sum(values) / len(values) for values in tasks.values()]
    assert found["primary"] == pytest.approx(sum(means) / 8)


# Plans


def test_the_recipe_follows_the_form(settings_of):
    (text,) = make_plan(settings_of("model=switch_tiny", "task=glue_mini/sst2")).runs
    (head,) = make_plan(settings_of("model=bert_tiny", "task=glue_mini/sst2")).runs
    assert (text.form, text.task.max_length, text.trainer.batch_size) == ("text_to_text", 256, 16)
    assert (head.form, head.task.max_length, head.trainer.batch_size) == ("classification", 128, 32)
    (own,) = make_plan(
        settings_of("model=switch_tiny", "task=glue_mini/sst2", "task.max_length=64")
    ).runs
    assert own.task.max_length == 64


@pytest.mark.parametrize(
    ("task", "rate", "batch", "decay", "epochs"),
    [("glue/cola", 1e-5, 8, 0.1, 10), ("superglue/record", 1e-5, 8, 0.1, 10),
     ("squad", 5e-5, 8, 0.0, 10), ("xsum", 3e-5, 8, 0.1, 10), ("cnn_dailymail", 3e-5, 8, 0.1, 10)],
)  # fmt: skip
def test_the_recipes_of_hypermoe(task, rate, batch, decay, epochs, settings_of, monkeypatch):
    from moe_runner import hub

    monkeypatch.setattr(hub, "reachable", lambda: True)
    (run,) = make_plan(settings_of("model=switch_base_8", "method=hypermoe", f"task={task}")).runs
    found = run.trainer
    assert (found.learning_rate, found.batch_size) == (rate, batch)
    assert (found.weight_decay, found.epochs) == (decay, epochs)
    if isinstance(run.task, GenerationTask) and task != "squad":
        options = run.task
        assert (options.beams, options.min_length, options.no_repeat_ngram) == (6, 10, 3)
        assert (options.max_length, options.target_length, options.answer_length) == (1024, 128, 60)
        assert options.eval_limit == 1600


@pytest.mark.parametrize("task", ["xsum", "squad", "summarisation_mini", "squad_mini"])
@pytest.mark.parametrize("model", ["bert_tiny", "gpt2_tiny", "llama_tiny"])
def test_a_backbone_that_cannot_generate_from_a_text_is_told(task, model, settings_of):
    family = model.partition("_")[0]
    with pytest.raises(ConfigError) as error:
        settings_of(f"model={model}", f"task={task}", "method=dense")
    assert any(
        line.startswith(f"model={model} is of the family {family} and task=")
        and line.endswith("generates text from text; use a model of the family t5 or switch")
        for line in error.value.problems
    )


def test_superglue_without_what_a_classifier_cannot_do(settings_of, monkeypatch):
    from moe_runner import hub

    monkeypatch.setattr(hub, "reachable", lambda: True)
    words = ["model=bert_tiny", "task=superglue", "method=dense"]
    with pytest.raises(ConfigError) as error:
        make_plan(settings_of(*words))
    assert len(error.value.problems) == 4
    plan = make_plan(settings_of(*words, "task.skip_missing=true"))
    assert [run.task_name for run in plan.runs] == ["boolq", "cb", "rte", "wic"]
    assert list(plan.gaps) == ["copa", "multirc", "record", "wsc"]


def test_a_long_source_is_no_problem_where_positions_are_relative(settings_of):
    settings = settings_of("model=switch_tiny", "task=summarisation_mini", "task.max_length=4096")
    assert settings.task.max_length == 4096


# Generation


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_generation_with_a_cache_is_that_without(method, beams, tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")
    convert(model, method)
    if isinstance(method, HyperMoE):
        with torch.no_grad():
            for layer in moe_layers(model):  # as after tuning: the HyperExpert is no longer zero
                layer.beside.hypernet.down.weight.normal_(0, 0.3)
                layer.beside.hypernet.up.weight.normal_(0, 0.3)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams, "do_sample": False}
    cached = model.generate(**inputs, use_cache=True, **options)
    assert torch.equal(cached, model.generate(**inputs, use_cache=False, **options))
    assert cached.shape == (3, 9)
    if beams == 1:  # and each row is what the whole decoder says at every position
        logits = model(**inputs, decoder_input_ids=cached[:, :-1]).logits
        logits[..., model.config.eos_token_id] = -torch.inf
        assert torch.equal(logits.argmax(-1), cached[:, 1:])


# Losses of the routers


def with_losses(model, batch):
    model.train()
    output = model(**batch)
    extra = auxiliary_loss(model)
    assert extra is not None
    return output, extra


def test_the_library_s_routers_have_the_losses_of_converted_ones(tiny_model, tiny_batch):
    batch = tiny_batch("switch")
    dense, moe = tiny_model("switch"), tiny_model("switch")
    convert(dense, Dense())
    convert(moe, MoE())
    (one, loss), (other, same) = with_losses(dense, batch), with_losses(moe, batch)
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, same, rtol=1e-5, atol=1e-9)
    loss.backward()
    same.backward()
    weights = {
        name: p for name, p in dense.named_parameters() if name.endswith("classifier.weight")
    }
    layers = moe_layers(moe)
    assert len(weights) == len(layers) == 4
    for parameter, layer in zip(weights.values(), layers, strict=True):
        torch.testing.assert_close(parameter.grad, layer.router.weight.grad, rtol=1e-4, atol=1e-8)
        assert parameter.grad.abs().sum() > 0


def test_the_losses_are_a_thousandth_of_balance_and_z_of_real_tokens(tiny_model, tiny_batch):
    batch = tiny_batch("switch")
    batch["labels"] = batch["labels"].clone()
    batch["labels"][1, 2:] = -100
    model = tiny_model("switch")
    scores = []
    convert(model, Dense())
    for name, module in model.named_modules():
        if name.endswith("mlp.router"):
            module.register_forward_hook(lambda m, a, out: scores.append(out[2].detach()))
    _, loss = with_losses(model, batch)
    assert model.config.router_aux_loss_coef == model.config.router_z_loss_coef == 0.001
    masks = [batch["attention_mask"]] * 2 + [batch["labels"] != -100] * 2
    expected = 0.0
    for each, mask in zip(scores, masks, strict=True):
        rows = each[mask.bool()]
        balance = naive_switch_balance(rows, naive_selection(rows, 1))
        expected += 0.001 * (balance + naive_z_loss(rows))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-9)


def test_capacity_and_jitter_are_the_protocol_s_until_the_model_is_merged(tiny_model):
    model = tiny_model("switch")
    routers = [m for name, m in model.named_modules() if name.endswith("mlp.router")]
    convert(model, Dense(), protocol=Protocol(sequence_capacity=5, jitter=0.25))
    assert {(r.expert_capacity, r.jitter_noise) for r in routers} == {(5, 0.25)}
    merge(model)
    assert {(r.expert_capacity, r.jitter_noise) for r in routers} == {(64, 0.01)}
    convert(model, Dense())
    assert all(r.expert_capacity > 10**6 and r.jitter_noise == 0 for r in routers)
    assert len(library_experts(model)) == len(routers) == 4


def test_a_copy_of_a_model_records_its_own_losses(tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")
    convert(model, Dense())
    twin = copy.deepcopy(model)
    with_losses(twin, batch)
    assert auxiliary_loss(model) is None


def test_an_encoder_that_generate_calls_knows_its_padding(tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")
    conversion = convert(model, MoE())
    model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=3
    )
    stacks = [site.stack for site in conversion.sites]
    layers = dict(zip(stacks, conversion.layers, strict=True))
    real = int(batch["attention_mask"].sum())
    assert int(layers["encoder"].routing.load(4).sum()) == real
    assert int(layers["decoder"].routing.load(4).sum()) == 3  # one token of each row


def test_settings_of_a_run_are_those_that_are_read_back(make_settings, only_run):
    settings = make_settings("switch", HyperMoE(width=8, embedding_dim=16), epochs=1)
    kept = dataclasses.replace(settings, keep_model="best")
    run = only_run(kept)
    result, _ = carry_out(kept, run)
    from moe_runner.training.evaluate import evaluate_kept

    again = evaluate_kept(run, kept, Store(Path(kept.paths.output)), train.find_resources(kept))
    assert again["cola_ood"].primary == result["ood_metrics"]["cola_ood"]["primary"]
