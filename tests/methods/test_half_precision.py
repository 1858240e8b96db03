"""Every method on a model in half precision: dtypes, forward, backward, and near the fp32 model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

from moe_runner import auxiliary_loss, convert, merge
from moe_runner.conversion.counts import moe_layers
from tests.conftest import FAMILIES
from tests.methods.rows import CONVERTING, small

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What half precision may change: 8 and 11 significant bits, through four layers.
NEAR = {"bf16": 0.1, "fp16": 0.02}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("family", [*FAMILIES, "switch"])
@pytest.mark.parametrize("name", CONVERTING)
def test_a_half_precision_model_converts_runs_and_learns(
    name, family, half, tiny_model, tiny_batch
):
    dtype = HALVES[half]
    wide, batch = tiny_model(family), tiny_batch(family)
    model = copy.deepcopy(wide).to(dtype)
    # the weights of both are equal, so that only the arithmetic differs
    wide.load_state_dict({n: tensor.float() for n, tensor in model.state_dict().items()})
    assert {p.dtype for p in model.parameters()} == {dtype}
    torch.manual_seed(3)
    convert(model, small(name, family))
    layers = moe_layers(model)
    assert layers
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(dtype, "cpu")}

    halved = {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.items()}
    model.train()
    loss = model(**halved).loss
    extra = auxiliary_loss(model)
    assert loss.isfinite()
    assert extra is None or extra.isfinite()
    (loss if extra is None else loss + extra).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), parameter_name
            if "router.classifier" not in parameter_name:  # a kept router's: the library casts it
                assert parameter.grad.dtype == dtype, parameter_name
    for layer in layers:
        assert any(p.grad is not None and p.grad.any() for p in layer.experts.parameters())
        if layer.beside is not None:
            assert any(p.grad is not None and p.grad.any() for p in layer.beside.parameters())

    # in evaluation it computes what the same model in fp32 does
    same = copy.deepcopy(wide)
    torch.manual_seed(3)
    convert(same, small(name, family))
    same.load_state_dict(model.state_dict())  # copied into the dtype that is there
    with torch.no_grad():
        found = model.eval()(**halved).logits
        expected = same.eval()(**batch).logits
    assert found.dtype == dtype
    scale = expected.abs().amax()
    assert (found.float() - expected).abs().median() < NEAR[half] * scale


@pytest.mark.parametrize("name", CONVERTING)
def test_an_ffn_whose_second_projection_stays_in_fp32_is_converted(name, tiny_batch, tmp_path):
    """As transformers loads T5 in fp16: `wo` is kept in fp32."""
    config = hf.T5Config(
        d_model=16, num_layers=4, num_heads=2, d_kv=8, d_ff=32, vocab_size=60, num_labels=3,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = hf.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    ids = tiny_batch("bert")["input_ids"]
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids[:, :4].clone()}
    before = copy.deepcopy(model.state_dict())
    assert {t.dtype for t in before.values()} == {torch.float16, torch.float32}
    with torch.no_grad():
        dense = model.eval()(**batch).logits
    all_of_them = {"top_k": 8} if name == "emoe" else {}
    convert(model, small(name, **all_of_them))
    found = model(**batch)
    found.loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    if name == "emoe":
        near = {"rtol": 0, "atol": 5e-3 * float(dense.abs().max())}
        torch.testing.assert_close(found.logits.to(dense.dtype), dense, **near)
        merge(model)
        after = model.state_dict()
        assert after.keys() == before.keys()
        for key, tensor in before.items():
            assert torch.equal(after[key], tensor), key
            assert after[key].dtype == tensor.dtype, key
