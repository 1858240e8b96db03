"""Every back end against `masked`: outputs and all gradients."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.activations import ACT2FN

from moe_runner.moe import backends, sorted_experts
from moe_runner.moe.alignment import fits_grouped
from moe_runner.moe.backends import IN_TORCH, choose_backend
from moe_runner.moe.experts import Stack

ACTIVATIONS = {
    name: ACT2FN[name] for name in ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh")
}
FAST = [name for name in IN_TORCH if name != "masked"]
NAMES = ("keys", "values", "key_bias", "ups", "up_bias")

cases = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 9),
        "d_model": st.integers(1, 3).map(lambda n: 8 * n),  # grouped_mm wants rows of 16 bytes
        "num_experts": st.integers(1, 5),
        "size": st.integers(1, 3).map(lambda n: 8 * n),
        "top_k": st.integers(1, 5),
        "gated": st.booleans(),
        "biased": st.booleans(),
        "weighted": st.booleans(),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "seed": st.integers(0, 2**16),
    }
)


def make(case: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(case["seed"])
    experts, size, d_model = case["num_experts"], case["size"], case["d_model"]
    top_k = min(case["top_k"], experts)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    leaves = {"x": tensor(case["tokens"], d_model)}
    leaves |= {"keys": tensor(experts, size, d_model), "values": tensor(experts, size, d_model)}
    if case["biased"]:
        leaves["key_bias"] = tensor(experts, size)
    if case["gated"]:
        leaves["ups"] = tensor(experts, size, d_model)
        if case["biased"]:
            leaves["up_bias"] = tensor(experts, size)
    if case["weighted"]:
        leaves["weights"] = tensor(case["tokens"], top_k)
    scores = torch.randn(case["tokens"], experts, generator=generator)
    leaves["index"] = scores.topk(top_k).indices
    leaves["upstream"] = tensor(case["tokens"], d_model)
    return leaves


def run(backend: str, tensors: dict, activation, generated: bool = False) -> dict:
    leaves = {
        name: tensor.clone().requires_grad_()
        for name, tensor in tensors.items()
        if name not in ("index", "upstream")
    }
    used = {name: leaf * 1.5 for name, leaf in leaves.items()} if generated else leaves
    stack = Stack(activation=activation, **{n: used[n] for n in NAMES if n in used})
    output = IN_TORCH[backend](used["x"], tensors["index"], used.get("weights"), stack)
    output.backward(tensors["upstream"])
    return {"output": output, **{name: leaf.grad for name, leaf in leaves.items()}}


@settings(max_examples=60, deadline=None)
@given(case=cases, generated=st.booleans())
def test_sorted_equals_masked_in_float64(case, generated):
    tensors, activation = make(case, torch.float64), ACTIVATIONS[case["activation"]]
    expected = run("masked", tensors, activation, generated)
    for name, found in run("sorted", tensors, activation, generated).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-8, atol=1e-9, msg=name)


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_grouped_mm_equals_masked(case):
    tensors, activation = make(case, torch.float32), ACTIVATIONS[case["activation"]]
    expected = run("masked", tensors, activation)
    for name, found in run("grouped_mm", tensors, activation).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-3, msg=name)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    num_experts=st.integers(1, 9),
    top_k=st.integers(1, 9),
    piece=st.integers(1, 9),
    skew=st.floats(0, 5),
    seed=st.integers(0, 2**16),
)
def test_a_layout_has_every_choice_once_with_its_own_expert(
    tokens, num_experts, top_k, piece, skew, seed
):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, num_experts, generator=generator)
    scores += skew * torch.arange(num_experts)  # some experts are chosen by most tokens
    index = scores.topk(min(top_k, num_experts)).indices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_experts, "PIECE", piece)
        layout = sorted_experts.lay_out(index, num_experts, 4, 4)
    places = layout.choice_P.tolist()
    assert sorted(p for p in places if p < index.numel()) == list(range(index.numel()))
    assert sorted(e for g in layout.groups for e in g.experts.tolist()) == list(range(num_experts))
    rows = 0
    for group in layout.groups:
        for block in group.blocks:
            assert block.start == rows
            rows = block.stop
            for e, own in zip(group.experts, group.view(layout.choice_P[block]), strict=True):
                assert len(own) <= piece
                real = own[own < index.numel()]
                assert torch.all(index.flatten()[real] == e)
                tokens_of_rows = group.view(layout.token_P[block])[group.experts == e].flatten()
                assert torch.equal(tokens_of_rows[own < index.numel()], real // index.shape[1])
    assert len(places) == rows
    assert index.numel() >= 0.75 * rows


def test_pieces_of_an_expert_add_up(monkeypatch):
    case = dict(
        tokens=50, d_model=8, num_experts=3, size=8, top_k=2, gated=True, biased=True,
        weighted=True, activation="silu", seed=1,
    )  # fmt: skip
    tensors = make(case, torch.float64)
    expected = run("masked", tensors, functional.silu)
    monkeypatch.setattr(sorted_experts, "PIECE", 7)
    for name, found in run("sorted", tensors, functional.silu).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_gradcheck_of_the_written_backward():
    case = dict(
        tokens=4, d_model=8, num_experts=3, size=8, top_k=2, gated=True, biased=True,
        weighted=True, activation="gelu_new", seed=2,
    )  # fmt: skip
    tensors = make(case, torch.float64)
    index = tensors.pop("index")
    tensors.pop("upstream")
    names = list(tensors)

    def function(*values):
        used = dict(zip(names, values, strict=True))
        stack = Stack(activation=ACT2FN["gelu_new"], **{n: used[n] for n in NAMES})
        return IN_TORCH["sorted"](used["x"], index, used["weights"], stack)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors.values()])


@pytest.mark.parametrize("backend", FAST)
def test_frozen_experts_get_no_gradient_and_tokens_do(backend):
    stack = Stack(keys=torch.randn(2, 8, 8), values=torch.randn(2, 8, 8), activation=torch.relu)
    x = torch.randn(4, 8, requires_grad=True)
    IN_TORCH[backend](x, torch.tensor([[0], [1], [1], [0]]), None, stack).sum().backward()
    assert x.grad is not None
    assert stack.keys.grad is None


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("trains", ["x", "keys", "ups", "values"])
def test_gated_experts_train_in_part(trains, backend):
    """As under LoRA: experts are frozen, or some of their tensors, and gradients still pass."""
    case = {"tokens": 6, "d_model": 8, "num_experts": 3, "size": 8, "top_k": 2, "gated": True,
            "biased": False, "weighted": False, "seed": 0}  # fmt: skip
    tensors = make(case, torch.float32)

    def gradient(name: str) -> torch.Tensor:
        leaves = {n: t.clone() for n, t in tensors.items() if n not in ("index", "upstream")}
        leaves[trains].requires_grad_()
        stack = Stack(activation=ACT2FN["silu"], **{n: leaves[n] for n in NAMES if n in leaves})
        output = IN_TORCH[name](leaves["x"], tensors["index"], None, stack)
        output.backward(tensors["upstream"])
        return leaves[trains].grad

    torch.testing.assert_close(gradient(backend), gradient("masked"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", IN_TORCH)
def test_dropout_acts_on_activations_and_keeps_their_mean(backend):
    torch.manual_seed(0)
    keys, values = torch.ones(2, 512, 8), torch.ones(2, 512, 8) / 512
    index = torch.tensor([[0], [1]])
    for name in ("dropout", "pre_dropout"):
        stack = Stack(keys=keys, values=values, activation=torch.relu, **{name: 0.5})
        x = torch.ones(2, 8, requires_grad=True)
        output = IN_TORCH[backend](x, index, None, stack)
        assert not torch.allclose(output, torch.full((2, 8), 8.0))
        torch.testing.assert_close(output, torch.full((2, 8), 8.0), rtol=0.2, atol=0)
        output.sum().backward()
        # the same mask forward and backward: the function is linear here
        torch.testing.assert_close((x.grad * x).sum(1), output.sum(1))


@pytest.mark.parametrize("backend", FAST)
def test_autocast_computes_in_half_precision(backend):
    torch.manual_seed(0)
    stack = Stack(
        keys=torch.randn(4, 8, 16) / 4, values=torch.randn(4, 8, 16) / 4, activation=torch.relu
    )
    x, index = torch.randn(9, 16), torch.rand(9, 4).topk(2).indices
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (IN_TORCH[b](x, index, None, stack) for b in ("masked", backend))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("backend", IN_TORCH)
def test_no_token_is_fine(backend):
    stack = Stack(keys=torch.randn(2, 8, 8), values=torch.randn(2, 8, 8), activation=torch.relu)
    index = torch.zeros(0, 1, dtype=torch.int64)
    assert IN_TORCH[backend](torch.zeros(0, 8), index, None, stack).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_chosen_back_end_works_for_any_size_and_type(dtype):
    for shape in ((2, 8, 8), (64, 48, 16), (8, 24, 40)):
        keys = torch.zeros(shape, dtype=dtype)
        stack = Stack(keys=keys, values=keys, activation=torch.relu)
        for tokens, infers in itertools.product((0, 1, 300), (False, True)):
            name = choose_backend(tokens, 1, stack, infers=infers)
            index = torch.zeros(tokens, 1, dtype=torch.int64)
            output = IN_TORCH[name](keys.new_zeros(tokens, shape[2]), index, None, stack)
            assert output.shape == (tokens, shape[2])
            assert output.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_grouped_mm_is_refused_where_torch_refuses_and_only_there(dtype):
    """Torch is asked itself: the rule is from trying, not from its documentation."""
    fitting = 0
    for d_model, size in itertools.product((1, 2, 4, 6, 8, 12, 16, 18), repeat=2):
        keys = torch.randn(2, size, d_model, dtype=dtype, requires_grad=True)
        x, index = torch.randn(5, d_model, dtype=dtype), torch.zeros(5, 1, dtype=torch.int64)
        ends = torch.tensor([5, 5], dtype=torch.int32)
        try:
            hidden = torch.nn.functional.grouped_mm(x, keys.transpose(1, 2), offs=ends)
            hidden = hidden.contiguous().relu()  # as in the layer: activations without gaps
            torch.nn.functional.grouped_mm(hidden, keys, offs=ends).backward(torch.ones_like(x))
            taken = True
        except RuntimeError:
            taken = False
        assert fits_grouped(d_model, size, dtype.itemsize) == taken
        fitting += taken
        stack = Stack(keys=keys, values=keys, activation=torch.relu)
        if taken:
            assert IN_TORCH["grouped_mm"](x, index, None, stack).shape == x.shape
        else:
            words = f"d_model={d_model} and the {size} neurons of an expert .* sorted or auto"
            with pytest.raises(ValueError, match=words):
                IN_TORCH["grouped_mm"](x, index, None, stack)
    assert fitting == (16 if dtype == torch.float32 else 4)


def test_the_choice_is_what_was_fastest_in_the_most_similar_case(tmp_path, monkeypatch):
    def case(tokens: int, dtype: str, fastest: str, phase: str = "forward+backward") -> dict:
        sizes = [tokens, 8, 8, 4, 2]
        case = {"sizes": sizes, "gated": False, "dtype": dtype, "fastest": fastest}
        return {**case, "phase": phase}

    table = tmp_path / "table.json"
    cases = [
        case(10, "float32", "masked"),
        case(1000, "float32", "sorted"),
        case(10, "bfloat16", "grouped_mm"),
        case(10, "float32", "grouped_mm", "forward"),
    ]
    table.write_text(json.dumps({"cases": cases}))
    monkeypatch.setattr(backends, "TABLE", table)
    backends.nearest_case.cache_clear()
    stack = Stack(keys=torch.zeros(4, 8, 8), values=torch.zeros(4, 8, 8), activation=torch.relu)
    assert choose_backend(20, 2, stack) == "masked"
    assert choose_backend(500, 2, stack) == "sorted"
    assert choose_backend(500, 2, stack, infers=True) == "grouped_mm"
    with torch.autocast("cpu", torch.bfloat16):
        assert choose_backend(500, 2, stack) == "grouped_mm"
    backends.nearest_case.cache_clear()
