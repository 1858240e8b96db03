"""EMoE on every backbone family: exact identities, padding, saving."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from moe_runner import EMoE, convert, from_pretrained, merge, save_pretrained
from moe_runner.backbones.finder import find_sites
from moe_runner.conversion.counts import (
    active_parameters,
    count_parameters,
    flops_per_token,
    moe_layers,
)
from moe_runner.options.errors import ConfigError
from tests.conftest import FAMILIES

GATED = [family for family in FAMILIES if family.startswith("llama") or family == "t5_gated"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_reads_as_the_function_that_the_backbone_computes(family, tiny_model):
    model = tiny_model(family)
    sites = find_sites(model)
    assert len(sites) == (8 if family.startswith("t5") else 4)
    for site in sites:
        seen = {}
        value = model.get_submodule(site.value)
        key = model.get_submodule(site.key)
        hooks = [
            key.register_forward_hook(lambda m, args, out, seen=seen: seen.update(x=args[0])),
            value.register_forward_hook(lambda m, args, out, seen=seen: seen.update(y=out)),
        ]
        batch = (
            {"pixel_values": torch.randn(1, 3, 8, 8)}
            if family == "vit"
            else {"input_ids": torch.tensor([[5, 6, 7, 1]])}
        )
        model(**batch)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(site.read(model)(seen["x"]), seen["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["masked", "sorted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_emoe_with_every_expert_selected_is_the_dense_model(
    family, backend, tiny_model, tiny_batch
):
    model, batch = tiny_model(family), tiny_batch(family)
    dense = model(**batch).logits
    convert(model, EMoE(num_experts=4, top_k=4, layers="all", backend=backend))
    torch.testing.assert_close(model(**batch).logits, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_merge_after_convert_is_bit_exact(family, tiny_model, tiny_batch):
    model, batch = tiny_model(family), tiny_batch(family)
    before = copy.deepcopy(model.state_dict())
    text, logits = str(model), model(**batch).logits
    convert(model, EMoE(num_experts=8, top_k=2, layers="all"))
    assert not torch.equal(model(**batch).logits, logits)
    merge(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert str(model) == text
    assert torch.equal(model(**batch).logits, logits)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_training_with_every_expert_then_merging_is_training_the_dense_model(
    family, tiny_model, tiny_batch
):
    models = [tiny_model(family), tiny_model(family)]
    convert(models[1], EMoE(num_experts=4, top_k=4, layers="all", backend="sorted"))
    batch = tiny_batch(family)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    merge(models[1])
    for name, parameter in models[0].named_parameters():
        torch.testing.assert_close(
            models[1].get_parameter(name), parameter, rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_emoe_has_exactly_the_parameters_of_the_dense_model(family, tiny_model):
    model = tiny_model(family)
    model.base_model.requires_grad_(False)
    total, trainable = count_parameters(model), count_parameters(model, trainable=True)
    flops = flops_per_token(model)
    convert(model, EMoE(num_experts=4, top_k=1, layers="last-even:2"))
    assert count_parameters(model) == total
    assert count_parameters(model, trainable=True) == trainable
    assert active_parameters(model) < total
    assert flops_per_token(model) < flops


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_has_a_gradient_and_both_back_ends_have_the_same(
    family, tiny_model, tiny_batch
):
    gradients = []
    for backend in ("masked", "sorted"):
        model = tiny_model(family)
        convert(model, EMoE(num_experts=8, top_k=3, layers="all", backend=backend))
        model(**tiny_batch(family)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(
        gradient is not None for name, gradient in gradients[0].items() if ".experts." in name
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "vit"])
def test_padding_and_batch_size_change_neither_logits_nor_load(family, tiny_model, tiny_batch):
    model, batch = tiny_model(family), tiny_batch(family)
    convert(model, EMoE(num_experts=8, top_k=2, layers="all"))
    together = model(**batch).logits
    loads = [layer.routing.load(8) for layer in moe_layers(model)]
    alone, sums = [], [torch.zeros_like(load) for load in loads]
    for row, length in enumerate((9, 6, 4)):
        ids = batch["input_ids"][row : row + 1, :length]
        alone.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        sums = [s + layer.routing.load(8) for s, layer in zip(sums, moe_layers(model), strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)
    if not family.startswith("t5"):  # the decoder of T5 is given no mask
        assert all(torch.equal(a, b) for a, b in zip(sums, loads, strict=True))
        assert int(loads[0].sum()) == (9 + 6 + 4) * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_as_moe_and_as_dense(family, tiny_model, tiny_batch, tmp_path):
    model, batch = tiny_model(family), tiny_batch(family)
    dense = model(**batch).logits
    convert(model, EMoE(num_experts=8, top_k=2, layers="last:2"))
    logits = model(**batch).logits
    save_pretrained(model, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(**batch).logits, logits)
    assert torch.equal(model(**batch).logits, logits)
    architecture = type(model)
    assert torch.equal(architecture.from_pretrained(tmp_path)(**batch).logits, dense)
    if family != "vit":
        automatic = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(automatic(**batch).logits, dense)


@pytest.mark.parametrize("gate_on", ["up", "up_abs", "inter", "inter_abs"])
@pytest.mark.parametrize("family", GATED)
def test_gated_ffns_route_on_up_or_intermediate(family, gate_on, tiny_model, tiny_batch, caplog):
    model, batch = tiny_model(family), tiny_batch(family)
    convert(model, EMoE(num_experts=4, top_k=1, layers=(2,), gate_on=gate_on))
    (layer, *_) = moe_layers(model)
    seen = []
    layer.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    model(**batch)
    x = seen[0].reshape(-1, 16)
    experts = layer.experts
    up = torch.einsum("td,efd->tef", x, experts.ups)
    if gate_on != "up" and experts.up_bias is not None:
        up = up + experts.up_bias
    if gate_on.startswith("inter"):
        gate = torch.einsum("td,efd->tef", x, experts.keys)
        if experts.key_bias is not None:
            gate = gate + experts.key_bias
        up = experts.activation(gate) * up
    scores = (up.abs() if gate_on.endswith("_abs") else up).mean(-1)
    assert torch.equal(layer.routing.index[:, 0], scores.argmax(-1))
    torch.testing.assert_close(layer.router(x, experts).clean, scores, rtol=1e-4, atol=1e-6)
    warned = f"method.gate_on={gate_on}" in caplog.text
    assert warned == (not gate_on.endswith("_abs"))


def test_sizes_that_grouped_mm_does_not_take_are_refused_before_anything_is_replaced(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(ConfigError, match="the 2 neurons of an expert must be multiples of 4"):
        convert(model, EMoE(num_experts=32, top_k=1, layers=(0,), backend="grouped_mm"))
    assert moe_layers(model) == []
    convert(model, EMoE(num_experts=8, top_k=1, layers=(0,), backend="grouped_mm"))


def test_the_paper_s_gate_gives_no_warning(tiny_model, caplog):
    convert(tiny_model("llama"), EMoE(num_experts=4, top_k=1, layers=(2,)))
    assert caplog.text == ""


def test_the_gate_follows_the_keys_as_they_train(tiny_model, tiny_batch):
    model, batch = tiny_model("bert"), tiny_batch("bert")
    convert(model, EMoE(num_experts=4, top_k=1, layers=(0,)))
    (layer,) = moe_layers(model)
    model(**batch)
    before = layer.routing.index.clone()
    with torch.no_grad():
        layer.experts.keys.neg_()
    model(**batch)
    assert not torch.equal(layer.routing.index, before)


def test_not_top_and_bottom_leave_out_the_best_experts(tiny_model, tiny_batch):
    indices = {}
    for select in ("top", "bottom", "not_top"):
        model = tiny_model("gpt2")
        convert(model, EMoE(num_experts=8, top_k=2, layers=(0,), select=select))
        model(**tiny_batch("gpt2"))
        indices[select] = moe_layers(model)[0].routing.index
    for top, bottom, rest in zip(*indices.values(), strict=True):
        assert sorted(top.tolist() + rest.tolist()) == list(range(8))
        assert len(bottom) == 2
        assert set(bottom.tolist()) < set(rest.tolist())


def test_a_model_is_unchanged_when_the_method_does_not_fit(tiny_model):
    model = tiny_model("bert")
    text = str(model)
    with pytest.raises(ConfigError, match="num_experts=5 does not divide d_ff=32"):
        convert(model, EMoE(num_experts=5, top_k=1))
    with pytest.raises(ConfigError, match="names layers that do not exist"):
        convert(model, EMoE(num_experts=4, top_k=1, layers=(7,)))
    assert str(model) == text


def test_converting_twice_and_merging_a_dense_model_are_refused(tiny_model):
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(model)
    convert(model, EMoE(num_experts=4, top_k=1))
    with pytest.raises(ValueError, match="converted already"):
        convert(model, EMoE(num_experts=4, top_k=1))


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_merge_keeps_mode_and_what_trains(family, tiny_model):
    model = tiny_model(family, dropout=0.5).train()
    convert(model, EMoE(num_experts=4, top_k=2, layers="all"))
    for layer in moe_layers(model):
        layer.experts.requires_grad_(False)
    model.eval()
    sites = [site.key for site in find_sites(tiny_model(family))]
    merge(model)
    assert not any(module.training for module in model.modules())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(f"{key}.weight" in frozen for key in sites)


def test_a_copy_of_a_converted_model_gets_its_own_masks(tiny_model, tiny_batch):
    model = tiny_model("bert")
    convert(model, EMoE(num_experts=4, top_k=1, layers=(0,)))
    other = copy.deepcopy(model)
    other(**tiny_batch("bert"))
    (layer,) = moe_layers(other)
    assert int(layer.routing.load(4).sum()) == 9 + 6 + 4
    assert moe_layers(model)[0].routing is None


def test_assignments_must_be_those_of_the_sites(tiny_model):
    method = EMoE(num_experts=4, top_k=1, layers=(0,))
    key = "bert.encoder.layer.0.intermediate.dense"
    good = torch.arange(4).repeat(8)
    for assignments, message in (
        ({}, "not those of the sites: bert"),
        ({key: good, "other": good}, "not those of the sites: other"),
        ({key: good[:16]}, "does not share 32 neurons equally"),
        ({key: torch.zeros(32, dtype=torch.long)}, "does not share 32 neurons equally"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tiny_model("bert"), method, assignments=assignments)
    convert(tiny_model("bert"), method, assignments={key: good})


def test_half_precision_gives_the_same_with_every_back_end(tiny_model, tiny_batch):
    outputs = []
    for backend in ("masked", "sorted"):
        model = tiny_model("bert")
        convert(model, EMoE(num_experts=16, top_k=12, layers="all", backend=backend))
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(model(**tiny_batch("bert")).logits.float())
            assert moe_layers(model)[0](torch.randn(2, 16)).dtype == torch.bfloat16
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2e-2, atol=2e-2)
