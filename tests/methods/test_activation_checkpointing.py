"""Activation checkpointing calls a layer twice per step: nothing may change by it."""

from __future__ import annotations

import pytest
import torch

from moe_runner import auxiliary_loss
from tests.methods.rows import CONVERTING
from tests.methods.test_methods import converted


def losses_and_gradients(name: str, family: str, tiny_model, batch: dict, checkpointing: bool):
    def build(family: str):
        return tiny_model(family, dropout=0.1)

    model = converted(name, family, build).train()
    if checkpointing:
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing
    torch.manual_seed(7)  # of dropout and the routers' noise
    loss, extra = model(**batch).loss, auxiliary_loss(model)
    (loss if extra is None else loss + extra).backward()
    return loss, extra, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("name", CONVERTING)
def test_checkpointing_changes_neither_losses_nor_gradients(name, family, tiny_model, tiny_batch):
    batch = tiny_batch(family)
    loss, extra, expected = losses_and_gradients(name, family, tiny_model, batch, False)
    again, extra_again, found = losses_and_gradients(name, family, tiny_model, batch, True)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(extra_again, extra)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("name", CONVERTING)
def test_checkpointing_that_loses_the_auxiliary_losses_is_refused(name, tiny_model, tiny_batch):
    model = converted(name, "bert", tiny_model).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.bert.embeddings.register_forward_hook(lambda m, a, out: out.requires_grad_())
    model(**tiny_batch("bert"))
    if name == "emoe":
        assert auxiliary_loss(model) is None  # nothing to lose
        return
    with pytest.raises(RuntimeError, match="use use_reentrant=False"):
        auxiliary_loss(model)
    with torch.no_grad():  # a mere look is allowed
        assert auxiliary_loss(model) > 0


def test_an_evaluation_without_gradients_has_auxiliary_losses(tiny_model, tiny_batch):
    model = converted("moe", "bert", tiny_model)
    with torch.no_grad():
        model(**tiny_batch("bert"))
    assert auxiliary_loss(model) > 0
