"""Routing and the two back ends against a naive formulation, one token and one neuron at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from moe_runner.moe.backends import BACKENDS
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import AverageKeyRouter, average_key_scores, select_experts
from tests.reference import naive_emoe

shapes = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 9),
        "d_model": st.integers(1, 6),
        "num_experts": st.integers(1, 5),
        "size": st.integers(1, 4),
        "gated": st.booleans(),
        "biased": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def random_ffn(shape: dict, generator: torch.Generator) -> FFN:
    num_neurons = shape["num_experts"] * shape["size"]

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64, requires_grad=True)

    return FFN(
        keys=tensor(num_neurons, shape["d_model"]),
        values=tensor(num_neurons, shape["d_model"]),
        activation=functional.gelu,
        key_bias=tensor(num_neurons) if shape["biased"] else None,
        ups=tensor(num_neurons, shape["d_model"]) if shape["gated"] else None,
        up_bias=tensor(num_neurons) if shape["biased"] and shape["gated"] else None,
        output_bias=tensor(shape["d_model"]) if shape["biased"] else None,
    )


def random_assignment(shape: dict, generator: torch.Generator) -> torch.Tensor:
    experts = torch.arange(shape["num_experts"]).repeat(shape["size"])
    return experts[torch.randperm(len(experts), generator=generator)]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, top_k=st.integers(1, 5), select=st.sampled_from(["top", "bottom", "not_top"]))
def test_every_back_end_equals_the_naive_loop_in_outputs_and_gradients(shape, top_k, select):
    if top_k > shape["num_experts"] or (select == "not_top" and top_k == shape["num_experts"]):
        return
    generator = torch.Generator().manual_seed(shape["seed"])
    ffn, assignment = random_ffn(shape, generator), random_assignment(shape, generator)
    x = torch.randn(shape["tokens"], shape["d_model"], generator=generator, dtype=torch.float64)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    leaves = {
        name: getattr(ffn, name).detach().clone().requires_grad_()
        for name in ("keys", "values", "key_bias", "ups", "up_bias", "output_bias")
        if getattr(ffn, name) is not None
    }
    naive_x = x.clone().requires_grad_()
    expected = naive_emoe(naive_x, leaves, assignment, top_k, select, functional.gelu)
    expected.backward(upstream)

    for backend in ("masked", "sorted"):  # grouped_mm has no float64
        layer = MoEFeedForward(
            Experts.split(ffn, assignment),
            AverageKeyRouter(),
            top_k=top_k,
            select=select,
            backend=backend,
        )
        own_x = x.clone().requires_grad_()
        output = layer(own_x)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
        output.backward(upstream)
        torch.testing.assert_close(own_x.grad, naive_x.grad, rtol=1e-9, atol=1e-9)
        order = assignment.argsort(stable=True)
        for name, leaf in leaves.items():
            grad = getattr(layer.experts, name).grad
            wanted = leaf.grad if name == "output_bias" else leaf.grad[order]
            torch.testing.assert_close(grad.reshape(wanted.shape), wanted, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_stacking_and_returning_to_the_original_order_is_exact(shape):
    generator = torch.Generator().manual_seed(shape["seed"])
    ffn, assignment = random_ffn(shape, generator), random_assignment(shape, generator)
    back = Experts.split(ffn, assignment).dense(1)
    for name in ("keys", "values", "key_bias", "ups", "up_bias", "output_bias"):
        before, after = getattr(ffn, name), getattr(back, name)
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)


def test_average_key_scores_by_hand():
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    ffn = FFN(keys=keys, values=keys, activation=functional.relu, key_bias=torch.full((4,), 9.0))
    experts = Experts.split(ffn, torch.tensor([0, 1, 0, 1]))
    scores = average_key_scores(torch.tensor([[1.0, 1.0], [2.0, -1.0]]), experts)
    assert scores.tolist() == [[2.0, 3.0], [4.0, -3.0]]  # biases do not count


def test_selection_keeps_the_asked_number_among_ties():
    index = select_experts(torch.zeros(3, 4), 2)
    assert index.shape == (3, 2)
    assert all(len(set(row)) == 2 for row in index.tolist())


@pytest.mark.parametrize(("top_k", "select"), [(0, "top"), (5, "top"), (4, "not_top")])
def test_an_impossible_selection_is_refused(top_k, select):
    with pytest.raises(ValueError, match=f"top_k={top_k} with select={select} does not fit"):
        select_experts(torch.zeros(2, 4), top_k, select)


def test_no_token_is_dropped_however_uneven_the_load():
    shape = dict(tokens=50, d_model=4, num_experts=4, size=3, gated=False, biased=True, seed=0)
    generator = torch.Generator().manual_seed(0)
    experts = Experts.split(random_ffn(shape, generator), random_assignment(shape, generator))
    x = torch.randn(1, 4, generator=generator, dtype=torch.float64).expand(50, 4)  # all alike
    index = select_experts(average_key_scores(x, experts), 1)
    assert len(index.unique()) == 1
    output = BACKENDS["sorted"](x, index, None, experts.tensors())
    torch.testing.assert_close(output, output[:1].expand(50, 4), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, BACKENDS["masked"](x, index, None, experts.tensors()))


def test_the_inner_dropout_acts_in_training_only():
    shape = dict(tokens=1, d_model=8, num_experts=2, size=64, gated=False, biased=True, seed=0)
    generator = torch.Generator().manual_seed(0)
    ffn = random_ffn(shape, generator)
    ffn = FFN(**{**ffn.__dict__, "dropout": 0.5})
    experts = Experts.split(ffn, random_assignment(shape, generator))
    layer = MoEFeedForward(experts, AverageKeyRouter(), top_k=2)
    x = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    assert not torch.equal(layer.train()(x), layer(x))
    torch.testing.assert_close(layer.eval()(x), ffn(x))
