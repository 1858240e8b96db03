"""Decoding: one token reads its experts only, gate vectors are kept, and neither goes stale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from moe_runner import EMoE, MoE, convert, for_inference
from moe_runner.moe.backends import BACKENDS, masked
from moe_runner.moe.experts import Stack
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.one_token import one_token
from moe_runner.moe.routing import forget_gates

E, F, D, K = 6, 5, 8, 3


def stack(gated: bool, biased: bool, dtype: torch.dtype) -> Stack:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Stack(
        keys=draw(E, F, D), values=draw(E, F, D), activation=functional.gelu,
        key_bias=draw(E, F) if biased else None, ups=draw(E, F, D) if gated else None,
        up_bias=draw(E, F) if gated and biased else None,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gated", "biased"), [(False, False), (False, True), (True, True)])
def test_it_is_the_definition(gated, biased, weighted, dtype):
    experts, generator = stack(gated, biased, dtype), torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(1, D, generator=generator, dtype=torch.float64).to(dtype)
        index = torch.randperm(E, generator=generator)[None, :K]
        weights = torch.rand(1, K, generator=generator, dtype=torch.float64).to(dtype)
        weights = weights if weighted else None
        found = one_token(x, index, weights, experts)
        assert found.dtype == dtype
        torch.testing.assert_close(found, masked(x, index, weights, experts))


def test_unselected_experts_are_not_read():
    experts = stack(True, True, torch.float32)
    for tensor in (experts.keys, experts.values, experts.ups, experts.key_bias, experts.up_bias):
        tensor[3:] = torch.nan
    x, index = torch.randn(1, D), torch.tensor([[2, 0]])
    assert one_token(x, index, None, experts).isfinite().all()
    assert not masked(x, index, None, experts).isfinite().all()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


METHODS = [
    EMoE(num_experts=8, top_k=2, layers="all"),
    EMoE(num_experts=8, top_k=2, layers="all", gate_on="up", normalize_gate=True),
    MoE(num_experts=4, top_k=2, layers="all"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_generated_tokens_are_those_of_the_plain_model(method):
    plain = llama()
    convert(plain, method)
    plain.eval()
    fast = for_inference(copy.deepcopy(plain))
    prompt = torch.arange(12)[None] % 50
    options = {"max_new_tokens": 20, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0}
    expected, found = plain.generate(prompt, **options), fast.generate(prompt, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_fast_path_is_taken_for_one_token_in_inference_and_nowhere_else(monkeypatch):
    model = llama()
    convert(model, METHODS[0])
    taken = []
    monkeypatch.setattr(
        "moe_runner.moe.layer.one_token",
        lambda x, *rest: taken.append(len(x)) or one_token(x, *rest),
    )
    token, text = torch.tensor([[3]]), torch.arange(5)[None]
    with torch.no_grad():
        model.eval()(token)
        assert taken == []
        for_inference(model)
        model(text)
        assert taken == []
        model(token)
        assert taken == [1, 1]  # two layers
        model.train()(token)
    model.eval()(token)  # with a gradient
    assert taken == [1, 1]


def test_the_choice_without_a_backward_pass_is_that_of_models_for_inference_alone(monkeypatch):
    model, asked = llama(), []
    convert(model, METHODS[0])
    monkeypatch.setattr("moe_runner.moe.inference.fits", lambda *given: False)  # no kernel here
    monkeypatch.setattr(
        "moe_runner.moe.layer.choose_backend",
        lambda *given, infers: asked.append(infers) or "masked",
    )
    text = torch.arange(5)[None]
    model.eval()(text)
    with torch.no_grad():
        model(text)
        for_inference(model)
        model(text)
    model(text)  # with a gradient
    assert asked == [False] * 4 + [True] * 2 + [False] * 2  # two layers


def test_a_back_end_that_was_asked_for_is_taken_in_inference_too(monkeypatch):
    model = llama()
    convert(model, METHODS[0])
    for layer in model.modules():
        if isinstance(layer, MoEFeedForward):
            layer.backend = "masked"
    taken = []

    def noted(*tensors):
        taken.append(len(tensors[0]))
        return masked(*tensors)

    monkeypatch.setitem(BACKENDS, "masked", noted)
    with torch.no_grad():
        for_inference(model)(torch.tensor([[3]]))
    assert taken == [1, 1]  # two layers


def one_step(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()


CHANGES = {
    "an optimizer's step": one_step,
    "a load": lambda model: model.load_state_dict(
        {name: 2 * t + 0.1 for name, t in model.state_dict().items() if t.is_floating_point()},
        strict=False,
    ),
    "a change in place": lambda model: [
        layer.experts.keys.detach().mul_(-1.0) for layer in layers(model)
    ],
    "a new parameter": lambda model: [
        setattr(layer.experts, "keys", nn.Parameter(-layer.experts.keys.detach()))
        for layer in layers(model)
    ],
    "another dtype": lambda model: model.double(),
}


def layers(model: nn.Module) -> list[MoEFeedForward]:
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("method", METHODS[:2], ids=["gate", "up"])
def test_gate_vectors_follow_the_weights(method, change):
    model = llama()
    convert(model, method)
    for_inference(model)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        kept = [layer.router.kept[1] for layer in layers(model)]
        model(ids)
        assert [
            layer.router.kept[1] is gates for layer, gates in zip(layers(model), kept, strict=True)
        ]
    change(model)
    model.eval()
    fresh = copy.deepcopy(model)
    for layer in layers(fresh):
        layer.router.kept = None
    with torch.no_grad():
        found = model(ids).logits
        assert torch.equal(found, fresh(ids).logits)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("method", METHODS[:2], ids=["gate", "up"])
def test_a_plain_evaluation_sees_weights_that_torch_counts_no_change_of(method):
    model = llama()  # .data of an average of weights; FSDP's shards are the same to torch
    convert(model, method)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        for layer in layers(model):
            for name in ("keys", "ups"):
                getattr(layer.experts, name).data.mul_(-1.0)
        found = model(ids).logits
        assert all(layer.router.kept is None for layer in layers(model))
        for_inference(model)(ids)
        forget_gates(model)
        assert all(layer.router.kept is None for layer in layers(model))
        expected = copy.deepcopy(model)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)


def test_gate_vectors_are_kept_in_inference_only():
    model = llama()
    convert(model, METHODS[0])
    router = layers(model)[0].router
    for_inference(model)(torch.tensor([[1]]))
    assert router.kept is None  # a gradient is wanted
    with torch.no_grad():
        model(torch.tensor([[1]]))
        assert router.kept is not None
        assert router.state_dict() == {}
        model.train()(torch.tensor([[1]]))
    assert router.kept is None
    with torch.inference_mode():
        model.eval()(torch.tensor([[1, 2]]))
