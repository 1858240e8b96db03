"""What is seen of models at work: experts known by construction, and naive computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from moe_runner import convert
from moe_runner.analysis.numbers import explained, held, nmi_of
from moe_runner.analysis.observe import observe
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.gmoe.options import GMoE
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.training.routing import changed, choices

SIZE, GROUPS = 16, 4  # tokens of the vocabulary, and experts; token t is for expert t % GROUPS
KEY = "encoder.layer.0.intermediate.dense"


def known_model():
    """Build a BERT of one layer whose neurons fire for the tokens of one group each.

    Its embeddings are one-hot and its attention adds nothing, so that the FFN sees the token alone:
    neuron n is for token n // 2. In the values, each group writes to dimensions of its own.
    """
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=SIZE, hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * SIZE, hidden_act="relu", pad_token_id=0, num_labels=GROUPS,
    )  # fmt: skip
    model = hf.BertForSequenceClassification(config).eval()
    bert = model.bert
    token_N = torch.arange(2 * SIZE) // 2
    with torch.no_grad():
        bert.embeddings.word_embeddings.weight.copy_(torch.eye(SIZE))
        bert.embeddings.position_embeddings.weight.zero_()
        bert.embeddings.token_type_embeddings.weight.zero_()
        layer = bert.encoder.layer[0]
        layer.attention.output.dense.weight.zero_()
        layer.intermediate.dense.weight.copy_(torch.eye(SIZE)[token_N])
        layer.intermediate.dense.bias.zero_()
        own = torch.arange(SIZE)[:, None] % GROUPS == token_N % GROUPS
        layer.output.dense.weight.mul_(own)
    experts = {f"bert.{KEY}": token_N % GROUPS}
    convert(model, EMoE(num_experts=GROUPS, top_k=1, layers="all"), assignments=experts)
    return model


def batch_of(ids: torch.Tensor, labels: torch.Tensor, lengths: list[int] | None = None):
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths or []):
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_experts_of_known_tokens_are_found():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZE, (64, 9), generator=generator)
    labels = torch.randint(0, GROUPS, (64,), generator=generator)
    batches = [batch_of(ids[part], labels[part]) for part in (slice(0, 40), slice(40, 64))]
    (layer,) = observe(known_model(), batches, classes=True)
    tokens = layer.tokens
    assert layer.name == "encoder 0"
    assert np.array_equal(tokens.identity, ids.flatten())
    assert np.array_equal(tokens.example, np.repeat(np.arange(64), 9))
    assert np.array_equal(tokens.position, np.tile(np.arange(9), 64))
    assert np.array_equal(tokens.label, labels.repeat_interleave(9))
    assert np.array_equal(layer.chosen.argmax(1), tokens.identity % GROUPS)
    assert (layer.num_experts, layer.selected, layer.tied) == (GROUPS, 1, 0)
    assert explained(layer.chosen, tokens.identity) == pytest.approx(1, abs=1e-9)
    assert explained(layer.chosen, tokens.position) < 0.1
    assert explained(layer.chosen, tokens.label) < 0.03
    # all activation is in the expert of the token, whose keys and outputs are its own
    assert layer.energy is not None
    assert held(layer.energy, layer.chosen) == (pytest.approx(1), pytest.approx(1))
    np.testing.assert_allclose(layer.keys, np.eye(GROUPS), atol=1e-12)
    np.testing.assert_allclose(layer.outputs, np.eye(GROUPS), atol=1e-6)
    assert layer.random_groups is not None
    assert 1 / GROUPS < layer.random_groups < 1


def test_a_label_that_goes_with_the_tokens_tells_the_expert():
    labels = torch.arange(GROUPS).repeat(4)
    ids = labels[:, None] + GROUPS * torch.randint(0, SIZE // GROUPS, (16, 5))
    (layer,) = observe(known_model(), [batch_of(ids, labels)], classes=True)
    assert nmi_of(layer.chosen, layer.tokens.label) == pytest.approx(1, abs=1e-9)
    assert layer.keys.shape == (GROUPS, GROUPS)


def test_padding_is_left_out():
    ids = torch.randint(1, SIZE, (3, 6))
    (layer,) = observe(known_model(), [batch_of(ids, torch.zeros(3, GROUPS), [6, 2, 4])])
    expected = torch.cat([ids[0], ids[1, :2], ids[2, :4]])
    assert np.array_equal(layer.tokens.identity, expected)
    assert layer.tokens.position.tolist() == [*range(6), *range(2), *range(4)]
    assert layer.tokens.label is None
    assert len(layer.energy) == len(layer.chosen) == 12


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5_gated"])
def test_energy_adds_up_to_the_dense_activation(family, tiny_model, tiny_batch):
    """The squared activations of all experts are those that the dense model's FFN has."""
    model, batch = tiny_model(family), tiny_batch(family)
    method = EMoE(num_experts=4, top_k=4, layers="all")
    inputs: list[torch.Tensor] = []
    names = {"bert": "output.dense", "gpt2": "c_proj", "llama": "down_proj", "t5_gated": "wo"}
    for name, module in model.named_modules():
        if name.endswith(names[family]) and "attn" not in name and "attention" not in name:
            module.register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach()))
    model(**batch)
    convert(model, method)
    layers = observe(model, [batch], classes=False)
    assert len(layers) == len(inputs) == (8 if family == "t5_gated" else 4)
    mask = batch["attention_mask"].bool()
    for layer, hidden in zip(layers, inputs, strict=True):
        kept = hidden.square().sum(-1)[mask]
        np.testing.assert_allclose(layer.energy.sum(1), kept, rtol=1e-4)
        assert layer.random_groups == pytest.approx(1)
        assert held(layer.energy, layer.chosen) == (pytest.approx(1), pytest.approx(1))


def test_outputs_are_compared_as_a_loop_over_experts_and_tokens_does(tiny_model, tiny_batch):
    model, batch = tiny_model("llama"), tiny_batch("llama")
    conversion = convert(model, EMoE(num_experts=4, top_k=2, layers=(1,)))
    (layer,), seen = conversion.layers, []
    handle = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    (found,) = observe(model, [batch])
    handle.remove()
    x_TD = seen[0][batch["attention_mask"].bool()]
    experts, outputs = layer.experts, []
    for e in range(4):
        hidden = torch.nn.functional.silu(x_TD @ experts.keys[e].T) * (x_TD @ experts.ups[e].T)
        outputs.append((hidden @ experts.values[e]).flatten())
        np.testing.assert_allclose(
            found.energy[:, e], hidden.square().sum(1).detach(), rtol=1e-4, atol=1e-9
        )
    cosine = torch.nn.functional.cosine_similarity
    for e in range(4):
        for f in range(4):
            expected = float(cosine(outputs[e], outputs[f], dim=0).detach())
            assert found.outputs[e, f] == pytest.approx(expected, abs=1e-4)
    assert not model.training


def test_choices_are_those_that_a_run_records(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, EMoE(num_experts=8, top_k=2, layers="all"))
    expected = choices(model, [batch])
    found = observe(model, [batch], measure=False)
    assert [np.array_equal(f.chosen, e) for f, e in zip(found, expected, strict=True)] == [True] * 4
    assert changed(expected, expected) == 0
    assert found[0].energy is None


def test_copies_start_alike_and_their_router_undecided(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    torch.manual_seed(0)
    convert(model, HyperMoE(num_experts=4, top_k=1, width=4, embedding_dim=6, layers=(1, 2)))
    layers = observe(model, [batch], classes=True)
    assert [layer.name for layer in layers] == ["encoder 1", "encoder 2"]
    for layer in layers:
        np.testing.assert_allclose(layer.keys, 1, atol=1e-9)
        np.testing.assert_allclose(layer.outputs, 1, atol=1e-6)
        assert (layer.tied, layer.split, layer.energy) == (1, False, None)


def test_a_hyperexpert_is_measured_beside_the_experts(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    torch.manual_seed(0)
    conversion = convert(
        model, HyperMoE(num_experts=4, top_k=2, width=4, embedding_dim=6, layers=(1,))
    )
    (layer,) = conversion.layers
    torch.nn.init.normal_(layer.router.gate)
    seen: list[torch.Tensor] = []
    layer.beside.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    layer.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    (found,) = observe(model, [batch])
    mask = batch["attention_mask"].bool()
    beside, total = seen[0][mask.flatten()], seen[1][mask]
    lengths = [float(t.norm(dim=1).mean()) for t in (total - beside, beside)]
    assert found.norms == pytest.approx(lengths, rel=1e-3)
    assert found.beside == "HyperExpert"
    assert found.selection_tokens.sum() == pytest.approx(1)
    assert (np.diff(found.selection_tokens) <= 0).all()
    assert (found.selections.sum(1) == 2).all()
    with torch.no_grad():
        expected = layer.beside.embed(torch.from_numpy(found.selections))
    np.testing.assert_allclose(found.embeddings, expected, rtol=1e-6)


def test_pictures_have_positions_and_labels_but_no_tokens(tiny_model, tiny_batch):
    model, batch = tiny_model("vit"), tiny_batch("vit")
    convert(model, GMoE(num_experts=4, top_k=2, layers=(1,)))
    (layer,) = observe(model, [batch, batch], classes=True)
    assert layer.tokens.identity is None
    assert layer.tokens.position.tolist() == [*range(5)] * 6  # four patches and [CLS]
    assert layer.tokens.example.tolist() == np.repeat(np.arange(6), 5).tolist()
    assert layer.tokens.label.tolist() == np.repeat([0, 1, 2, 0, 1, 2], 5).tolist()


def test_an_encoder_decoder_is_seen_on_both_sides_or_without_answers_on_one(tiny_model, tiny_batch):
    batch = tiny_batch("switch")
    del batch["decoder_input_ids"]
    batch["labels"][0, 2:] = -100
    batch["labels"][1] = batch["labels"][2]
    model = tiny_model("switch")
    convert(model, GMoE(num_experts=4, top_k=1, layers="all"))
    found = {layer.name: layer for layer in observe(model, [batch], classes=True)}
    sides = {name.split()[0] for name in found}
    assert sides == {"encoder", "decoder"}
    decoder = next(layer for name, layer in found.items() if name.startswith("decoder"))
    assert len(decoder.chosen) == 10
    assert decoder.tokens.label.tolist() == [0] * 2 + [1] * 8  # numbered as they come
    assert decoder.tokens.identity[0] == model.config.decoder_start_token_id
    alone = observe(model, [{k: v for k, v in batch.items() if k != "labels"}])
    assert {layer.name.split()[0] for layer in alone} == {"encoder"}
