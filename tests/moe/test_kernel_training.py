"""The back end `kernel` in training: outputs and gradients against the definition in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from moe_runner import EMoE, MoE, convert, from_pretrained, save_pretrained
from moe_runner.kernels import building
from moe_runner.moe import kernel_experts
from moe_runner.moe.backends import masked
from moe_runner.moe.experts import Stack
from moe_runner.moe.kernel_training import by_kernel
from moe_runner.moe.layer import MoEFeedForward
from tests.moe.test_kernel import draw, library, stack  # noqa: F401


def moe_layers(model):
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]


NAMES = ("keys", "values", "key_bias", "ups", "up_bias")


@pytest.fixture
def built(library, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kernel_experts, "load", lambda: True)


def gradients(backend, x, index, weights, experts, upstream, dtype=torch.float32, trained=NAMES):
    """Go forward and backward; give the output and the gradient of each tensor by name."""
    given = {"x": x, "weights": weights, **{name: getattr(experts, name) for name in NAMES}}
    leaves = {
        name: tensor.to(dtype, copy=True).requires_grad_(name not in NAMES or name in trained)
        for name, tensor in given.items()
        if tensor is not None
    }
    used = Stack(
        activation=experts.activation, dropout=experts.dropout, pre_dropout=experts.pre_dropout,
        **{name: leaves[name] for name in NAMES if name in leaves},
    )  # fmt: skip
    output = backend(leaves["x"], index, leaves.get("weights"), used)
    output.backward(upstream.to(dtype))
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def compare(x, index, weights, experts, trained=NAMES):
    upstream = draw(20)(*x.shape)
    found = gradients(by_kernel, x, index, weights, experts, upstream, trained=trained)
    expected = gradients(
        masked, x, index, weights, experts, upstream, torch.float64, trained=trained
    )
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        if want is None:
            assert found[name] is None, name
            continue
        largest = want.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            found[name].double() / largest, want / largest, rtol=0, atol=1e-5, msg=name
        )


@pytest.mark.kernel
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gated", "biased"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "size", "d_model"),
    [
        (1, 4, 2, 8, 16), (3, 3, 3, 5, 7), (40, 8, 2, 24, 48), (300, 16, 4, 48, 96),
        (150, 2, 1, 50, 129), (700, 64, 16, 6, 72), (90, 4, 2, 7, 800),
        (60, 2, 1, 129, 200), (33, 2, 1, 385, 40),  # strips of values go through a few at once
    ],
)  # fmt: skip
def test_it_is_the_definition(tokens, num_experts, top_k, size, d_model, gated, biased, weighted):
    activation = functional.silu if gated else functional.gelu
    experts = stack(num_experts, size, d_model, gated=gated, biased=biased, activation=activation)
    normal = draw(21)
    index = normal(tokens, num_experts).topk(top_k).indices
    weights = normal(tokens, top_k) if weighted else None
    compare(normal(tokens, d_model), index, weights, experts)


@pytest.mark.kernel
@pytest.mark.long
@pytest.mark.usefixtures("built")
def test_frozen_weights_get_no_gradient_and_tokens_do():
    experts = stack(8, 24, 64, gated=True, biased=True, activation=functional.silu)
    normal = draw(22)
    x, index = normal(50, 64), normal(50, 8).topk(2).indices
    for trained in ((), ("values",), ("key_bias", "ups")):
        compare(x, index, normal(50, 2), experts, trained=trained)


@pytest.mark.kernel
@pytest.mark.usefixtures("built")
def test_an_activation_of_its_own_and_dropout_are_where_the_definition_has_them(monkeypatch):
    class Cubed(nn.Module):
        def forward(self, x):
            return x**3 / 10 + x

    def shrink(x, probability):  # stands for dropout: the same for whatever order of rows
        return x * probability

    monkeypatch.setattr(functional, "dropout", shrink)
    plain = stack(8, 24, 64, gated=True, biased=True, activation=Cubed())
    normal = draw(23)
    x, index = normal(50, 64), normal(50, 8).topk(3).indices
    compare(x, index, None, plain)
    compare(x, index, None, replace(plain, pre_dropout=0.5))
    compare(x, index, normal(50, 3), replace(plain, pre_dropout=0.3, dropout=0.2))


@pytest.mark.kernel
@pytest.mark.long
@pytest.mark.usefixtures("built")
def test_the_bits_do_not_depend_on_threads():
    experts = stack(16, 40, 200, gated=True, biased=True, activation=functional.silu)
    normal = draw(24)
    x, index = normal(300, 200), normal(300, 16).topk(4).indices
    weights, upstream = normal(300, 4), normal(300, 200)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(by_kernel, x, index, weights, experts, upstream))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        for name in ("output", "x", *NAMES):  # `weights`: a sum of PyTorch
            assert torch.equal(each[name], found[0][name]), name


@pytest.mark.kernel
@pytest.mark.usefixtures("built")
def test_a_model_trains_by_it_as_by_another_back_end():
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    torch.manual_seed(0)
    start = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=2, **sizes))
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(1))
    losses = {}
    for backend in ("sorted", "kernel"):
        model = copy.deepcopy(start)
        convert(model, EMoE(num_experts=8, top_k=2, layers="all", backend=backend))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        calls = kernel_experts.calls
        losses[backend] = []
        for _ in range(5):
            loss = model(input_ids=ids, labels=ids).loss
            losses[backend].append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (kernel_experts.calls > calls) == (backend == "kernel")
        with torch.no_grad():
            losses[backend].append(float(model.eval()(input_ids=ids, labels=ids).loss))
    assert losses["kernel"][-1] < losses["kernel"][0] - 0.5
    torch.testing.assert_close(losses["kernel"], losses["sorted"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [EMoE, MoE])
def test_a_saved_model_does_not_ask_for_it(method, tmp_path):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=2, **sizes))
    convert(model, method(num_experts=2, top_k=1, layers="all", backend="kernel"))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert {layer.backend for layer in moe_layers(loaded)} == {"auto"}
    assert {layer.backend for layer in moe_layers(model)} == {"kernel"}


def test_it_says_what_it_cannot_do(monkeypatch, tmp_path):
    experts = stack(4, 8, 16, gated=False, biased=True, activation=functional.gelu)
    index = torch.tensor([[0, 1]])
    monkeypatch.setattr(kernel_experts, "load", lambda: False)
    monkeypatch.setattr(building, "cache_folder", lambda: tmp_path)
    missing = r"kernel is not there: .*kernels build.*use sorted or auto"
    with pytest.raises(ValueError, match=missing):
        by_kernel(torch.zeros(1, 16), index, None, experts)
    with pytest.raises(ValueError, match=r"this is torch.bfloat16, torch.float32 on cpu; use"):
        by_kernel(torch.zeros(1, 16, dtype=torch.bfloat16), index, None, experts)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with autocast, pytest.raises(ValueError, match=r"this is torch.float32 on cpu under autocast"):
        by_kernel(torch.zeros(1, 16), index, None, experts)
