"""What a converted model tells its MoE layers: passes, which layers may miss, and padding."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
import transformers as hf
from torch.utils.checkpoint import checkpoint

from moe_runner import EMoE, GMoE, HyperMoE, MoE, auxiliary_loss, convert, merge
from moe_runner.conversion.counts import moe_layers
from moe_runner.methods.dense.options import Dense
from moe_runner.moe.records import Records
from moe_runner.options.errors import ConfigError

SMALL = {"vocab_size": 60, "pad_token_id": 0, "num_labels": 3}
BERT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SMALL,
}  # fmt: skip
LEARNED = GMoE(num_experts=4, top_k=1, layers="all", balance_loss=1.0)


def test_a_layer_that_a_pass_skips_has_no_losses_of_the_pass_before():
    torch.manual_seed(0)
    config = hf.M2M100Config(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=1,
        max_position_embeddings=64, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
    )  # fmt: skip
    model = hf.M2M100ForConditionalGeneration(config)
    convert(model, LEARNED)
    model.train()
    ids = torch.randint(3, 60, (2, 7))
    model(input_ids=ids, labels=ids)
    auxiliary_loss(model).backward()
    model.model.encoder.layerdrop = 1.0
    model(input_ids=ids, labels=ids)
    decoder = moe_layers(model.model.decoder)
    assert all(layer.routing is None for layer in moe_layers(model.model.encoder))
    expected = torch.stack([layer.routing.losses["balance"] for layer in decoder]).sum()
    found = auxiliary_loss(model)
    torch.testing.assert_close(found, expected)
    found.backward()  # the graph of the first pass is gone


@pytest.mark.parametrize("method", [MoE(), Dense()], ids=lambda method: method.name)
def test_an_encoder_called_alone_and_kept_routers_begin_anew(method, tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")
    convert(model, method)
    model(**batch)
    both = auxiliary_loss(model)
    found = [getattr(module, "records", Records()) for module in model.encoder.modules()]
    own = [records for records in found if records.last is not None]
    assert len(own) == 2
    for block in model.encoder.block:
        block.layer[1].forward = lambda x, *rest: x  # without its FFN
    model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert all(records.last is None for records in own)
    model(**batch)
    assert all(records.last is None for records in own)
    assert 0 < auxiliary_loss(model) < both


@pytest.mark.parametrize("method", [EMoE(num_experts=4, top_k=2), GMoE(), HyperMoE(), Dense()],
                         ids=lambda method: method.name)  # fmt: skip
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "switch"])
def test_a_converted_model_is_pickled_with_its_hooks(family, method, tiny_model, tiny_batch):
    model, batch = tiny_model(family).eval(), tiny_batch(family)
    convert(model, method)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    expected = model(**batch)
    torch.testing.assert_close(found(**batch).logits, expected.logits, rtol=0, atol=0)
    layers, copies = moe_layers(model), moe_layers(found)
    for layer, copy in zip(layers, copies, strict=True):
        assert copy is not layer
        assert torch.equal(copy.routing.load(8), layer.routing.load(8))
    if method.name == "emoe":
        merge(found)
        dense = tiny_model(family).eval()
        torch.testing.assert_close(found(**batch).logits, dense(**batch).logits)


def test_a_layer_that_blocks_share_adds_up_its_calls_of_one_pass(tiny_batch):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = hf.AlbertConfig(embedding_size=8, classifier_dropout_prob=0.0, **BERT)
        model = hf.AlbertForSequenceClassification(config)
        convert(model, LEARNED)
        (layer,) = moe_layers(model.train())
        calls: list[torch.Tensor] = []
        layer.register_forward_hook(
            lambda layer, args, out, calls=calls: calls.append(layer.routing.losses["balance"])
        )
        if checkpointing:  # ALBERT's class has none of its own
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        for _ in range(2):  # neither the first pass nor its recomputation counts in the second
            calls.clear()
            loss, found = model(**tiny_batch("bert")).loss, auxiliary_loss(model)
            assert len(calls) == config.num_hidden_layers
            torch.testing.assert_close(found, torch.stack(calls).sum())
            (loss + found).backward()
        gradients.append(layer.router.expert_vectors.grad)
        layer(torch.randn(4, 16))
        assert layer.records.earlier == []  # called by itself
    torch.testing.assert_close(*gradients)


def test_an_ffn_that_is_called_in_pieces_has_no_losses_and_is_refused():
    def model():
        torch.manual_seed(0)
        return hf.BertForSequenceClassification(hf.BertConfig(chunk_size_feed_forward=2, **BERT))

    with pytest.raises(ConfigError, match="chunk_size_feed_forward=2 in the model's configuration"):
        convert(model(), LEARNED)
    dense, converted = model().eval(), model().eval()
    convert(converted, EMoE(num_experts=4, top_k=4, layers="all"))
    ids = torch.randint(3, 60, (2, 8))
    torch.testing.assert_close(converted(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_static_cache_hands_over_masks_that_are_none_of_tokens():
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=60, pad_token_id=0,
    )  # fmt: skip
    model = hf.Qwen2ForCausalLM(config).eval()
    ids = torch.randint(3, 60, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False}
    options |= {"cache_implementation": "static", "disable_compile": True}
    expected = model.generate(ids, **options)
    convert(model, EMoE(num_experts=4, top_k=4, layers="all"))
    assert torch.equal(model.generate(ids, **options), expected)
    assert moe_layers(model)[0].attention_mask is None
