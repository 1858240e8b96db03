"""Every method on every backbone family: what must hold for all of them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import moe_runner
from moe_runner import auxiliary_loss, convert, from_pretrained, merge, save_pretrained
from moe_runner.backbones.integrity import INDEX
from moe_runner.conversion.counts import active_parameters, count_parameters, moe_layers
from moe_runner.conversion.record import spans
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.methods.moe.options import MoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.protocol import Protocol
from moe_runner.registry import METHODS
from tests.conftest import FAMILIES
from tests.methods.rows import CONVERTING, COPIES, KEEP_SWITCH, ROWS, small


def converted(name: str, family: str, tiny_model, **options):
    model = tiny_model(family)
    torch.manual_seed(3)
    convert(model, small(name, family, **options))
    with torch.no_grad():  # as after some training: zero and equal weights would hide mistakes
        for layer in moe_layers(model):
            for part in (layer.router, layer.beside):
                for parameter in [] if part is None else part.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            if name in COPIES:
                layer.experts.values.add_(0.2 * torch.randn_like(layer.experts.values))
    return model


def logits(model, batch):
    return model(**batch).logits


def test_every_method_has_a_row():
    assert ROWS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_every_method_can_be_imported_from_the_package(name):
    options = METHODS[name]
    assert getattr(moe_runner, options.__name__) is options
    assert options.__name__ in dir(moe_runner)


@pytest.mark.parametrize("family", [*FAMILIES, "switch"])
@pytest.mark.parametrize("name", ROWS)
def test_the_task_and_the_auxiliary_losses_reach_every_parameter(
    name, family, tiny_model, tiny_batch
):
    model = converted(name, family, tiny_model)
    loss = model(**tiny_batch(family)).loss
    extra = auxiliary_loss(model)
    (loss if extra is None else loss + extra).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    if family == "switch" and name not in KEEP_SWITCH:  # the library's experts without a token
        without = {n for n in without if ".mlp.experts.expert_" not in n}
    assert without <= {"vit.pooler.dense.weight", "vit.pooler.dense.bias"}
    for layer in moe_layers(model):
        assert {n for n, _ in layer.router.named_parameters()} == set(ROWS[name].router) or (
            family == "switch" and name in KEEP_SWITCH
        )
        moved = [p.grad.abs().max() > 0 for p in layer.router.parameters()]
        assert all(moved), f"{name}: the router does not learn"
        if ROWS[name].beside:
            assert any(p.grad.abs().max() > 0 for p in layer.beside.parameters())


@pytest.mark.parametrize("family", [*FAMILIES, "switch"])
@pytest.mark.parametrize("name", COPIES)
def test_copies_start_as_the_dense_model(name, family, tiny_model, tiny_batch):
    if family == "switch" and name in KEEP_SWITCH:
        pytest.skip("a Switch has no dense model; see the next test")
    model, batch = tiny_model(family), tiny_batch(family)
    dense = logits(model, batch)
    convert(model, small(name, family))
    near = {"rtol": 1e-5, "atol": ROWS[name].starts_within}
    torch.testing.assert_close(logits(model, batch), dense, **near)


@pytest.mark.parametrize("name", KEEP_SWITCH)
def test_a_switch_keeps_its_experts_and_router(name, tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")
    before = logits(model, batch)
    method = small(name, "switch")
    convert(model, method)
    assert len(moe_layers(model)) == 4
    if "experts" in ROWS[name].beside:
        return  # the mean with one more expert is another function from the start
    near = {"rtol": 1e-5, "atol": ROWS[name].starts_within}
    torch.testing.assert_close(logits(model, batch), before, **near)


@pytest.mark.parametrize("family", [f for f in [*FAMILIES, "switch"] if f != "vit"])
@pytest.mark.parametrize("name", CONVERTING)
def test_padding_and_batch_size_change_nothing(name, family, tiny_model, tiny_batch):
    model, batch = converted(name, family, tiny_model), tiny_batch(family)
    together = logits(model, batch)
    alone = []
    for row, length in enumerate((9, 6, 4)):
        part = {
            key: value[row : row + 1]
            if key == "decoder_input_ids"
            else value[row : row + 1, :length]
            for key, value in batch.items()
            if key not in ("labels",)
        }
        alone.append(logits(model, part))
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONVERTING)
def test_padding_does_not_count_in_auxiliary_losses(name, tiny_model, tiny_batch):
    model, batch = converted(name, "bert", tiny_model), tiny_batch("bert")
    one = {key: value[1:2] for key, value in batch.items()}
    model(**one)
    padded = auxiliary_loss(model)
    model(**{key: value[:, :6] if value.ndim == 2 else value for key, value in one.items()})
    exact = auxiliary_loss(model)
    if not ROWS[name].router:
        assert padded is None
        assert exact is None
    else:
        torch.testing.assert_close(padded, exact, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("family", [*FAMILIES, "switch"])
@pytest.mark.parametrize("name", CONVERTING)
def test_a_saved_model_loads_again_and_never_with_random_ffns(
    name, family, tiny_model, tiny_batch, tmp_path
):
    model, batch = converted(name, family, tiny_model), tiny_batch(family)
    expected = logits(model, batch)
    save_pretrained(model, tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path), batch), expected)
    if not ROWS[name].merges:
        with pytest.raises(ValueError, match="moe_runner_"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", CONVERTING)
def test_weights_in_many_files_are_written_and_read(name, tiny_model, tiny_batch, tmp_path):
    model, batch = converted(name, "t5", tiny_model), tiny_batch("t5")  # has tied weights
    save_pretrained(model, tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == len([*tmp_path.glob("*.safetensors")]) > 3
    assert torch.equal(logits(from_pretrained(tmp_path), batch), logits(model, batch))


def test_a_file_that_lacks_a_weight_or_has_another_is_refused(tiny_model, tmp_path):
    save_pretrained(converted("moe", "bert", tiny_model), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["another"] = weights.pop("classifier.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="classifier.bias missing, another unexpected; save the"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("family", [*FAMILIES, "switch"])
@pytest.mark.parametrize("name", CONVERTING)
def test_masked_can_be_exported(name, family, tiny_model, tiny_batch):
    model = converted(name, family, tiny_model, backend="masked")
    layer = moe_layers(model)[-1]
    x = torch.randn(2, 5, 16)
    exported = torch.export.export(layer, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONVERTING)
def test_a_whole_model_can_be_exported(name, tiny_model, tiny_batch):
    model, batch = converted(name, "bert", tiny_model), tiny_batch("bert")
    batch.pop("labels")
    program = torch.export.export(model, (), kwargs=batch, strict=False)
    found = program.module()(**batch).logits
    torch.testing.assert_close(found, logits(model, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in CONVERTING if not ROWS[n].merges])
def test_only_emoe_can_be_merged(name, tiny_model):
    model = tiny_model("bert")
    convert(model, small(name))
    with pytest.raises(ValueError, match=f"method={name} cannot be merged: its "):
        merge(model)


def test_dense_and_noisy_tuning_merge_to_themselves(tiny_model):
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    convert(model, moe_runner.Dense())
    merge(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_noise_is_uniform_in_half_the_intensity_times_std_and_spares_the_head(tiny_model):
    model, plain = tiny_model("bert"), tiny_model("bert")
    convert(model, moe_runner.NoisyTuning(noise=0.5))
    for (name, noisy), before in zip(model.named_parameters(), plain.parameters(), strict=True):
        difference = (noisy - before).detach()
        if name.startswith("classifier"):
            assert not difference.any()
            continue
        bound = 0.25 * before.std(correction=0)
        assert difference.abs().max() <= bound * 1.001
        if before.numel() > 200:
            torch.testing.assert_close(difference.std(), bound / 3**0.5, rtol=0.15, atol=0)


@pytest.mark.parametrize("name", CONVERTING)
def test_active_parameters_leave_out_the_unselected_experts(name, tiny_model):
    model = tiny_model("bert")
    total = count_parameters(model)
    conversion = convert(model, small(name))
    assert conversion.dense_parameters == total
    assert active_parameters(model) < count_parameters(model)
    if name == "moe":  # one of four copies: what the dense model has, and the router
        router = sum(p.numel() for layer in moe_layers(model) for p in layer.router.parameters())
        assert active_parameters(model) == total + router
    text = conversion.report(model)
    assert "experts of" in text
    assert f"{conversion.parameters:,}" in text
    assert ("inertia" in text) == (ROWS[name].experts == "groups")


def test_the_report_names_the_layers_in_short():
    assert [spans(n) for n in ([10], [8, 10], [0, 1, 2, 3], [0, 2, 3, 9])] == [
        "10",
        "8, 10",
        "0-3",
        "0, 2-3, 9",
    ]


def test_the_report_by_hand(tiny_model):
    model = tiny_model("bert")  # d_model 16, d_ff 32
    conversion = convert(model, moe_runner.EMoE(num_experts=8, top_k=2, layers=(1, 2)))
    neurons = 2 * 6 * 4 * (16 + 1 + 16)  # layers, unselected experts, neurons, key + bias + value
    assert conversion.parameters == conversion.dense_parameters
    assert conversion.active_parameters == conversion.parameters - neurons
    saved = 2 * 2 * (2 * 32 * 16 - (2 * 2 * 4 * 16 + 8 * 16))  # 2 per weight; the router's product
    assert conversion.flops == conversion.dense_flops - saved
    own, random = conversion.inertia
    assert 0 < own < random
    first, second, third = conversion.report(model).splitlines()
    assert first == "emoe: encoder 1-2: 8 experts of 4 neurons, 2 per token"
    total = f"{conversion.parameters:,}"
    assert second.startswith(f"parameters {total} -> {total} ({conversion.active_parameters:,}")
    assert third.startswith(f"clusters: inertia {own:.1f}, random groups {random:.1f} (-")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MoE(num_experts=4, top_k=5), "top_k=5 does not fit num_experts=4"),
        (moe_runner.GMoE(num_experts=0), "top_k=2 does not fit num_experts=0"),
        (HyperMoE(layers=(9,)), "names layers that do not exist"),
    ],
)
def test_a_method_that_does_not_fit_leaves_the_model_as_it_was(method, message, tiny_model):
    model = tiny_model("bert")
    text = str(model)
    with pytest.raises(ConfigError, match=message):
        convert(model, method)
    assert str(model) == text


def test_the_experts_of_a_switch_are_not_counted_anew(tiny_model):
    with pytest.raises(ConfigError, match="num_experts=3 cannot be chosen"):
        convert(tiny_model("switch"), MoE(num_experts=3))


def test_a_hypernetwork_is_shared_by_all_layers_or_by_a_stack(tiny_model):
    for protocol, count in ((Protocol(), 1), (Protocol(hypernet_per_stack=True), 2)):
        model = tiny_model("switch")
        convert(model, small("hypermoe", "switch"), protocol=protocol)
        layers = moe_layers(model)
        assert len({id(layer.beside.hypernet) for layer in layers}) == count
        again = copy.deepcopy(model)
        assert len({id(layer.beside.hypernet) for layer in moe_layers(again)}) == count
