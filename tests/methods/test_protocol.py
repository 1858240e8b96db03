"""Every option of the protocol, off and on, against what can be computed by hand.

A test says with `proves` which option it is about; the first tests see to it that none is left out.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional

from moe_runner import auxiliary_loss, convert, merge
from moe_runner.conversion.counts import moe_layers
from moe_runner.methods.building import OpenSite
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.layers import emoe_layer
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.emoe_learn.options import EMoELearn
from moe_runner.methods.gmoe.options import GMoE
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.methods.moe.options import MoE
from moe_runner.moe.experts import FFN
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.losses import stack_losses
from moe_runner.options.build import build
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.options.training import Tuning
from moe_runner.registry import METHODS
from moe_runner.runs.identity import identifying
from moe_runner.training.routing import same_noise
from moe_runner.training.tuning import apply_tuning
from tests.reference import (
    naive_capacity,
    naive_cosine_scores,
    naive_load,
    naive_selection,
    naive_squared_cv,
    naive_weighted,
)

CONF = Path(__file__).parents[2] / "conf" / "protocol"
OPTIONS = {f.name: f for f in dataclasses.fields(Protocol) if f.name != "name"}
PROVEN: set[str] = set()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def proves(option: str) -> Callable:
    """Note that a test shows what an option does."""

    def note(test: Callable) -> Callable:
        PROVEN.add(option)
        return test

    return note


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def reference(*options: str) -> Protocol:
    """Switch on some options with the values of conf/protocol/reference.yaml."""
    values = read("reference")
    return Protocol(**{option: values[option] for option in options})


def emoe(**options) -> EMoE:
    return EMoE(**{"num_experts": 8, "top_k": 2, "layers": (1,), **options})


def learn(**options) -> EMoELearn:
    options = {"num_experts": 8, "top_k": 2, "layers": (1,), "router_dim": 8, **options}
    return EMoELearn(**options)


def gmoe(**options) -> GMoE:
    return GMoE(**{"num_experts": 4, "top_k": 2, "layers": (1,), "router_dim": 8, **options})


def hypermoe(**options) -> HyperMoE:
    small = {"width": 3, "embedding_dim": 6, "layer_dim": 2}
    return HyperMoE(**{"num_experts": 4, **small, **options})


COMPARED = {"emoe": emoe, "emoe_learn": learn, "gmoe": gmoe}


def layer_of(model, method, protocol: Protocol | None = None) -> MoEFeedForward:
    """Convert one layer and give it."""
    torch.manual_seed(3)
    convert(model, method, protocol=protocol)
    return moe_layers(model)[0]


# ------------------------------------------------------------------------------ the option files


def test_every_option_of_the_protocol_has_a_test():
    assert OPTIONS.keys() == PROVEN


def test_paper_has_every_option_off_and_reference_every_option_on():
    paper, on = read("paper"), read("reference")
    assert paper.keys() == on.keys() == OPTIONS.keys() | {"name"}
    for name, field in OPTIONS.items():
        if name == "load_threshold_on":  # says what another option acts on; see its comment
            assert paper[name] == on[name] == field.default != field.metadata["neutral"]
            continue
        assert paper[name] == field.default == field.metadata["neutral"], name
        assert on[name] != field.default, name
    problems: list[str] = []
    assert build(Protocol, paper, "protocol", problems) == Protocol()
    assert build(Protocol, on, "protocol", problems) == Protocol(**on)
    assert problems == []


def test_reference_has_the_published_values():
    on = Protocol(**read("reference"))
    assert on.gate_noise == 1.0
    assert on.capacity_factor == 1.5
    assert on.fixed_gate_balance_loss == 0.01 / 2  # of the sum; the code takes the mean of both
    assert EMoELearn().balance_loss == GMoE().balance_loss == 0.01 / 2
    assert on.expert_dropout == 0.1
    assert on.rest_lr_scale == 0.1
    assert on.sequence_capacity == 64
    assert on.jitter == 0.01


# ----------------------------------------------------------------------------------- EMoE's code


@proves("gate_noise")
@pytest.mark.parametrize("name", COMPARED)
def test_gate_noise_is_normal_over_e_and_only_in_training(name, tiny_model):
    x = torch.randn(5, 16)
    for protocol in (Protocol(), reference("gate_noise")):
        layer = layer_of(tiny_model("bert"), COMPARED[name](), protocol).train()
        num_experts = layer.experts.num_experts
        torch.manual_seed(7)
        scores = layer.router(x, layer.experts)
        torch.manual_seed(7)
        noise = torch.randn(5, num_experts) / num_experts
        clean = layer.router.eval()(x, layer.experts).clean
        assert torch.equal(scores.clean, clean)
        on = protocol.gate_noise > 0
        torch.testing.assert_close(scores.noisy, clean + noise if on else clean, rtol=0, atol=1e-6)
        assert torch.equal(layer.router(x, layer.experts).noisy, clean)  # evaluation
        torch.manual_seed(7)  # the selection goes by the noisy scores
        layer.train()(x)
        expected = (clean + noise if on else clean).topk(2).indices
        assert torch.equal(layer.routing.index, expected)


@proves("gate_noise")
def test_llama_has_neither_noise_nor_capacity_nor_loss_nor_dropout(tiny_model):
    everything = Protocol(**read("reference"))
    for method in COMPARED.values():
        layer = layer_of(tiny_model("llama_biased"), method(), everything)
        assert layer.router.gate_noise == 0
        assert layer.capacity.factor is None
        assert layer.experts.pre_dropout == layer.experts.dropout == 0
        own = layer_of(tiny_model("llama_biased"), method())
        assert layer.losses == own.losses
        assert layer.scale == own.scale
        torch.testing.assert_close(layer.experts.output_bias, own.experts.output_bias)


def run_alike(layer: MoEFeedForward, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


@proves("capacity_factor")
@pytest.mark.parametrize("training", [False, True])
def test_capacity_drops_exactly_what_is_over(training, tiny_model):
    on = layer_of(tiny_model("bert"), emoe(), reference("capacity_factor")).train(training)
    off = layer_of(tiny_model("bert"), emoe()).train(training)
    x = torch.randn(16).expand(3, 9, 16)  # 27 equal tokens choose the same two of 8 experts
    full, limited = run_alike(off, x).flatten(0, 1), run_alike(on, x).flatten(0, 1)
    room = 2 * int(1.5 * math.ceil(27 / 8))
    assert room == 12
    bias = on.experts.output_bias
    torch.testing.assert_close(limited[:room], full[:room], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(limited[room:], bias.expand(27 - room, 16), rtol=0, atol=1e-6)
    assert not torch.allclose(full[room], bias, atol=1e-2)


@proves("capacity_factor")
def test_capacity_prefers_sure_tokens_and_first_choices(tiny_model):
    layer = layer_of(tiny_model("bert"), emoe(), reference("capacity_factor"))
    sure = torch.randperm(27).float() + 1  # larger tokens have larger scores: they are surer
    limited = run_alike(layer, sure[:, None] * torch.randn(16).expand(27, 16))
    dropped = (limited - layer.experts.output_bias).abs().amax(1) < 1e-5
    assert sorted(sure[~dropped].tolist()) == [float(s) for s in range(16, 28)]

    torch.manual_seed(0)
    x = torch.randn(40, 16) + 2 * torch.randn(16)
    run_alike(layer, x)
    scores = layer.router(x, layer.experts).noisy
    chosen = naive_selection(scores, 2)
    expected = naive_capacity(scores, chosen, 1.5)
    assert layer.kept(scores, layer.routing.index, x.shape[:-1]).tolist() == expected
    assert any(row == [True, False] for row in expected), "no second choice was dropped"
    each = layer.experts.tensors().activations(x)  # (T, E, F)
    output = torch.stack(
        [
            sum(
                (each[t, e] @ layer.experts.values[e] for e, k in zip(*pair, strict=True) if k),
                torch.zeros(16),
            )
            for t, pair in enumerate(zip(chosen, expected, strict=True))
        ]
    )
    torch.testing.assert_close(
        run_alike(layer, x), output + layer.experts.output_bias, rtol=1e-4, atol=1e-5
    )


@proves("capacity_factor")
@pytest.mark.parametrize("name", COMPARED)
def test_with_capacity_a_prediction_depends_on_its_batch_padding_included(
    name, tiny_model, tiny_batch
):
    batch = tiny_batch("bert")
    batch.pop("labels")
    batch = {key: value.repeat(4, 1) for key, value in batch.items()}
    for factor in (None, 0.25):
        model = tiny_model("bert")
        layer_of(model, COMPARED[name](layers="all"), Protocol(capacity_factor=factor))
        with torch.no_grad():
            together = model(**batch).logits
            alone = torch.cat(
                [model(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(12)]
            )
        difference = (together - alone).abs().max()
        assert difference < 1e-5 if factor is None else difference > 1e-3
    layer = moe_layers(model)[0]
    x = torch.randn(16).expand(12, 9, 16)
    layer.attention_mask = torch.zeros(12, 9).long()
    layer.attention_mask[-1] = 1  # padding comes first and takes the room
    kept = layer.kept(torch.zeros(108, layer.experts.num_experts), layer_index(layer, x), (12, 9))
    room = 2 * int(0.25 * math.ceil(108 / layer.experts.num_experts))
    assert kept[:, 0].sum() == room
    assert kept[:room, 0].all()


def layer_index(layer: MoEFeedForward, x: torch.Tensor) -> torch.Tensor:
    run_alike(layer, x)
    return layer.routing.index


@proves("fixed_gate_balance_loss")
def test_the_loss_of_the_fixed_gate_has_the_value_of_the_equations(tiny_model):
    x = torch.randn(6, 16)
    layer = layer_of(tiny_model("bert"), emoe(), reference("fixed_gate_balance_loss"))
    layer(x)
    scores = torch.stack(  # of the mean keys, one expert at a time
        [x @ layer.experts.keys[e].mean(0) for e in range(8)], 1
    ).detach()
    importance = [scores.softmax(1)[:, e].sum() for e in range(8)]
    load = naive_load(scores, scores, torch.full_like(scores, 1 / 8), 2)
    expected = 0.01 * (naive_squared_cv(importance) + naive_squared_cv(load)) / 2
    torch.testing.assert_close(auxiliary_loss(layer), expected, rtol=1e-4, atol=1e-7)


@proves("fixed_gate_balance_loss")
def test_the_loss_of_the_fixed_gate_reaches_the_hidden_states_only(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    layer_of(model, emoe())
    model(**batch)
    assert auxiliary_loss(model) is None  # off

    model = tiny_model("bert")
    layer_of(model, emoe(), reference("fixed_gate_balance_loss"))  # of layer 1
    model(**batch)
    auxiliary_loss(model).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    below = {"bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1.attention"}
    assert {n for n in moved if not n.startswith(tuple(below))} == set()
    assert any(n.startswith("bert.encoder.layer.1.attention") for n in moved)
    assert any(n.startswith("bert.encoder.layer.0") for n in moved)


@proves("split_output_bias")
@pytest.mark.parametrize(
    ("name", "on", "share"),
    [
        ("emoe", ["split_output_bias"], 1),  # two weights of 1
        ("gmoe", ["split_output_bias"], 1 / 2),  # weights of sum 1
        ("emoe_learn", ["split_output_bias", "scale_by_top_k"], 1 / 2),
        ("emoe_learn", ["split_output_bias"], 1),  # weights of sum 2
        ("emoe", [], 1),
        ("gmoe", [], 1),
        ("emoe_learn", ["scale_by_top_k"], 1),
    ],
)
def test_the_output_bias_is_divided_by_k(name, on, share, tiny_model):
    model = tiny_model("bert")
    bias = model.bert.encoder.layer[1].output.dense.bias.detach().clone()
    layer = layer_of(model, COMPARED[name](), reference(*on))
    if "split_output_bias" in on:
        expected = (bias / 2).expand(layer.experts.num_experts, 16)
        assert torch.equal(layer.experts.output_bias, expected)
    with torch.no_grad():
        layer.experts.values.zero_()
    x = torch.randn(4, 16)
    torch.testing.assert_close(run_alike(layer, x), share * bias.expand(4, 16), rtol=0, atol=1e-6)


@proves("whole_vision_bias")
@pytest.mark.parametrize(("family", "name"), [("vit", "gmoe"), ("vit", "emoe"), ("bert", "gmoe")])
def test_vision_gmoe_copies_the_output_bias_whole(family, name, tiny_model):
    """Only there: with weights of sum 1 it starts as the dense network, language at b / k."""
    x = torch.randn(5, 16)
    for on in (("split_output_bias",), ("split_output_bias", "whole_vision_bias")):
        model = tiny_model(family)
        if family == "vit":
            first, last = model.vit.layers[1].mlp.fc1, model.vit.layers[1].mlp.fc2
        else:
            block = model.bert.encoder.layer[1]
            first, last = block.intermediate.dense, block.output.dense
        with torch.no_grad():
            last.bias.normal_()
            dense, bias = last(functional.gelu(first(x))), last.bias.clone()
        options = {"top_k": 8} if name == "emoe" else {}
        layer = layer_of(model, COMPARED[name](**options), reference(*on))
        missing = bias / 2 if name == "gmoe" and (family, len(on)) != ("vit", 2) else 0
        torch.testing.assert_close(run_alike(layer, x), dense - missing, rtol=1e-4, atol=1e-5)


@proves("split_output_bias")
def test_with_divided_biases_emoe_starts_the_same_and_merges_to_their_mean(tiny_model):
    plain, split = tiny_model("bert"), tiny_model("bert")
    before = copy.deepcopy(plain.state_dict())
    x = torch.randn(5, 16)
    expected = run_alike(layer_of(plain, emoe()), x)
    layer = layer_of(split, emoe(), reference("split_output_bias"))
    torch.testing.assert_close(run_alike(layer, x), expected, rtol=1e-5, atol=1e-6)
    change = torch.randn(8, 16)
    with torch.no_grad():
        layer.experts.output_bias += change
    merge(split)
    name = "bert.encoder.layer.1.output.dense.bias"
    wanted = before[name] + 2 * change.mean(0)
    torch.testing.assert_close(split.state_dict()[name], wanted, rtol=1e-5, atol=1e-5)


def transparent_layer(family: str, protocol: Protocol, backend: str) -> MoEFeedForward:
    """Build a layer whose outputs are the activations of its 64 neurons."""
    ffn = FFN(keys=torch.eye(64), values=torch.eye(64), activation=functional.gelu)
    method = EMoE(num_experts=4, top_k=4, backend=backend)
    site = OpenSite("ffn", family, "encoder", ffn)
    return emoe_layer(site, method, torch.arange(64) // 16, protocol)


@proves("expert_dropout")
@pytest.mark.parametrize("backend", ["masked", "sorted", "grouped_mm"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_dropout_is_before_gelu_for_language_and_after_it_for_vision(family, backend):
    torch.manual_seed(0)
    x = torch.randn(200, 64)
    layer = transparent_layer(family, reference("expert_dropout"), backend)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), functional.gelu(x), rtol=1e-5, atol=1e-6)
        y = layer.train()(x)
    kept = functional.gelu(x) / 0.9 if family == "vit" else functional.gelu(x / 0.9)
    dropped = (y - kept).abs() > 1e-5
    assert y[dropped].abs().max() < 1e-6  # gelu(0) is 0 as well
    # Binomial with p = 0.1 and n = 12,800: five standard deviations. Few gelu(x) are zero.
    assert abs(dropped.float().mean() - 0.1) < 5 * (0.1 * 0.9 / 12_800) ** 0.5
    plain = transparent_layer(family, Protocol(), backend).train()
    torch.testing.assert_close(plain(x), functional.gelu(x), rtol=1e-5, atol=1e-6)


@proves("scale_by_top_k")
def test_emoe_learn_starts_at_the_dense_scale_or_at_its_kth(tiny_model):
    x = torch.randn(6, 16)
    for scale, protocol in ((1, Protocol()), (1 / 8, reference("scale_by_top_k"))):
        model = tiny_model("bert")
        block = model.bert.encoder.layer[1]
        bias = block.output.dense.bias.detach().clone()
        with torch.no_grad():
            dense = block.output.dense(block.intermediate(x))
        layer = layer_of(model, learn(top_k=8), protocol)
        with torch.no_grad():
            layer.router.expert_vectors[:] = layer.router.expert_vectors[0]  # equal scores
        expected = bias + scale * (dense - bias)
        torch.testing.assert_close(run_alike(layer, x), expected, rtol=1e-5, atol=1e-5)


@proves("contiguous_random")
@pytest.mark.parametrize("method", [emoe, learn])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_random_experts_are_shuffled_or_blocks_in_neuron_order(method, family, tiny_model):
    blocks = (torch.arange(32) // 4).tolist()
    found = []
    for seed in (0, 1):
        random = method(clustering="random", cluster_seed=seed)
        layer = layer_of(tiny_model(family), random, reference("contiguous_random"))
        assert layer.experts.expert_of_neuron.tolist() == blocks  # whatever the seed
        layer = layer_of(tiny_model(family), random)
        found.append(layer.experts.expert_of_neuron.tolist())
        assert sorted(found[-1]) == blocks
    assert found[0] != found[1]
    assert blocks not in found
    clustered = layer_of(tiny_model(family), method(), reference("contiguous_random"))
    assert clustered.experts.expert_of_neuron.tolist() != blocks


# --------------------------------------------------------- EMoE's code: what trains, and how fast

HEADS = {"bert": {"classifier.weight", "classifier.bias"}, "gpt2": {"score.weight"}}
TARGETS = {"bert": ("query", "value"), "gpt2": ("c_attn",)}
OUTSIDE = {
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias"},
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
}
BLOCK_1 = {"bert": "bert.encoder.layer.1.", "gpt2": "transformer.h.1."}


def lora(name: str = "lora", **options) -> Tuning:
    return Tuning(
        name=name, learning_rate=1.0, learning_rates=(1.0,), rank=2, alpha=4, dropout=0.0,
        new_modules_lr_scale=0.1, **options,
    )  # fmt: skip


def rates(model, family: str, method, tuning: Tuning, protocol: Protocol) -> dict[str, float]:
    """Tune and give the factor of the learning rate of what trains, LoRA left out."""
    conversion = convert(model, method, protocol=protocol)
    scales = apply_tuning(
        model, tuning, TARGETS[family], head=HEADS[family], conversion=conversion, protocol=protocol
    )
    assert scales.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(scales[name] == 1 for name in scales if ".lora_" in name)
    return {name: scale for name, scale in scales.items() if ".lora_" not in name}


@proves("train_outside_layers")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", ["emoe", "emoe_learn", "gmoe", "moe", "lora_block"])
def test_pooler_and_final_norm_train_too(name, family, tiny_model):
    method = {**COMPARED, "moe": MoE, "lora_block": lambda: None}[name]()
    method, tuning = (method, lora()) if method else (emoe(), lora("lora_block"))
    off, on = (
        rates(tiny_model(family), family, method, tuning, protocol)
        for protocol in (Protocol(), reference("train_outside_layers"))
    )
    extra = OUTSIDE[family] if name != "moe" else set()  # HyperMoE's code has no such thing
    assert on.keys() - off.keys() == extra
    assert off.keys() <= on.keys()
    assert {on[n] for n in extra} <= {1.0}  # rest_lr_scale is an option of its own


@proves("train_gmoe_block")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", COMPARED)
def test_gmoe_trains_the_whole_block(name, family, tiny_model):
    off, on = (
        rates(model := tiny_model(family), family, COMPARED[name](), lora(), protocol)
        for protocol in (Protocol(), reference("train_gmoe_block"))
    )
    block = {n for n, _ in model.named_parameters() if n.startswith(BLOCK_1[family])}
    block = {n for n in block if ".lora_" not in n}
    assert len(block) > 10
    new = {n for n in off if n not in HEADS[family]}
    assert on.keys() == HEADS[family] | new | (block if name == "gmoe" else set())
    assert off.keys() == HEADS[family] | new
    assert all(on[n] == (0.1 if n in new else 1.0) for n in on)  # experts and router: a tenth


@proves("rest_lr_scale")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_all_but_lora_and_classifier_learn_at_a_tenth(family, tiny_model):
    shared = ("train_outside_layers", "train_gmoe_block")
    off, on = (
        rates(tiny_model(family), family, gmoe(), lora(), reference(*shared, *more))
        for more in ((), ("rest_lr_scale",))
    )
    assert off.keys() == on.keys() > OUTSIDE[family]
    assert {n for n, scale in on.items() if scale == 1} == HEADS[family]
    assert {scale for n, scale in on.items() if n not in HEADS[family]} == {0.1}
    pretrained = {n for n in off if "mlp" not in n and "intermediate" not in n}
    assert {off[n] for n in pretrained} == {1.0}


def test_llama_trains_nothing_more_under_reference(tiny_model):
    found = []
    for protocol in (Protocol(), Protocol(**read("reference"))):
        model = tiny_model("llama")
        conversion = convert(model, gmoe(), protocol=protocol)
        targets, head = ("q_proj", "v_proj"), {"score.weight"}
        found.append(
            apply_tuning(
                model, lora(), targets, head=head, conversion=conversion, protocol=protocol
            )
        )
    assert found[0] == found[1]


# ------------------------------------------------------------- EMoE's code: one expert, and losses


def scores_by_hand(layer: MoEFeedForward, x: torch.Tensor) -> torch.Tensor:
    router = layer.router
    return naive_cosine_scores(
        x,
        router.projection.weight,
        router.projection.bias,
        router.expert_vectors,
        router.log_scale.exp().squeeze(),
    )


@proves("one_expert_weight")
@pytest.mark.parametrize("whole", [(), ("split_output_bias",)])
@pytest.mark.parametrize("name", ["emoe_learn", "gmoe"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_one_expert_has_weight_one_or_its_probability_among_all(top_k, name, whole, tiny_model):
    x = torch.randn(6, 16)
    for on in ((), ("one_expert_weight",)):
        layer = layer_of(tiny_model("bert"), COMPARED[name](top_k=top_k), reference(*on, *whole))
        own = layer.experts
        with torch.no_grad():  # copies that are alike would leave the router without gradient
            own.values.add_(0.2 * torch.randn_like(own.values))
        ffns = [
            {"keys": own.keys[e], "values": own.values[e], "key_bias": own.key_bias[e]}
            for e in range(own.num_experts)
        ]
        if own.output_bias.ndim == 2:
            ffns = [{**f, "output_bias": b} for f, b in zip(ffns, own.output_bias, strict=True)]
        weighting = "probability" if on and top_k == 1 else "softmax"
        scores = scores_by_hand(layer, x)
        expected = naive_weighted(x, ffns, scores, top_k, weighting, functional.gelu) * layer.scale
        if own.output_bias.ndim == 1:
            expected = expected + own.output_bias
        found = layer(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        vectors = layer.router.expert_vectors
        gradients = [
            torch.autograd.grad((y**2).sum(), vectors, retain_graph=True)[0]
            for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
        assert gradients[0].abs().max() > 1e-5


@proves("one_expert_weight")
def test_gmoe_of_eight_with_one_expert_starts_at_a_seventh_of_the_dense_layer(tiny_model):
    """0.147 of it at N = 8 in the authors' code (PROTOCOL, III item 1)."""
    model = tiny_model("bert")
    block = model.bert.encoder.layer[1]
    x = torch.randn(500, 16)
    with torch.no_grad():
        dense = block.output.dense(block.intermediate(x))
    options = {"num_experts": 8, "top_k": 1, "router_dim": 256}
    shares = []
    for on in ((), ("one_expert_weight",)):
        layer = layer_of(tiny_model("bert"), gmoe(**options), reference(*on))
        ratio = run_alike(layer, x) / dense
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
        shares.append(ratio[:, 0].mean().item())
    assert shares[0] == pytest.approx(1.0, abs=1e-5)
    assert 1 / 8 < shares[1] < 0.2


@proves("normalize_token")
@pytest.mark.parametrize("gate", [False, True])
def test_a_normalized_gate_normalizes_the_token_too(gate, tiny_model):
    """Scores of long tokens then lie as near to each other as the noise is large."""
    x = 30 * torch.randn(200, 16)
    shares = []
    for on in (("gate_noise",), ("gate_noise", "normalize_token")):
        layer = layer_of(tiny_model("bert"), emoe(normalize_gate=gate), reference(*on)).train()
        gates = [own.mean(0) for own in layer.experts.keys.detach()]
        expected = torch.tensor(
            [
                [
                    float(token @ g)
                    / (float(g.norm()) if gate else 1.0)
                    / (float(token.norm()) if gate and on[1:] else 1.0)
                    for g in gates
                ]
                for token in x
            ]
        )
        scores = layer.router(x, layer.experts)
        torch.testing.assert_close(scores.clean, expected, rtol=1e-4, atol=1e-5)
        best = expected.topk(2).indices
        assert torch.equal(layer.eval().router(x, layer.experts).noisy.topk(2).indices, best)
        layer.train()(x)
        shares.append((layer.routing.index == best).float().mean().item())
    assert shares[0] > 0.95  # the noise hardly matters
    assert shares[1] < 0.9 if gate else shares[1] == pytest.approx(shares[0], abs=0.05)


@proves("load_threshold")
@proves("load_threshold_on")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", COMPARED)
def test_the_load_of_emoe_s_code_compares_probabilities_with_scores(name, training, tiny_model):
    x = torch.randn(6, 16)
    shared = ("gate_noise", "fixed_gate_balance_loss")
    values = {}
    for on in ((), ("load_threshold",), ("load_threshold", "hypermoe")):
        protocol = reference(*shared, *on[:1])
        if on[1:]:
            protocol = dataclasses.replace(protocol, load_threshold_on="hypermoe")
        layer = layer_of(tiny_model("bert"), COMPARED[name](), protocol).train(training)
        num_experts = layer.experts.num_experts
        torch.manual_seed(9)
        layer(x)
        found = auxiliary_loss(layer)
        if name == "emoe":
            clean = torch.stack([x @ own.mean(0) for own in layer.experts.keys], 1)
        else:
            clean = scores_by_hand(layer, x)
        torch.manual_seed(9)
        noise = torch.randn(6, num_experts) / num_experts if training else 0
        noisy = clean + noise
        importance = [clean.softmax(1)[:, e].sum() for e in range(num_experts)]
        if on == ("load_threshold",):
            load = probable_load(clean, noisy, 2)
        else:
            load = naive_load(clean, noisy, torch.full_like(clean, 1 / num_experts), 2)
        expected = 0.01 * (naive_squared_cv(importance) + naive_squared_cv(load)) / 2
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        values[on] = float(found.detach())
        if name != "emoe":
            vectors = layer.router.expert_vectors
            gradients = [torch.autograd.grad(loss, vectors)[0] for loss in (found, expected)]
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
            assert gradients[0].abs().max() > 1e-5
    published, mixed, as_before = values.values()
    assert as_before == published
    assert abs(mixed - published) > 0.02 * published


def probable_load(clean, noisy, top_k: int) -> list[torch.Tensor]:
    """Compare the probability of each expert with the k-th largest score, as Tutel does."""
    num_experts = clean.shape[1]
    loads = [torch.zeros(()) for _ in range(num_experts)]
    for t in range(len(clean)):
        threshold = noisy[t].sort().values[-top_k]
        everyone = sum(torch.exp(score) for score in clean[t])
        for i in range(num_experts):
            z = (torch.exp(clean[t, i]) / everyone - threshold) * num_experts
            loads[i] = loads[i] + 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return loads


# ------------------------------------------------------------------------------- HyperMoE's code


@proves("hypernet_per_stack")
@pytest.mark.parametrize(("family", "stacks"), [("switch", 2), ("t5", 2), ("bert", 1), ("gpt2", 1)])
def test_encoder_and_decoder_share_a_hypernetwork_or_have_their_own(family, stacks, tiny_model):
    for protocol, count in ((Protocol(), 1), (reference("hypernet_per_stack"), stacks)):
        model = tiny_model(family)
        method = hypermoe(num_experts=None) if family == "switch" else hypermoe()
        conversion = convert(model, method, protocol=protocol)
        groups: dict[int, list[tuple[str, int]]] = {}
        for site, layer in zip(conversion.sites, conversion.layers, strict=True):
            own = groups.setdefault(id(layer.beside.hypernet), [])
            own.append((site.stack, layer.beside.layer))
        assert len(groups) == count
        for layers in groups.values():
            assert [index for _, index in layers] == list(range(len(layers)))
            if count == 2:
                assert len({stack for stack, _ in layers}) == 1
        hypernets = {
            id(layer.beside.hypernet): layer.beside.hypernet for layer in moe_layers(model)
        }
        for key, hypernet in hypernets.items():
            assert len(hypernet.layers.weight) == len(groups[key])


def long_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 60, (3, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    decoder_ids = torch.randint(2, 60, (3, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}


@proves("sequence_capacity")
@proves("jitter")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("capacity", [2, 4, 64])
def test_a_switch_with_capacity_and_jitter_is_the_library_s(capacity, training, tiny_model):
    library, batch = tiny_model("switch").train(training), long_batch()
    overflows = []
    for module in library.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = capacity
            module.register_forward_hook(lambda m, a, out: overflows.append(int(out[0].sum())))
    assert library.config.router_jitter_noise == 0.01
    model = tiny_model("switch").train(training)
    protocol = Protocol(sequence_capacity=capacity, jitter=0.01)
    convert(model, MoE(), protocol=protocol)
    unlimited = tiny_model("switch").train(training)
    convert(unlimited, MoE())
    found = []
    for each in (library, model, unlimited):
        torch.manual_seed(11)
        with torch.no_grad():
            found.append(each(**batch).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    if capacity == 64:  # no sequence is that long
        assert sum(overflows) == 2 * 3 * (24 + 12)
    same = torch.allclose(found[2], found[0], rtol=1e-4, atol=1e-5)
    assert same == (capacity == 64 and not training)


def all_to_one(model, method, protocol: Protocol) -> MoEFeedForward:
    """Convert a Switch whose tokens all choose the first expert of the first sparse layer."""
    layer = layer_of(model, method, protocol)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0, 0] = 1.0
    return layer.eval()


@proves("dropped_tokens")
@pytest.mark.parametrize("name", ["moe", "hypermoe"])
def test_a_dropped_token_gives_nothing_or_its_weighted_input_and_keeps_its_hyperexpert(
    name, tiny_model
):
    x = torch.randn(2, 9, 16)
    x[..., 0] = x[..., 0].abs() + 0.1
    probability = 1 / (1 + 3 * torch.exp(-x[..., :1]))
    for dropped in ("zero", "input"):
        method = MoE() if name == "moe" else hypermoe(num_experts=None)
        protocol = Protocol(sequence_capacity=4, dropped_tokens=dropped)
        layer = all_to_one(tiny_model("switch"), method, protocol)
        with torch.no_grad():
            if name == "hypermoe":  # large enough to be seen
                for parameter in layer.beside.hypernet.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
                beside = layer.beside(x.flatten(0, 1), layer_index(layer, x)).view_as(x)
                assert beside.abs().mean() > 0.01
            else:
                beside = torch.zeros_like(x)
            expert = layer.experts
            hidden = torch.relu(x @ expert.keys[0].T) @ expert.values[0]
            over = probability * x if dropped == "input" else torch.zeros_like(x)
            main = torch.cat([(probability * hidden)[:, :4], over[:, 4:]], 1)
            torch.testing.assert_close(layer(x), main + beside, rtol=1e-4, atol=1e-5)


@proves("jitter")
def test_jitter_multiplies_what_router_experts_and_hyperexpert_see_in_training(tiny_model):
    layer = layer_of(tiny_model("switch"), hypermoe(num_experts=None), reference("jitter"))
    still = layer_of(tiny_model("switch"), hypermoe(num_experts=None))
    with torch.no_grad():
        for one, other in zip(layer.parameters(), still.parameters(), strict=True):
            one.add_(0.1 * torch.randn_like(one))
            other.copy_(one)
    x = torch.randn(2, 9, 16)
    before = x.clone()
    torch.manual_seed(5)
    factor = torch.empty(2, 9, 16).uniform_(0.99, 1.01)
    torch.manual_seed(5)
    seen = {}
    layer.router.register_forward_pre_hook(lambda m, args: seen.update(router=args[0]))
    layer.beside.register_forward_pre_hook(lambda m, args: seen.update(beside=args[0]))
    with torch.no_grad():
        y = layer.train()(x)
        torch.testing.assert_close(y, still.train()(x * factor), rtol=1e-5, atol=1e-6)
        for part in seen.values():
            torch.testing.assert_close(part, (x * factor).flatten(0, 1), rtol=1e-6, atol=1e-7)
        assert torch.equal(x, before)  # the residual has no noise
        torch.testing.assert_close(layer.eval()(x), still.eval()(x), rtol=1e-6, atol=1e-7)
        assert not torch.allclose(y, still(x), atol=1e-5)


@proves("straight_through")
def test_with_one_expert_the_router_learns_from_the_task_or_from_the_load_alone(
    tiny_model, tiny_batch
):
    for protocol, learns in ((Protocol(), True), (reference("straight_through"), False)):
        model = tiny_model("gpt2")
        torch.manual_seed(3)
        convert(model, MoE(num_experts=4), protocol=protocol)
        with torch.no_grad():
            for layer in moe_layers(model):
                layer.router.gate.copy_(torch.randn_like(layer.router.gate))
                layer.experts.values.add_(0.2 * torch.randn_like(layer.experts.values))
        model(**tiny_batch("gpt2")).loss.backward()
        largest = max(layer.router.gate.grad.abs().max() for layer in moe_layers(model))
        assert largest > 1e-4 if learns else largest < 1e-7
        model.zero_grad()
        model(**tiny_batch("gpt2"))
        auxiliary_loss(model).backward()
        assert all(layer.router.gate.grad.abs().max() > 1e-7 for layer in moe_layers(model))


@proves("load_threshold")
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_load_is_the_published_one_or_compares_scores_with_probabilities(top_k, tiny_model):
    x = torch.randn(6, 16)
    values = []
    for protocol in (Protocol(), reference("load_threshold")):
        layer = layer_of(tiny_model("gpt2"), MoE(num_experts=4, top_k=top_k), protocol).train()
        with torch.no_grad():
            layer.router.gate.copy_(0.3 * torch.randn(4, 16))
        torch.manual_seed(9)
        layer(x)
        found = auxiliary_loss(layer)
        torch.manual_seed(9)
        noise = torch.randn(6, 4)
        clean = (x @ layer.router.gate.T).detach()
        std = torch.log(1 + torch.exp(x @ layer.router.noise.T)).detach() + 0.01
        noisy = clean + noise * std
        chosen = naive_selection(noisy, top_k)
        importance = [torch.zeros(()) for _ in range(4)]
        for row, own in zip(noisy, chosen, strict=True):
            for e in own:
                importance[e] = importance[e] + row[e].exp() / sum(row[i].exp() for i in own)
        if protocol.load_threshold == "scores":
            load = naive_load(clean, noisy, std, top_k)
        else:
            load = mixed_up_load(clean, noisy, std, top_k)
        expected = 0.01 * (naive_squared_cv(importance) + naive_squared_cv(load))
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-7)
        values.append(float(found.detach()))
    assert abs(values[0] - values[1]) > 1e-5  # 50 times the tolerance


def mixed_up_load(clean, noisy, std, top_k: int) -> list[torch.Tensor]:
    """Estimate the load with the k-th and the next largest probability as thresholds of scores."""
    loads = [torch.zeros(()) for _ in range(clean.shape[1])]
    for t in range(len(clean)):
        ranked = sorted(noisy[t].softmax(0).tolist(), reverse=True)
        for i in range(clean.shape[1]):
            inside, outside = ranked[top_k], ranked[top_k - 1]
            threshold = inside if float(noisy[t, i]) > inside else outside
            z = (clean[t, i] - threshold) / std[t, i]
            loads[i] = loads[i] + 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return loads


def naive_parameters(hyper_expert) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in hyper_expert.named_parameters()}


def sum_z(hyper_expert) -> float:
    """Compute sum |z| where expert 0 is selected, from the equations."""
    p = naive_parameters(hyper_expert)
    s = p["embeddings.weight"][1:].sum(0)
    hidden = torch.relu(p["first.weight"] @ s + p["first.bias"])
    q = p["second.weight"] @ hidden + p["second.bias"]
    joined = torch.cat([q, p["hypernet.layers.weight"][hyper_expert.layer]])
    z = torch.relu(p["hypernet.hidden.weight"] @ joined + p["hypernet.hidden.bias"])
    return float(z.abs().sum())


@proves("hypernet_start")
@pytest.mark.parametrize("family", ["gpt2", "bert", "switch"])
def test_the_hypernetwork_starts_small_or_as_in_the_authors_code(family, tiny_model):
    """At the sizes of HyperMoE's scripts: sum |z| is 22.8 or 0.08 (PROTOCOL, III item 3)."""
    own = {"num_experts": None} if family == "switch" else {"num_experts": 8}
    found = {}
    for name, protocol in (("paper", Protocol()), ("authors", reference("hypernet_start"))):
        torch.manual_seed(3)
        model = tiny_model(family)
        convert(model, HyperMoE(**own), protocol=protocol)
        found[name] = moe_layers(model)[0].beside
    paper, authors = found["paper"], found["authors"]
    dense = family != "switch"
    for part, biases in (("down", "down_bias"), ("up", "up_bias")):
        fan = 16 if part == "down" else 64  # inputs of the generated matrix
        for layer, bound_of_bias in ((paper, 3 / (128 * fan)), (authors, 3 / 128)):
            linear = getattr(layer.hypernet, part)
            of_bias = getattr(layer.hypernet, biases)
            assert not linear.bias.any()
            assert not of_bias.bias.any()
            if layer is authors and dense:
                assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert of_bias.weight.std().item() == pytest.approx(0.02, rel=0.1)
            else:
                largest = linear.weight.abs().max().item()
                assert largest == pytest.approx(1e-3 * math.sqrt(3 / (128 * fan)), rel=0.01)
                largest = of_bias.weight.abs().max().item()
                assert largest == pytest.approx(1e-3 * math.sqrt(bound_of_bias), rel=0.02)
    linears = (authors.first, authors.second, authors.hypernet.hidden)
    for linear in linears:
        assert (linear.weight.std().item() == pytest.approx(0.02, rel=0.05)) == dense
        assert bool(linear.bias.any()) != dense
    tables = (authors.embeddings.weight, authors.hypernet.layers.weight)
    for table in tables:
        assert table.std().item() == pytest.approx(0.02 if dense else 1.0, rel=0.4)
    assert 10 < sum_z(paper) < 40
    if dense:
        assert 0.04 < sum_z(authors) < 0.16
        assert authors.lr_scale > 0.85 > 0.1 > paper.lr_scale  # nothing to slow down there
    else:
        assert 10 < sum_z(authors) < 40


def switch_batch(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    batch = long_batch()
    return {**batch, "labels": batch["decoder_input_ids"].roll(-1, 1), **more}


@proves("switch_losses")
@pytest.mark.parametrize(
    "method", [MoE(), hypermoe(num_experts=None), Dense()], ids=lambda m: m.name
)
def test_router_losses_per_stack_are_the_library_s(method, tiny_model):
    """transformers adds one loss per stack to the task's if it is asked for the routers' output.

    Without capacity: version 5 books a dropped choice on its expert, 4.30.2 did on expert 0.
    """
    library, batch = tiny_model("switch"), switch_batch()
    assert library.config.expert_capacity == 64  # more than a sequence has
    plain = library(**batch).loss
    expected = library(**batch, output_router_logits=True).loss - plain
    library.zero_grad()
    expected.backward()
    name = "encoder.block.1.layer.1.mlp.router.classifier.weight"
    gradient = library.get_parameter(name).grad
    values = []
    for on in (("switch_losses",), ()):
        model = tiny_model("switch")
        torch.manual_seed(3)
        convert(model, method, protocol=reference(*on))
        model(**batch)
        extra = auxiliary_loss(model)
        values.append(float(extra.detach()))
        if on:
            torch.testing.assert_close(extra, expected, rtol=1e-3, atol=1e-6)
            extra.backward()
            router = model.encoder.block[1].layer[1].mlp.router
            found = getattr(router, "weight", None)
            found = router.classifier.weight if found is None else found
            torch.testing.assert_close(found.grad, gradient, rtol=1e-3, atol=2e-6)
    assert values[1] > 1.5 * values[0]  # two sparse layers in each stack: each has its own


@proves("switch_losses")
def test_dropped_choices_count_for_expert_0_and_padding_counts(tiny_model):
    model, batch = tiny_model("switch"), switch_batch()
    protocol = dataclasses.replace(reference("switch_losses"), sequence_capacity=2)
    convert(model, MoE(), protocol=protocol)
    routers: dict[int, torch.Tensor] = {}
    layers = [layer for layer in moe_layers(model.encoder)]
    for i, layer in enumerate(layers):
        layer.router.register_forward_hook(lambda m, a, out, i=i: routers.update({i: out.clean}))
    model(**batch)
    num_experts, length = 4, 24
    total = z = 0.0
    for row in range(3):
        share, probability = [0.0] * num_experts, [0.0] * num_experts
        for i in range(len(layers)):
            room = [2] * num_experts
            for token in range(length):  # padding, too: it has no mask here
                scores = routers[i][row * length + token].detach()
                best = int(scores.argmax())
                booked = best if room[best] > 0 else 0
                room[best] -= 1
                share[booked] += 1 / (length * len(layers))
                for e in range(num_experts):
                    probability[e] += float(scores.softmax(0)[e]) / (length * len(layers))
                z += float(torch.logsumexp(scores, 0)) ** 2 / (3 * length * len(layers))
        total += num_experts * sum(s * p for s, p in zip(share, probability, strict=True)) / 3
    joint = [layer.routing.joint for layer in layers]
    losses = stack_losses([scores for scores, _ in joint], [chosen for _, chosen in joint])
    assert float(losses["switch_balance"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(losses["z"].detach()) == pytest.approx(z, rel=1e-4)


@proves("jitter_in_evaluation")
@pytest.mark.parametrize(
    "method", [MoE(), hypermoe(num_experts=None), Dense()], ids=lambda m: m.name
)
def test_jitter_is_in_evaluation_too_and_the_same_in_converted_and_kept_layers(method, tiny_model):
    batch = long_batch()

    def logits(protocol: Protocol, training: bool, seed: int, how=method) -> torch.Tensor:
        model = tiny_model("switch")
        torch.manual_seed(3)
        convert(model, how, protocol=protocol)
        torch.manual_seed(seed)
        with torch.no_grad():
            return model.train(training)(**batch).logits

    off, on = reference("jitter"), reference("jitter", "jitter_in_evaluation")
    assert torch.equal(logits(off, False, 1), logits(off, False, 2))
    assert not torch.allclose(logits(on, False, 1), logits(on, False, 2), atol=1e-5)
    # without dropout, evaluation with noise is the training pass
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(logits(on, False, 1), logits(off, True, 1), **near)
    if method.name == "moe":
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(logits(on, False, 1), logits(on, False, 1, Dense()), **near)


@proves("jitter_in_evaluation")
def test_the_noise_of_evaluations_is_the_same_each_time_and_leaves_training_alone(tiny_model):
    model, batch = tiny_model("switch"), long_batch()
    convert(model, MoE(), protocol=reference("jitter", "jitter_in_evaluation"))
    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        with same_noise(model, seed=5), torch.no_grad():
            found.append(model(**batch).logits)
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), state)
    quiet = tiny_model("switch")
    convert(quiet, MoE())
    with same_noise(quiet):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)  # nothing is held back without noise


@proves("residual_dropout")
@pytest.mark.parametrize(
    "protocol", [Protocol(), reference("residual_dropout")], ids=lambda p: p.residual_dropout
)
@pytest.mark.parametrize(
    "method",
    [hypermoe(), MoE(num_experts=4), emoe(layers="all"), gmoe(layers="all")],
    ids=lambda m: m.name,
)
def test_dropout_falls_on_the_layer_s_output_on_the_experts_alone_or_on_nothing(
    method, protocol, tiny_model
):
    model = tiny_model("gpt2", dropout=0.5)
    layer = layer_of(model, method, protocol)
    if layer.beside is not None:
        with torch.no_grad():
            layer.beside.hypernet.up_bias.bias.fill_(2.0)
    block = model.transformer.h[0 if layer is model.transformer.h[0].mlp.c_fc else 1]
    x = torch.randn(40, 16)
    with torch.no_grad():
        torch.manual_seed(5)
        y = block.mlp.train()(x)
        index = layer.routing.index
        alone = torch.zeros(()) if layer.beside is None else layer.beside(x, index)
        layer.output_dropout, beside, layer.beside = 0.0, layer.beside, None
        torch.manual_seed(5)
        experts = layer(x)  # the same noise of the router
        layer.beside = beside
    of_emoe = method.name in ("emoe", "gmoe")
    if protocol.residual_dropout == "output":
        whole = (experts + alone) * 2  # what is kept is scaled by 1 / (1 - p)
        dropped = y == 0
        torch.testing.assert_close(y[~dropped], whole[~dropped], rtol=1e-4, atol=1e-5)
    elif of_emoe:
        dropped = torch.zeros_like(y, dtype=torch.bool)
        torch.testing.assert_close(y, experts, rtol=1e-4, atol=1e-5)
    else:
        dropped = (y - alone).abs() < 1e-6
        expected = torch.where(dropped, alone.expand_as(y), 2 * experts + alone)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    if not (of_emoe and protocol.residual_dropout == "experts"):
        assert 0.35 < dropped.float().mean() < 0.65
    with torch.no_grad():
        torch.testing.assert_close(block.mlp.eval()(x), layer.eval()(x))


@proves("residual_dropout")
def test_merging_gives_the_block_its_dropout_back(tiny_model):
    model = tiny_model("gpt2", dropout=0.5)
    layer_of(model, emoe(), reference("residual_dropout"))
    found = [block.mlp.dropout.p for block in model.transformer.h]
    assert found == [0.5, 0.0, 0.5, 0.5]  # layer 1 is converted
    merge(model)
    assert [block.mlp.dropout.p for block in model.transformer.h] == [0.5] * 4
    model = tiny_model("bert", dropout=0.5)  # no code of the authors has it elsewhere there
    layer_of(model, emoe(), reference("residual_dropout"))
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}


@pytest.mark.parametrize(
    ("method", "model", "acting"),
    [
        ("hypermoe", "bert_tiny", {"hypernet_start"}),
        ("hypermoe", "gpt2_tiny", {"hypernet_start", "residual_dropout"}),
        ("moe", "gpt2_tiny", {"residual_dropout"}),
        ("emoe", "gpt2_tiny", {"residual_dropout", "load_threshold_on"}),
        ("emoe", "llama_tiny", set()),
        ("emoe normalize_gate=true", "llama_tiny", set()),
        ("emoe normalize_gate=true", "bert_tiny", {"load_threshold_on", "normalize_token"}),
        ("dense", "gpt2_tiny", set()),
        ("emoe", "bert_tiny", {"load_threshold_on"}),
        ("gmoe", "bert_tiny", {"load_threshold_on"}),
        ("gmoe top_k=1", "bert_tiny", {"load_threshold_on", "one_expert_weight"}),
        ("emoe_learn top_k=1", "bert_tiny", {"load_threshold_on", "one_expert_weight"}),
        ("gmoe top_k=1", "llama_tiny", set()),
        ("gmoe", "vit_tiny", {"load_threshold_on", "whole_vision_bias"}),
        ("gmoe top_k=1", "vit_tiny", {"load_threshold_on", "one_expert_weight"}),
        ("emoe", "vit_tiny", {"load_threshold_on"}),
        ("dense", "switch_tiny", {"switch_losses", "jitter_in_evaluation"}),
        (
            "hypermoe",
            "switch_tiny",
            {"hypernet_start", "switch_losses", "jitter_in_evaluation"},
        ),
    ],
)
def test_later_options_are_in_the_id_where_they_act_only(method, model, acting):
    tree = yaml.safe_load((CONF.parent / "model" / f"{model}.yaml").read_text())
    problems: list[str] = []
    options = build(Model, tree, "model", problems)
    assert problems == []
    name, *words = method.split()
    given = yaml.safe_load("{" + ", ".join(words).replace("=", ": ") + "}")
    found = METHODS[name](**given).later_protocol(options)
    assert found == acting
    limited = Protocol(**read("reference")).limited_to(found)
    on = {f.name for f in identifying(limited)} & Protocol.LATER
    assert on == acting
    off = Protocol(**read("paper")).limited_to(found)
    assert {f.name for f in identifying(off)} == {"name"}
    everything = Protocol(**read("reference"))
    others = OPTIONS.keys() - Protocol.LATER
    assert all(getattr(limited, n) == getattr(everything, n) for n in others)
