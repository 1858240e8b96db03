"""What is recorded of the routers: choices, and how many of them changed."""

from __future__ import annotations

import pytest
import torch

from moe_runner import convert
from moe_runner.conversion.counts import moe_layers
from moe_runner.training.routing import changed, choices
from tests.methods.test_methods import small

LENGTHS = (9, 6, 4)  # real tokens of the rows of `tiny_batch`


@pytest.mark.parametrize("name", ["emoe", "moe"])
def test_choices_leave_padding_out(name, tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, small(name))
    alone = [
        {"input_ids": row[None, :length], "attention_mask": torch.ones(1, length)}
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    padded, exact = choices(model, [batch]), choices(model, alone)
    assert len(padded) == len(exact) == len(moe_layers(model)) == 4
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
