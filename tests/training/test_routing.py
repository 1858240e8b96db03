"""What is recorded of the routers: choices, and how many of them changed."""

from __future__ import annotations

import pytest
import torch

from moe_runner import EMoE, convert
from moe_runner.conversion.counts import moe_layers
from moe_runner.training.routing import (
    changed,
    choices,
    compare_norms,
    is_near_collapse,
    last_norms,
    sum_norms,
)
from tests.methods.test_methods import small

LENGTHS = (9, 6, 4)  # real tokens of the rows of `tiny_batch`


@pytest.mark.parametrize("family", ["bert", "t5"])  # T5: the decoder's input is the encoder's
@pytest.mark.parametrize("name", ["emoe", "moe"])
def test_choices_leave_padding_out(name, family, tiny_model, tiny_batch):
    model, batch = tiny_model(family), tiny_batch(family)
    convert(model, small(name))
    alone = [
        {"input_ids": row[None, :length], "attention_mask": torch.ones(1, length)}
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    padded, exact = choices(model, [batch]), choices(model, alone)
    assert len(padded) == len(exact) == len(moe_layers(model)) == {"bert": 4, "t5": 8}[family]
    for one, other in zip(padded, exact, strict=True):
        assert len(one) == sum(LENGTHS)
        assert torch.equal(one, other)


def test_what_only_padding_chooses_anew_is_no_change(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, small("emoe"))
    before = choices(model, [batch])
    hidden = batch["attention_mask"] == 0
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 7)}
    assert changed(before, choices(model, [other])) == 0
    seen = {**other, "attention_mask": torch.ones_like(hidden, dtype=torch.int64)}
    padding = choices(model, [seen])
    assert len(padding[0]) == 3 * 9  # where it does count


def test_changes_by_hand():
    before = [torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()] * 2
    after = [before[0], torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()]
    assert changed(before, before) == 0
    assert changed(before, after) == pytest.approx((0 + 2 / 4) / 2)
    assert changed([], after) is None
    assert changed(before, []) is None


def measured(model, batches) -> list[torch.Tensor]:
    with sum_norms(model) as sums, torch.no_grad():
        for batch in batches:
            model(**batch)
    return sums


def test_norms_of_the_experts_and_of_what_stands_beside_by_hand(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, small("hypermoe"))
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    parts: dict[str, torch.Tensor] = {}
    layers = moe_layers(model)
    with torch.no_grad():  # so that the HyperExpert is not next to nothing
        layers[0].beside.hypernet.up_bias.bias.fill_(3.0)
    for layer in layers:
        layer.beside.register_forward_hook(lambda m, a, out: parts.update(beside=out))
        layer.register_forward_hook(
            lambda m, a, out: seen.append((out.flatten(0, 1), parts["beside"], m.routing.mask))
        )
    sums = measured(model, [batch, batch])
    assert len(seen) == 8
    experts, beside = torch.zeros(4), torch.zeros(4)
    for i, (output, own, mask) in enumerate(seen[:4]):
        for token in range(27):
            if mask[token]:
                experts[i] += (output[token] - own[token]).square().sum().sqrt()
                beside[i] += own[token].square().sum().sqrt()
    tokens = sum(LENGTHS)
    for i, own in enumerate(sums):  # twice: two batches
        expected = torch.stack([2 * experts[i], 2 * beside[i], torch.tensor(2.0 * tokens)])
        torch.testing.assert_close(own, expected.double(), rtol=1e-5, atol=1e-5)
    figures = compare_norms(sums)
    assert figures == {
        "routing/experts_norm": pytest.approx(float((experts / tokens).mean())),
        "routing/beside_norm": pytest.approx(float((beside / tokens).mean())),
        "routing/beside_ratio": pytest.approx(float((beside / experts).max())),
    }
    assert last_norms(model) == pytest.approx(figures)


def test_padding_does_not_count_in_norms(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, small("moe_adapter"))
    with torch.no_grad():
        for layer in moe_layers(model):
            layer.beside.experts.output_bias.fill_(0.5)
    alone = [
        {"input_ids": row[None, :length], "attention_mask": torch.ones(1, length)}
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    together, apart = (compare_norms(measured(model, b)) for b in ([batch], alone))
    assert together == pytest.approx(apart, rel=1e-4)
    assert together["routing/beside_norm"] == pytest.approx(2.0)  # 16 numbers of a half


@pytest.mark.parametrize("name", ["dense", "emoe", "moe"])
def test_without_anything_beside_there_are_no_norms(name, tiny_model, tiny_batch):
    model = tiny_model("bert")
    convert(model, small(name))
    assert measured(model, [tiny_batch("bert")]) == []
    assert compare_norms([]) == last_norms(model) == {}


@pytest.mark.parametrize(
    ("name", "ratio", "warns"),
    [("hypermoe", 3.1, True), ("hypermoe", 3.0, False), ("moe_adapter", 9.0, False)],
)
def test_a_hyper_expert_three_times_as_large_as_the_experts_is_told(
    name, ratio, warns, tiny_model, caplog
):
    model = tiny_model("bert")
    convert(model, small(name))
    assert is_near_collapse(model, {"routing/beside_ratio": ratio}, 40) is warns
    assert [record.getMessage() for record in caplog.records] == (
        [
            "  after 40 updates a HyperExpert's output is 3.1 times as large as the experts' (more "
            "than 3): training may collapse; use method.hypernet_lr_scale=auto, or a smaller number"
        ]
        if warns
        else []
    )
    assert is_near_collapse(model, {}, 40) is False


def test_rounding_is_no_change(tiny_model):
    model = tiny_model("bert")
    convert(model, EMoE(num_experts=16, top_k=4, layers="all"))
    batches = [{"input_ids": torch.randint(1, 60, (64, 32))}]
    wide, narrow = choices(model, batches), choices(model, batches, "bf16")
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as accelerate does
    after = choices(model, batches, "bf16")
    assert changed(narrow, after) == 0 < changed(wide, after)
