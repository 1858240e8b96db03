"""Every model type of the table converts exactly and merges back, or is refused with the cause."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.auto import modeling_auto as auto

from moe_runner import Dense, EMoE, convert, merge
from moe_runner.backbones.families import ROWS, family_of_type, is_verified
from moe_runner.backbones.finder import find_native_experts, find_sites
from moe_runner.backbones.proof import tensors
from moe_runner.conversion.counts import active_parameters, count_parameters, flops_per_token
from moe_runner.options.errors import ConfigError
from tests.backbones.tiny_configs import CONFIGS, batch_of, build

REFUSED = {  # model type -> cause
    "bitnet": r"layers\.0 computes ffn_sub_norm between its projections",
    "segformer": r"stages\.0\.blocks\.0 computes dwconv between its projections",
    "squeezebert": r"encoder\.layers\.0 splits its FFN into Conv1d of 4 groups",
}
NATIVE = {  # mixtures of experts already: model type -> their weights, by hand
    "dbrx": 2 * 4 * 3 * 24 * 32,
    "gpt_oss": 2 * 4 * 3 * 64 * 32,
    "granitemoe": 2 * 4 * 3 * 64 * 32,
    "jetmoe": 2 * 4 * (3 * 64 * 32 + 2 * 16 * 32),  # of the attention, too
    "mixtral": 2 * 4 * 3 * 64 * 32,
    "olmoe": 2 * 4 * 3 * 64 * 32,
    "phimoe": 2 * 4 * 3 * 64 * 32,
    "qwen3_moe": 2 * 4 * 3 * 24 * 32,
}
CONVERTED = [name for name in CONFIGS if name not in {*REFUSED, *NATIVE}]


def outputs(model, batch):
    torch.manual_seed(2)  # ViLT shuffles the patches
    return [tensor for tensor in tensors(model(**batch)) if tensor.is_floating_point()]


def largest_difference(model_type: str) -> float:
    """Convert, run, differentiate and merge a tiny model; check all but the difference."""
    model, batch = build(model_type), batch_of(model_type)
    text, before = str(model), copy.deepcopy(model.state_dict())
    dense = outputs(model, batch)
    conversion = convert(model, EMoE(num_experts=2, top_k=2, layers="all"))
    sites = find_sites(build(model_type))
    assert [site.key for site in conversion.sites] == [site.key for site in sites]
    after = outputs(model, batch)
    sum(tensor.square().sum() for tensor in after if tensor.requires_grad).backward()
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        for name in ("keys", "values"):
            gradient = getattr(layer.experts, name).grad
            assert gradient is not None, f"{site.slot}: {name} have no gradient"
            assert gradient.abs().max() > 0, f"{site.slot}: {name} have a gradient of zero"
    merge(model)
    merged = model.state_dict()
    assert list(merged) == list(before)
    assert all(torch.equal(merged[name], before[name]) for name in before)
    assert str(model) == text
    pairs = zip(after, dense, strict=True)
    return max(float((a - d).detach().abs().max()) for a, d in pairs)


@pytest.mark.parametrize("model_type", CONVERTED)
def test_a_converted_model_is_the_dense_one_and_merges_back(model_type):
    assert largest_difference(model_type) <= 1e-4


def test_at_least_95_model_types_are_converted():
    assert len(CONVERTED) >= 95
    assert len(CONFIGS) == 122


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_cause_and_left_as_it_was(model_type):
    model = build(model_type)
    text, before = str(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=REFUSED[model_type]):
        convert(model, EMoE(num_experts=2, top_k=2, layers="all"))
    assert str(model) == text
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("model_type", NATIVE)
def test_a_mixture_is_measured_as_it_is_and_has_no_dense_ffn(model_type):
    model = build(model_type)
    assert find_sites(model) == []
    experts = find_native_experts(model)
    assert {(e.num_experts, e.top_k) for e in experts} == {(4, 2)}
    assert sum(e.weights for e in experts) == NATIVE[model_type]
    before = outputs(model, batch_of(model_type))
    conversion = convert(model, Dense())
    after = outputs(model, batch_of(model_type))
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    idle = sum(e.parameters for e in experts) // 2  # 2 of 4 experts
    assert conversion.active_parameters == count_parameters(model) - idle
    merge(model)
    with pytest.raises(ConfigError, match="finds no dense FFN in a model of type"):
        convert(model, EMoE(num_experts=2, top_k=2, layers="all"))


def test_active_parameters_and_flops_of_a_mixture_by_hand():
    model = build("mixtral")
    expert, router = 3 * 64 * 32, 4 * 32
    attention = 32 * (32 + 16 + 16) + 32 * 32  # 4 heads of 8, 2 of them for keys and values
    total = count_parameters(model)
    assert active_parameters(model) == total - 2 * 2 * expert  # layers, unselected experts
    assert flops_per_token(model) == 2 * 2 * (2 * expert + router + attention)


def test_the_table_of_families_names_exactly_what_is_verified():
    listed = [kind for row in ROWS.values() for kind in row.types]
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(CONFIGS) - set(REFUSED)
    assert all(is_verified(kind) for kind in listed)
    assert family_of_type("bitnet") is None


LOADS = {  # form of task -> the model types that transformers has a class for
    "classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "language_modelling": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "instruct": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "text_to_text": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "domain_generalisation": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}


def test_transformers_has_the_heads_of_the_forms_that_a_row_claims():
    claims = {(kind, form) for row in ROWS.values() for kind in row.types for form in row.forms}
    assert {(kind, form) for kind, form in claims if kind not in LOADS[form]} == set()


@pytest.mark.parametrize("model_type", CONVERTED)
def test_the_lora_targets_of_a_row_are_modules_of_the_model(model_type):
    row = family_of_type(model_type)
    found = {name.rpartition(".")[2] for name, _ in build(model_type).named_modules()}
    assert not row.lora_targets or set(row.lora_targets) & found


SIZED = [name for name in CONVERTED if (row := family_of_type(name)) and row.sizes]


@pytest.mark.parametrize("model_type", SIZED)
def test_a_row_says_whether_the_ffns_are_gated_and_how_wide_they_are(model_type):
    model = build(model_type)
    row = family_of_type(model_type)
    ffn = find_sites(model)[0].read(model)
    sizes = row.sizes_of(model.config.to_dict())
    assert sizes["d_model"] == ffn.keys.shape[1]
    if "moe" not in model_type and "deepseek" not in model_type:
        assert sizes["d_ff"] == ffn.keys.shape[0]
    assert sizes.get("gated", row.gated) == (ffn.ups is not None)


if __name__ == "__main__":  # the list of model types with pattern and largest difference
    for kind in CONVERTED:
        made = build(kind)
        first = find_sites(made)[0]
        kinds = {type(made.get_submodule(n)).__name__ for n in (first.key, first.value)}
        count = "fused gate and up" if first.fused else "three" if first.up else "two"
        form = f"{count}, {' and '.join(kinds)}"
        place = (
            "intermediate and output" if first.slot.endswith("intermediate")
            else "inline" if first.slot == first.key else "whole module"
        )  # fmt: skip
        print(f"| {kind} | {form}, {place} | {largest_difference(kind):.1e} |")
