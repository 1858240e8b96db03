"""The HyperExpert at its edges; that it equals one per token in general is in test_layer.py."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import moe_runner.moe.hypernet as module
from moe_runner.moe.hypernet import (
    HyperExpert,
    HyperNetwork,
    distinct_selections,
    generated_linear,
    group_tokens,
    lr_scale,
)
from tests.reference import naive_hyper_expert

WIDTH = 3


def make_layer(num_experts: int, d_model: int = 4, aggregate: str = "sum") -> HyperExpert:
    torch.manual_seed(0)
    hypernet = HyperNetwork(d_model, 2, width=WIDTH, selection_dim=4, layer_dim=2, hidden_dim=5)
    layer = HyperExpert(hypernet, 1, num_experts, embedding_dim=4, aggregate=aggregate).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def random_index(tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    return torch.rand(tokens, num_experts).topk(top_k).indices


def gradients(layer: HyperExpert, x: torch.Tensor, index: torch.Tensor, **options):
    """Run forward and backward; the output, and the gradient of x and of each parameter."""
    x = x.clone().requires_grad_()
    output = layer(x, index, **options)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    found = {"output": output.detach(), "x": x.grad}
    for name, parameter in layer.named_parameters():
        found[name] = None if parameter.grad is None else parameter.grad.clone()
        parameter.grad = None
    return found


def expect_equal(found, expected, rtol=1e-9, atol=1e-10):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"),
    [(1, 4, 2), (5, 1, 1), (5, 3, 3), (1, 1, 1), (40, 8, 2)],
    ids=["one token", "one expert", "all selected", "one of each", "28 selections"],
)
def test_hyper_expert_equals_a_loop_over_tokens(tokens, num_experts, top_k, aggregate):
    layer = make_layer(num_experts, aggregate=aggregate)
    x = torch.randn(tokens, 4, dtype=torch.float64)
    index = random_index(tokens, num_experts, top_k)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
    naive_x = x.clone().requires_grad_()
    output = naive_hyper_expert(naive_x, index.tolist(), leaves, 1, WIDTH, aggregate == "mean")
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    expected = {"output": output.detach(), "x": naive_x.grad}
    for name, leaf in leaves.items():
        expected[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    expect_equal(gradients(layer, x, index), expected, rtol=1e-7, atol=1e-8)


def test_nothing_unselected_is_the_same_hyper_expert_for_every_embedding():
    layer = make_layer(3)
    x = torch.randn(5, 4, dtype=torch.float64)
    before = layer(x, random_index(5, 3, 3))
    with torch.no_grad():
        layer.embeddings.weight.add_(1)
    assert torch.equal(layer(x, random_index(5, 3, 3)), before)


def test_order_of_the_index_does_not_matter():
    layer = make_layer(5)
    x = torch.randn(20, 4, dtype=torch.float64)
    index = random_index(20, 5, 3)
    assert torch.equal(layer(x, index), layer(x, index.flip(1)))


def test_order_of_the_tokens_does_not_matter():
    layer = make_layer(5)
    x = torch.randn(20, 4, dtype=torch.float64)
    index, order = random_index(20, 5, 2), torch.randperm(20)
    torch.testing.assert_close(layer(x[order], index[order]), layer(x, index)[order])


@pytest.mark.parametrize("top_k", [1, 2])
def test_masked_back_end_equals_groups(top_k):
    layer = make_layer(4)
    x, index = torch.randn(9, 4, dtype=torch.float64), random_index(9, 4, top_k)
    expect_equal(gradients(layer, x, index, masked=True), gradients(layer, x, index))


def test_no_token_gives_no_output_and_zero_gradients():
    layer = make_layer(4)
    found = gradients(layer, torch.zeros(0, 4).double(), torch.zeros(0, 2, dtype=torch.int64))
    assert found.pop("output").shape == (0, 4)
    assert found.pop("x").shape == (0, 4)
    assert all(not value.any() for value in found.values())


def test_more_combinations_than_the_bound_list_only_those_that_occur(monkeypatch):
    layer = make_layer(12)  # 66 pairs
    x, index = torch.randn(30, 4, dtype=torch.float64), random_index(30, 12, 2)
    chosen, selection = distinct_selections(index, 12)
    assert len(chosen) == len({frozenset(row) for row in index.tolist()}) < 66
    for token, row in enumerate(index.tolist()):
        assert chosen[selection[token]].nonzero().flatten().tolist() == sorted(row)
    many = gradients(layer, x, index)
    monkeypatch.setattr(module, "MOST_COMBINATIONS", 66)
    assert len(distinct_selections(index, 12)[0]) == 66
    expect_equal(gradients(layer, x, index), many)


def test_hyper_experts_are_generated_once_per_selection_that_occurs(monkeypatch):
    layer = make_layer(8)
    index = torch.tensor([[0, 1], [1, 0], [2, 3], [0, 1]])
    rows = []
    monkeypatch.setattr(
        HyperNetwork,
        "apply_to_groups",
        lambda self, x, z, groups: rows.append((len(z), [g.tolist() for g in groups])) or x,
    )
    layer(torch.randn(4, 4, dtype=torch.float64), index)
    assert rows == [(2, [[[0, 1, 3]], [[2]]])]  # three tokens and one: two groups


@pytest.mark.parametrize(
    "frozen",
    [
        ["hypernet"],
        ["hypernet.down.weight", "hypernet.up.weight"],
        ["hypernet.down.bias", "hypernet.up_bias"],
        ["embeddings", "first", "second", "hypernet.layers", "hypernet.hidden"],
        ["hypernet", "embeddings", "first", "second"],
    ],
    ids=lambda names: "+".join(names),
)
def test_frozen_parameters_have_no_gradient_and_change_no_other(frozen):
    layer = make_layer(4)
    x, index = torch.randn(9, 4, dtype=torch.float64), random_index(9, 4, 2)
    expected = gradients(layer, x, index)
    for name, parameter in layer.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in frozen):
            parameter.requires_grad_(False)
            expected[name] = None
    found = gradients(layer, x, index)
    assert {name for name, value in found.items() if value is None} == {
        name for name, value in expected.items() if value is None
    }
    expect_equal(
        {name: value for name, value in found.items() if value is not None},
        {name: value for name, value in expected.items() if value is not None},
    )


def test_input_without_gradient_changes_no_gradient_of_the_parameters():
    layer = make_layer(4)
    x, index = torch.randn(9, 4, dtype=torch.float64), random_index(9, 4, 2)
    expected = gradients(layer, x, index)
    output = layer(x, index)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.parametrize("transposed", [False, True])
def test_generated_linear_passes_gradcheck(transposed):
    torch.manual_seed(0)
    groups = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5], [0, 5]])]  # 5 fills up

    def call(x, z, weight, constant, bias):
        generator = SimpleNamespace(weight=weight, bias=constant)
        return generated_linear(x, z, generator, bias, groups, transposed=transposed)

    shapes = [(5, 4), (3, 3), (8, 3), (8,), (3, 2)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(call, leaves)


def test_half_precision_under_autocast_is_close_to_float32():
    layer = make_layer(4, d_model=32).float()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.3)
    x, index = torch.randn(50, 32), random_index(50, 4, 2)
    expected = gradients(layer, x, index)
    with torch.autocast("cpu", torch.bfloat16):
        masked = layer(x, index, masked=True)
        output = layer(x, index)
        assert output.dtype == torch.bfloat16
    found = gradients_under_autocast(layer, x, index)
    for name, value in expected.items():
        error = (found[name].float() - value).norm() / value.norm().clamp(min=1e-6)
        assert error < 0.05, name
        assert found[name].dtype == (torch.bfloat16 if name == "output" else torch.float32)
    torch.testing.assert_close(output.float(), masked.float(), rtol=0.05, atol=0.05)


def gradients_under_autocast(layer, x, index):
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(layer, x, index)


def test_all_selections_of_a_few_experts_are_listed_once():
    index = torch.tensor(list(itertools.combinations(range(5), 2)))
    chosen, selection = distinct_selections(index, 5)
    assert len(chosen) == 10
    assert selection.tolist() == list(range(10))


def test_selections_with_similar_numbers_of_tokens_share_a_group():
    selection = torch.tensor([2, 0, 2, 0, 2, 5, 3, 3, 3, 3, 3, 3])
    used, groups = group_tokens(selection, 6)
    assert used.tolist() == [3, 2, 0, 5]
    assert [group.tolist() for group in groups] == [
        [[6, 7, 8, 9, 10, 11], [0, 2, 4, 12, 12, 12]],
        [[1, 3], [5, 12]],
    ]


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_derived_scale_is_one_over_one_plus_sum_of_z(top_k):
    layers = [make_layer(4), make_layer(4)]
    layers[1].hypernet = layers[0].hypernet
    layers[1].layer = 0
    sums = []
    for layer in layers:
        p = layer.state_dict()
        for i in range(4):
            rest = [e for e in range(4) if e not in {i, (i + top_k - 1) % 4}]
            s = sum(p["embeddings.weight"][e] for e in rest)
            hidden = torch.relu(p["first.weight"] @ s + p["first.bias"])
            q = p["second.weight"] @ hidden + p["second.bias"]
            joined = torch.cat([q, p["hypernet.layers.weight"][layer.layer]])
            z = torch.relu(p["hypernet.hidden.weight"] @ joined + p["hypernet.hidden.bias"])
            sums.append(z.sum())
    assert lr_scale(layers, top_k) == pytest.approx(float(1 / (1 + sum(sums) / len(sums))))


@pytest.mark.parametrize("derived", [False, True])
def test_with_the_derived_scale_an_adam_step_moves_generated_weights_by_its_rate(derived):
    """Of the size that HyperMoE has by default; without the scale it is 20 times the rate."""
    torch.manual_seed(0)
    rate = 1e-3
    layer = HyperExpert(HyperNetwork(16, 1, width=8), 0, 8)
    x, index = torch.randn(400, 16), random_index(400, 8, 1)

    def weights() -> torch.Tensor:
        chosen = torch.eye(8, dtype=torch.bool)
        with torch.no_grad():
            return layer.hypernet.up(layer.hypernet(layer.embed(chosen), 0))

    scale = lr_scale([layer], 1) if derived else 1.0
    generator = [layer.hypernet.up.weight, layer.hypernet.up.bias]
    optimizer = torch.optim.Adam(generator, lr=rate * scale)
    before = weights()
    (layer(x, index) * torch.randn(16)).sum().backward()
    optimizer.step()
    step = (weights() - before).abs().mean() / rate
    assert 0.5 < step <= 1.05 if derived else step > 15


@pytest.mark.parametrize("bias_fan", [True, False])
def test_initial_values_are_drawn_in_the_order_that_stored_runs_had(bias_fan):
    """The numbers of every stored run of HyperMoE depend on it."""
    torch.manual_seed(0)
    found = HyperNetwork(
        4, 2, width=3, selection_dim=4, layer_dim=2, hidden_dim=5, bias_fan=bias_fan
    )
    torch.manual_seed(0)
    torch.nn.Embedding(2, 2), torch.nn.Linear(6, 5)
    for size in (12, 3, 12, 4):
        torch.nn.Linear(5, size)
    fans = {"down": 4, "down_bias": 4, "up": 3, "up_bias": 3}
    for name, fan in fans.items():
        fan = fan if bias_fan or "bias" not in name else 1
        bound = 1e-3 * (3 / (5 * fan)) ** 0.5
        linear = getattr(found, name)
        expected = torch.empty_like(linear.weight).uniform_(-bound, bound)
        torch.testing.assert_close(linear.weight.detach(), expected, rtol=1e-6, atol=0)
