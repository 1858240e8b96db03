"""Routers, weights, losses, capacity, HyperExpert: against naive loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.hypernet import HyperExpert, HyperNetwork
from moe_runner.moe.layer import AuxiliaryLosses, Capacity, MoEFeedForward, auxiliary_loss
from moe_runner.moe.losses import (
    importance_and_load_loss,
    smooth_load,
    squared_cv,
    switch_balance_loss,
    z_loss,
)
from moe_runner.moe.routing import (
    CosineRouter,
    LinearRouter,
    NoisyTopKRouter,
    expert_weights,
    select_experts,
    within_capacity,
    within_sequence_capacity,
)
from tests.reference import (
    naive_capacity,
    naive_cosine_scores,
    naive_hyper_expert,
    naive_load,
    naive_selection,
    naive_squared_cv,
    naive_switch_balance,
    naive_weighted,
)

shapes = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 7),
        "d_model": st.integers(1, 5),
        "num_experts": st.integers(1, 5),
        "size": st.integers(1, 4),
        "top_k": st.integers(1, 5),
        "gated": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def random_ffns(shape: dict) -> list[FFN]:
    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.float64, requires_grad=True)

    return [
        FFN(
            keys=tensor(shape["size"], shape["d_model"]),
            values=tensor(shape["size"], shape["d_model"]),
            activation=functional.silu,
            key_bias=tensor(shape["size"]),
            ups=tensor(shape["size"], shape["d_model"]) if shape["gated"] else None,
            output_bias=tensor(shape["d_model"]),
        )
        for _ in range(shape["num_experts"])
    ]


def make_router(kind: str, d_model: int, num_experts: int) -> torch.nn.Module:
    router = {
        "cosine": lambda: CosineRouter(d_model, num_experts, 3),
        "noisy": lambda: NoisyTopKRouter(d_model, num_experts),
        "linear": lambda: LinearRouter(torch.randn(num_experts, d_model).requires_grad_()),
    }[kind]().double()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return router.eval()


def naive_scores(kind: str, x: torch.Tensor, p: dict) -> torch.Tensor:
    if kind == "cosine":
        scale = p["log_scale"].exp()
        return naive_cosine_scores(
            x, p["projection.weight"], p["projection.bias"], p["expert_vectors"], scale
        )
    weight = p["gate"] if kind == "noisy" else p["weight"]
    return torch.stack([torch.stack([(row * token).sum() for row in weight]) for token in x])


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    kind=st.sampled_from(["cosine", "noisy", "linear"]),
    weighting=st.sampled_from(["softmax", "probability"]),
    backend=st.sampled_from(["masked", "sorted"]),
)
def test_weighted_experts_equal_a_loop_over_tokens(shape, kind, weighting, backend):
    torch.manual_seed(shape["seed"])
    top_k = min(shape["top_k"], shape["num_experts"])
    ffns = random_ffns(shape)
    router = make_router(kind, shape["d_model"], shape["num_experts"])
    layer = MoEFeedForward(
        Experts.stack(ffns), router, top_k=top_k, weighting=weighting, backend=backend
    ).eval()
    x = torch.randn(shape["tokens"], shape["d_model"], dtype=torch.float64)
    upstream = torch.randn_like(x)

    own_x, naive_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = layer(own_x)
    output.backward(upstream)
    own = {name: p.detach().clone().requires_grad_() for name, p in router.named_parameters()}
    parts = ("keys", "values", "key_bias", "ups", "output_bias")
    leaves = [
        {
            n: getattr(f, n).detach().clone().requires_grad_()
            for n in parts
            if getattr(f, n) is not None
        }
        for f in ffns
    ]
    scores = naive_scores(kind, naive_x, own)
    expected = naive_weighted(naive_x, leaves, scores, top_k, weighting, functional.silu)
    expected.backward(upstream)

    close = {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(own_x.grad, naive_x.grad, **close)
    for name, parameter in router.named_parameters():
        if own[name].grad is not None:
            torch.testing.assert_close(parameter.grad, own[name].grad, **close, msg=name)
    for e, leaf in enumerate(leaves):
        for name, value in leaf.items():
            found = getattr(layer.experts, name).grad[e]
            wanted = torch.zeros_like(found) if value.grad is None else value.grad
            torch.testing.assert_close(found, wanted, **close, msg=name)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, noise=st.booleans())
def test_importance_and_load_equal_a_loop(shape, noise):
    torch.manual_seed(shape["seed"])
    tokens, experts = shape["tokens"], shape["num_experts"]
    top_k = min(shape["top_k"], experts)
    clean = torch.randn(tokens, experts, dtype=torch.float64, requires_grad=True)
    std = torch.rand(tokens, experts, dtype=torch.float64) + 0.1
    noisy = clean + torch.randn_like(clean) * std if noise else clean
    index = select_experts(noisy, top_k)
    load = smooth_load(clean, noisy, std, index)
    loss = importance_and_load_loss(clean.softmax(-1), load, None)
    (gradient,) = torch.autograd.grad(loss, clean, retain_graph=True, allow_unused=True)

    loads = naive_load(clean, noisy, std, top_k)
    importance = [sum(clean.softmax(-1)[t, e] for t in range(tokens)) for e in range(experts)]
    expected = naive_squared_cv(importance) + naive_squared_cv(loads)
    torch.testing.assert_close(load.sum(0), torch.stack(loads), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-9)
    (wanted,) = torch.autograd.grad(expected, clean, allow_unused=True)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)


def test_squared_cv_by_hand():
    assert squared_cv(torch.tensor([2.0, 2.0, 2.0])).item() == 0
    assert squared_cv(torch.tensor([4.0, 0.0, 0.0, 0.0])).item() == pytest.approx(3)
    assert squared_cv(torch.zeros(4)).item() == 0


def test_switch_losses_by_hand():
    even = torch.zeros(4, 2, dtype=torch.float64)
    index = torch.tensor([[0], [1], [0], [1]])
    assert switch_balance_loss(even.softmax(-1), index, None).item() == pytest.approx(1)
    scores = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    index = scores.argmax(1, keepdim=True)
    p = scores.softmax(-1)
    share = [(index == e).double().mean() for e in range(2)]
    expected = 2 * sum(share[e] * p[:, e].mean() for e in range(2))
    found = switch_balance_loss(p, index, None)
    assert found.item() == pytest.approx(expected.item())
    assert z_loss(scores, None).item() == pytest.approx(
        sum(torch.log(sum(torch.exp(s) for s in row)) ** 2 for row in scores).item() / 2
    )
    counted = torch.tensor([False, True])
    assert z_loss(scores, counted).item() == pytest.approx(
        (torch.log(torch.exp(scores[1]).sum()) ** 2).item()
    )


@settings(max_examples=60, deadline=None)
@given(shape=shapes, padded=st.booleans())
def test_the_balance_of_a_switch_equals_a_loop_for_any_number_of_choices(shape, padded):
    torch.manual_seed(shape["seed"])
    tokens, top_k = shape["tokens"], min(shape["top_k"], shape["num_experts"])
    scores = torch.randn(tokens, shape["num_experts"], dtype=torch.float64, requires_grad=True)
    index = select_experts(scores, top_k)
    counted = torch.rand(tokens) < 0.5
    counted[0] = True
    counted = counted if padded else None
    found = switch_balance_loss(scores.softmax(-1), index, counted)
    expected = naive_switch_balance(
        scores, index.tolist(), None if counted is None else counted.tolist()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # shares are in fp32
    (gradient,) = torch.autograd.grad(found, scores)
    (wanted,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_balance_of_a_switch_is_one_when_even_and_e_over_k_at_worst(top_k):
    even = torch.arange(6)[:, None].add(torch.arange(top_k)) % 6
    alike = torch.full((6, 6), 1 / 6, dtype=torch.float64)
    assert switch_balance_loss(alike, even, None).item() == pytest.approx(1, abs=1e-6)
    worst = torch.arange(top_k).expand(6, top_k)
    sure = torch.zeros(6, 6, dtype=torch.float64)
    sure[:, :top_k] = 1 / top_k
    assert switch_balance_loss(sure, worst, None).item() == pytest.approx(6 / top_k, abs=1e-6)


@pytest.mark.parametrize("scale", [2.0, 99.0, 101.0, 1e6])
def test_the_scale_of_the_cosine_router_is_at_most_a_hundred(scale):
    torch.manual_seed(0)
    router = make_router("cosine", 4, 3)
    with torch.no_grad():
        router.log_scale.fill_(math.log(scale))
    x = torch.randn(5, 4, dtype=torch.float64)
    p = dict(router.named_parameters())
    expected = naive_cosine_scores(
        x, p["projection.weight"], p["projection.bias"], p["expert_vectors"], min(scale, 100.0)
    )
    torch.testing.assert_close(router(x, None).clean, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, factor=st.sampled_from([0.5, 1.0, 1.5]))
def test_capacity_equals_a_loop(shape, factor):
    torch.manual_seed(shape["seed"])
    top_k = min(shape["top_k"], shape["num_experts"])
    scores = torch.randn(shape["tokens"] * 3, shape["num_experts"])
    index = select_experts(scores, top_k)
    kept = within_capacity(scores, index, factor)
    assert kept.tolist() == naive_capacity(scores, index.tolist(), factor)


def test_capacity_of_a_sequence_takes_its_first_tokens():
    index = torch.tensor([[[0], [0], [1], [0]], [[1], [1], [1], [0]]])
    kept = within_sequence_capacity(index, 2, 2)
    assert kept.flatten().tolist() == [True, True, True, False, True, True, False, True]


def test_dropped_tokens_give_zero_or_their_weighted_input():
    torch.manual_seed(0)
    shape = dict(size=3, d_model=4, num_experts=2, gated=False)
    x = torch.randn(1, 5, 4, dtype=torch.float64)
    router = make_router("linear", 4, 2)
    with torch.no_grad():
        router.weight[1] = router.weight[0]  # all tokens choose alike: three are over
        router.weight[0] += 1e-9
    ffns = random_ffns(shape)
    outputs = {}
    for dropped in ("zero", "input"):
        layer = MoEFeedForward(
            Experts.stack(ffns),
            router,
            top_k=1,
            weighting="probability",
            capacity=Capacity(per_sequence=2, dropped=dropped),
            backend="masked",
        )
        outputs[dropped] = layer(x)[0]
        index = layer.routing.index[:, 0].tolist()
    probs = (x[0] @ router.weight.T).softmax(-1)
    taken = [0, 0]
    for t, e in enumerate(index):
        taken[e] += 1
        if taken[e] > 2:
            assert not outputs["zero"][t].any()
            torch.testing.assert_close(outputs["input"][t], probs[t, e] * x[0, t])
        else:
            torch.testing.assert_close(outputs["input"][t], outputs["zero"][t])
    assert max(taken) > 2


@settings(max_examples=40, deadline=None)
@given(shape=shapes, aggregate=st.sampled_from(["sum", "mean"]), many=st.booleans())
def test_hyper_expert_equals_one_generated_for_each_token(shape, aggregate, many):
    import moe_runner.moe.hypernet as module

    torch.manual_seed(shape["seed"])
    experts, d_model, width = shape["num_experts"], shape["d_model"], 3
    top_k = min(shape["top_k"], experts)
    hypernet = HyperNetwork(d_model, 2, width=width, selection_dim=4, layer_dim=2, hidden_dim=5)
    layer = HyperExpert(hypernet, 1, experts, embedding_dim=4, aggregate=aggregate).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(shape["tokens"], d_model, dtype=torch.float64)
    scores = torch.randn(shape["tokens"], experts)
    chosen = [row[::-1] for row in naive_selection(scores, top_k)]  # order does not matter
    index = torch.tensor(chosen)
    upstream = torch.randn_like(x)
    own_x, naive_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    leaves = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
    expected = naive_hyper_expert(naive_x, chosen, leaves, 1, width, aggregate == "mean")
    expected.backward(upstream)
    bound, module.MOST_COMBINATIONS = module.MOST_COMBINATIONS, 0 if many else 32
    try:
        output = layer(own_x, index)
    finally:
        module.MOST_COMBINATIONS = bound
    output.backward(upstream)
    torch.testing.assert_close(output, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(own_x.grad, naive_x.grad, rtol=1e-7, atol=1e-8)
    for name, parameter in layer.named_parameters():
        wanted = leaves[name].grad
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-7, msg=name)


def test_hypernetwork_has_the_published_sizes_and_starts_near_zero():
    hypernet = HyperNetwork(768, 12)
    count = sum(p.numel() for p in hypernet.parameters())
    assert count == 12_806_336 + 120
    layer = HyperExpert(hypernet, 0, 8)
    own = sum(p.numel() for p in layer.parameters()) - count
    assert own == 1_024 + 33_024
    x = torch.randn(16, 768)
    assert layer(x, torch.randint(8, (16, 1))).abs().max() < 1e-3


def test_top_one_weight_is_one_and_teaches_the_router():
    scores = torch.randn(5, 3, requires_grad=True)
    index = select_experts(scores, 1)
    weights = expert_weights(scores, index, "softmax")
    assert torch.equal(weights, torch.ones(5, 1))
    weights.sum().backward()
    assert scores.grad.abs().max() > 0
    scores.grad = None
    expert_weights(scores, index, "softmax", straight_through=False).sum().backward()
    assert scores.grad.abs().max() < 1e-6


def test_auxiliary_losses_are_scaled_and_added_in_one_place():
    layers = torch.nn.ModuleList()
    for coefficient in (0.5, 2.0):
        ffns = random_ffns(dict(size=2, d_model=3, num_experts=4, gated=False))
        layers.append(
            MoEFeedForward(
                Experts.stack(ffns),
                make_router("noisy", 3, 4),
                top_k=2,
                weighting="softmax",
                losses=AuxiliaryLosses({"balance": coefficient}),
            )
        )
    assert auxiliary_loss(layers) is None
    for layer in layers:
        layer(torch.randn(6, 3, dtype=torch.float64))
    terms = [layer.routing.losses["balance"] for layer in layers]
    torch.testing.assert_close(auxiliary_loss(layers), 0.5 * terms[0] + 2 * terms[1])
    for layer in layers:  # overwritten, never added up
        layer(torch.randn(6, 3, dtype=torch.float64))
        assert len(layer.routing.losses) == 1
    terms = [layer.routing.losses["balance"] for layer in layers]
    torch.testing.assert_close(auxiliary_loss(layers), 0.5 * terms[0] + 2 * terms[1])


LOSSES = {"balance": 1.0, "switch_balance": 1.0, "z": 1.0}


def layer_with_losses() -> MoEFeedForward:
    ffns = random_ffns(dict(size=2, d_model=3, num_experts=4, gated=False))
    router = make_router("linear", 3, 4)
    return MoEFeedForward(
        Experts.stack(ffns), router, top_k=2, weighting="softmax", losses=AuxiliaryLosses(LOSSES)
    )


def test_losses_are_summed_over_processes_with_gradients_only(monkeypatch):
    summed = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr(
        "torch.distributed.nn.functional.all_reduce", lambda x: summed.append(x) or 2 * x
    )
    layer, x = layer_with_losses(), torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():  # processes generate texts of different lengths
        layer.eval()(x)
        assert auxiliary_loss(layer) > 0
    assert summed == []
    layer.train()(x)
    assert len(summed) == 2 + 3 + 2  # of the three losses


def test_losses_that_a_compiled_layer_does_not_record_are_an_error():
    layer, x = layer_with_losses(), torch.randn(6, 3, dtype=torch.float64)
    layer(x)
    assert auxiliary_loss(layer) > 0
    torch.compile(layer, backend="eager")(x)
    with pytest.raises(RuntimeError, match="torch.compile has traced the MoE layers"):
        auxiliary_loss(layer)
    layer.forward = torch.compiler.disable(layer.forward)  # the remedy that the message names
    torch.compile(layer, backend="eager")(x)
    auxiliary_loss(layer).backward()


def test_the_mask_goes_where_the_tokens_are():
    layer = layer_with_losses()
    layer.attention_mask = torch.ones(2, 5, dtype=torch.long)
    assert layer.token_mask(torch.empty(2, 5, 3, device="meta")).device.type == "meta"
