"""Which parameters train and how fast: exact names for every method, tuning and protocol."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from moe_runner import train
from moe_runner.conversion.convert import convert, merge
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.protocol import Protocol
from moe_runner.options.training import Tuning
from moe_runner.runs.store import RunFolder
from moe_runner.training import fit
from moe_runner.training.callbacks import ShowProgress
from moe_runner.training.tuning import apply_tuning
from tests.methods.rows import CONVERTING, ROWS, small

CONF = Path(__file__).parents[2] / "conf"
PROTOCOLS = {
    name: Protocol(**yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text()))
    for name in ("paper", "reference")
}
TARGETS = {"bert": ("query", "value"), "gpt2": ("c_attn",), "t5": ("q", "v"),
           "llama": ("q_proj", "v_proj")}  # fmt: skip
LAYER = {"bert": "bert.encoder.layer.{}", "gpt2": "transformer.h.{}", "llama": "model.layers.{}"}
SLOT = {"bert": "intermediate", "gpt2": "mlp.c_fc", "llama": "mlp"}
ADAPTED = {"bert": ["attention.self.query", "attention.self.value"], "gpt2": ["attn.c_attn"],
           "llama": ["self_attn.q_proj", "self_attn.v_proj"]}  # fmt: skip
HEAD = {"bert": {"classifier.weight", "classifier.bias"}, "gpt2": {"score.weight"},
        "llama": {"score.weight"}}  # fmt: skip
OUTSIDE = {
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias"},
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    "llama": {"model.norm.weight"},
}
BLOCK = {  # what a block has beside its FFN; LoRA's targets are named `base_layer` once adapted
    "bert": [
        *(f"attention.self.{n}.{p}" for n in ("query.base_layer", "key", "value.base_layer")
          for p in ("weight", "bias")),
        *(f"{n}.{p}" for n in ("attention.output.dense", "attention.output.LayerNorm",
          "output.LayerNorm") for p in ("weight", "bias")),
    ],
    "gpt2": [f"{n}.{p}" for n in ("ln_1", "ln_2", "attn.c_attn.base_layer", "attn.c_proj")
             for p in ("weight", "bias")],
    "llama": [f"{n}.weight" for n in ("self_attn.q_proj.base_layer", "self_attn.k_proj",
              "self_attn.v_proj.base_layer", "self_attn.o_proj", "input_layernorm",
              "post_attention_layernorm")],
}  # fmt: skip
FFN = {
    "bert": ["intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight",
             "output.dense.bias"],
    "gpt2": ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"],
    "llama": ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
}  # fmt: skip
EXPERTS = {family: ["keys", "values", "key_bias", "output_bias"] for family in ("bert", "gpt2")}
EXPERTS["llama"] = ["keys", "values", "ups"]


def new_names(name: str, family: str) -> set[str]:
    """List by hand what a method adds to layer 1."""
    row = ROWS[name]
    experts = [f"experts.{n}" for n in EXPERTS[family]]
    own = [f"router.{n}" for n in row.router] + (experts if row.experts == "copies" else [])
    for part in row.beside:
        own += [f"beside.{n}" for n in (experts if part == "experts" else [part])]
    return {f"{LAYER[family].format(1)}.{SLOT[family]}.{n}" for n in own}


def new_scales(name: str, family: str) -> dict[str, float]:
    """Give the rate of each of them: a tenth, times their own."""
    own = {True: 0.1 * ROWS[name].beside_lr_scale, False: 0.1}
    return {n: own[".beside." in n] for n in new_names(name, family)}


def lora_names(family: str) -> set[str]:
    return {
        f"{LAYER[family].format(i)}.{module}.lora_{part}.default.weight"
        for i in range(4)
        for module in ADAPTED[family]
        for part in "AB"
    }


def block_names(name: str, family: str) -> set[str]:
    """List by hand the whole block 1 of a converted model, or block 2 of a dense one, less LoRA."""
    if name not in CONVERTING:  # blocks=last-even:1 of four layers
        return {f"{LAYER[family].format(2)}.{n}" for n in BLOCK[family] + FFN[family]}
    block = LAYER[family].format(1)
    experts = {f"{block}.{SLOT[family]}.experts.{n}" for n in EXPERTS[family]}
    return {f"{block}.{n}" for n in BLOCK[family]} | experts | new_names(name, family)


def read_tuning(name: str, **changes) -> Tuning:
    options = yaml.safe_load((CONF / "tuning" / f"{name}.yaml").read_text())
    options["learning_rates"] = tuple(options["learning_rates"])
    return Tuning(**{**options, **changes})


def tune(model, family: str, name: str, tuning: str, protocol: str) -> dict[str, float]:
    method = small(name)
    if hasattr(method, "layers"):
        method = dataclasses.replace(method, layers=(1,))
    options = PROTOCOLS[protocol]
    conversion = convert(model, method, protocol=options)
    scales = apply_tuning(
        model,
        read_tuning(tuning),
        TARGETS[family],
        head=HEAD.get(family, set()),
        conversion=conversion,
        protocol=options,
    )
    assert scales.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    return scales


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_lora_trains_lora_and_head_and_new_modules_at_a_tenth(family, name, protocol, tiny_model):
    expected = dict.fromkeys(lora_names(family) | HEAD[family], 1.0)
    if protocol == "reference" and family != "llama":
        rest = OUTSIDE[family] if ROWS[name].code == "emoe" else set()
        if name == "gmoe":
            rest = rest | block_names(name, family)
        expected |= dict.fromkeys(rest, 0.1)
    expected |= new_scales(name, family)
    assert tune(tiny_model(family), family, name, "lora", protocol) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_lora_block_trains_the_block_whole(family, name, protocol, tiny_model):
    extras = protocol == "reference" and family != "llama" and ROWS[name].code != "hypermoe"
    rest = block_names(name, family) | (OUTSIDE[family] if extras else set())
    expected = dict.fromkeys(rest, 0.1 if extras else 1.0)
    expected |= dict.fromkeys(lora_names(family) | HEAD[family], 1.0)
    expected |= new_scales(name, family)
    assert tune(tiny_model(family), family, name, "lora_block", protocol) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_full_trains_everything_at_one_rate_but_a_hypernetwork(family, name, protocol, tiny_model):
    model = tiny_model(family)
    scales = tune(model, family, name, "full", protocol)
    own = {True: ROWS[name].beside_lr_scale, False: 1.0}
    assert scales == {n: own[".beside." in n] for n, _ in model.named_parameters()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_emoe_with_lora_trains_what_dense_does_unless_by_reference(family, protocol, tiny_model):
    shapes = []
    for name in ("dense", "emoe"):
        model = tiny_model(family)
        tune(model, family, name, "lora", protocol)
        shapes.append({n: p.shape for n, p in model.named_parameters() if p.requires_grad})
    dense, emoe = shapes
    if protocol == "paper" or family == "llama":
        assert emoe == dense
    else:
        extra = {"t5": {f"transformer.{s}.final_layer_norm.weight" for s in ("encoder", "decoder")}}
        head = {"classification_head"} if family == "t5" else set()  # not named as head here
        more = {n for n in emoe.keys() - dense.keys() if n.split(".")[0] not in head}
        assert more == {**OUTSIDE, **extra}[family]
        assert dense.items() <= emoe.items()


def test_the_hypernetwork_of_all_layers_trains_once(tiny_model):
    model = tiny_model("bert")
    conversion = convert(model, small("hypermoe"))
    scales = apply_tuning(
        model, read_tuning("lora"), TARGETS["bert"], head=HEAD["bert"], conversion=conversion,
        protocol=Protocol(),
    )  # fmt: skip
    shared = [name for name in scales if ".hypernet.down.weight" in name]
    assert shared == ["bert.encoder.layer.0.intermediate.beside.hypernet.down.weight"]
    assert scales[shared[0]] == 0.1 * 0.25


@pytest.mark.parametrize("tuning", ["full", "lora", "lora_block"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "switch"])
def test_the_hypernetwork_s_scale_changes_no_other_rate(family, protocol, tuning, tiny_model):
    found = []
    for scale in (1.0, 0.03, "auto"):
        torch.manual_seed(3)
        model = tiny_model(family)
        conversion = convert(
            model,
            small("hypermoe", family, hypernet_lr_scale=scale),
            protocol=PROTOCOLS[protocol],
        )
        found.append(
            apply_tuning(
                model, read_tuning(tuning), {**TARGETS, "switch": ("q", "v")}[family], head=set(),
                conversion=conversion, protocol=PROTOCOLS[protocol],
            )
        )  # fmt: skip
    plain, fixed, derived = found
    assert plain.keys() == fixed.keys() == derived.keys()
    hyper = {n for n in plain if ".beside." in n}
    assert {n.partition(".beside.")[2] for n in hyper} == set(ROWS["hypermoe"].beside)
    assert (
        {n: plain[n] for n in plain if n not in hyper}
        == ({n: fixed[n] for n in plain if n not in hyper})
        == {n: derived[n] for n in plain if n not in hyper}
    )
    assert {round(fixed[n] / plain[n], 9) for n in hyper} == {0.03}
    stacks = {derived[n] / plain[n] for n in hyper}
    apart = protocol == "reference" and family == "switch"  # a hypernetwork per stack
    assert len({round(scale, 9) for scale in stacks}) == (2 if apart else 1)
    assert all(0 < scale < 1 for scale in stacks)


@pytest.mark.parametrize("name", ["moe", "moe_share", "moe_adapter", "hypermoe"])
def test_experts_and_router_of_a_switch_are_pretrained_and_not_new(name, tiny_model):
    slots = [f"{stack}.block.{i}.layer.{last}.mlp" for stack, last in (("encoder", 1),
             ("decoder", 2)) for i in (1, 3)]  # fmt: skip
    pretrained = {f"{slot}.{n}" for slot in slots
                  for n in ("router.weight", "experts.keys", "experts.values")}  # fmt: skip
    for tuning, rate in (("lora", None), ("lora_block", 1.0)):
        model = tiny_model("switch")
        conversion = convert(model, small(name, "switch"))
        scales = apply_tuning(
            model, read_tuning(tuning), ("q", "v"), head=set(), conversion=conversion,
            protocol=Protocol(),
        )  # fmt: skip
        assert pretrained <= {n for n, _ in model.named_parameters()}
        assert {scales.get(n) for n in pretrained} == {rate}  # None: frozen
        beside = {n: scale for n, scale in scales.items() if ".beside." in n}
        assert set(beside.values()) == (
            set() if name == "moe" else {0.1 * ROWS[name].beside_lr_scale}
        )
        assert not {n for n, scale in scales.items() if scale == 0.1} - beside.keys()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_lora_starts_as_the_model_without_it(family, name, tiny_model, tiny_batch):
    plain, adapted = tiny_model(family), tiny_model(family)
    torch.manual_seed(3)
    convert(plain, method := small(name))
    torch.manual_seed(3)
    conversion = convert(adapted, method)
    apply_tuning(
        adapted, read_tuning("lora"), TARGETS[family], head=set(), conversion=conversion,
        protocol=Protocol(),
    )  # fmt: skip
    adapted.eval()
    batch = tiny_batch(family)
    with torch.no_grad():
        assert torch.equal(adapted(**batch).logits, plain(**batch).logits)
        second = [p for n, p in adapted.named_parameters() if ".lora_B." in n]
        assert len(second) >= 4
        assert not any(p.any() for p in second)
        for parameter in second:
            parameter.add_(0.5)
        assert not torch.allclose(adapted(**batch).logits, plain(**batch).logits, atol=1e-3)


def test_the_learning_rates_of_the_option_files():
    assert read_tuning("full").new_modules_lr_scale == 1.0
    for name in ("lora", "lora_block"):
        tuning = read_tuning(name)
        assert tuning.new_modules_lr_scale == 0.1
        assert (tuning.rank, tuning.alpha, tuning.dropout) == (8, 16, 0.1)
        assert tuning.learning_rates == (2e-4, 3e-4, 5e-4)
    assert read_tuning("full").learning_rates == (2e-5, 3e-5, 5e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("tuning", ["lora", "lora_block"])
@pytest.mark.parametrize("name", ["emoe", "gmoe", "hypermoe"])
def test_an_update_moves_exactly_what_trains_at_lr_and_a_tenth(
    name, tuning, protocol, make_settings, only_run, tmp_path
):
    settings = make_settings("bert", dataclasses.replace(small(name), layers=(1,)))
    settings = dataclasses.replace(
        settings, tuning=read_tuning(tuning, rank=2), protocol=PROTOCOLS[protocol]
    )
    run, resources = only_run(settings), train.find_resources(settings)
    ready = fit.build(run, resources)
    model, scales = ready.backbone.model, ready.lr_scales
    folder = RunFolder(tmp_path)
    trainer = fit.make_trainer(
        run, folder, resources, ready, [], [], ShowProgress("", ("accuracy",))
    )
    optimizer = trainer.create_optimizer()
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    lr = run.trainer.learning_rate
    assert rates == {n: lr * scale for n, scale in scales.items()}
    known = {1.0, 0.1, round(0.1 * ROWS[name].beside_lr_scale, 6)}
    assert {round(rate / lr, 6) for rate in rates.values()} <= known
    assert {rates[n] for n in ready.backbone.head} == {lr}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.tensor([[2, 8, 9, 10, 3, 5], [2, 11, 12, 13, 14, 3]])
    model.train()
    for _ in range(2):  # in the first update the gradient of LoRA's A is zero: B is
        optimizer.zero_grad()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        trainer.compute_loss(model, {**inputs, "labels": torch.tensor([0, 1])}).backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    still = {n for n in scales if n.endswith("key.bias")}  # softmax does not see it
    assert scales.keys() - moved <= still
    assert moved <= scales.keys()


def test_dense_needs_no_block_and_emoe_none_named(make_settings, only_run):
    settings = make_settings("bert", EMoE(num_experts=4, top_k=2, layers=(3,)))
    settings = dataclasses.replace(settings, tuning=read_tuning("lora_block", blocks=None))
    ready = fit.build(only_run(settings), train.find_resources(settings))
    whole = {n.split(".")[3] for n in ready.lr_scales if n.endswith("output.LayerNorm.weight")}
    assert whole == {"3"}
    settings = dataclasses.replace(
        settings, method=Dense(), tuning=read_tuning("lora_block", blocks=(0, 1))
    )
    ready = fit.build(only_run(settings), train.find_resources(settings))
    whole = {n.split(".")[3] for n in ready.lr_scales if n.endswith("output.LayerNorm.weight")}
    assert whole == {"0", "1"}


@pytest.mark.parametrize("blocks", ["last-even:1", None])
@pytest.mark.parametrize("convert_at", ["train", "eval", "both"])
def test_the_blocks_that_are_converted_train_whenever_they_are(
    convert_at, blocks, make_settings, only_run
):
    method = EMoE(num_experts=4, top_k=2, layers=(1, 3), convert_at=convert_at)
    settings = make_settings("bert", method)
    settings = dataclasses.replace(settings, tuning=read_tuning("lora_block", blocks=blocks))
    ready = fit.build(only_run(settings), train.find_resources(settings))
    whole = {n.split(".")[3] for n in ready.lr_scales if n.endswith("output.LayerNorm.weight")}
    assert whole == {"1", "3"}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_lora_leaves_out_what_trains_whole_as_the_head(family, tiny_model):
    model = tiny_model(family)
    head = {"bert": HEAD["bert"] | OUTSIDE["bert"], "gpt2": HEAD["gpt2"]}[family]
    targets = {"bert": ("query", "dense", "classifier"), "gpt2": ("c_attn", "score")}[family]
    scales = apply_tuning(
        model, read_tuning("lora"), targets, head=head, conversion=convert(model, Dense()),
        protocol=Protocol(),
    )  # fmt: skip
    assert head <= scales.keys()
    assert all(n in head or ".lora_" in n for n in scales)
    assert {n.split(".lora_")[0] for n in scales.keys() - head} == {
        n for n, m in model.named_modules() if hasattr(m, "lora_A")
    }
    assert not any(hasattr(model.get_submodule(n.rpartition(".")[0]), "lora_A") for n in head)


FFN_TARGETS = {"bert": ("query", "dense"), "gpt2": ("c_attn", "c_proj"),
               "llama": ("q_proj", "up_proj"), "t5": ("q", "wi")}  # fmt: skip


@pytest.mark.parametrize("convert_at", ["train", "eval", "both"])
@pytest.mark.parametrize("family", FFN_TARGETS)
def test_lora_on_networks_does_not_stand_in_the_way_of_their_conversion(
    family, convert_at, tiny_model, tiny_batch, caplog
):
    model = tiny_model(family)
    method = EMoE(num_experts=4, top_k=4, layers=(1,), convert_at=convert_at)
    now, later = {"eval": (Dense(), method), "train": (method, Dense())}.get(
        convert_at, (method, None)
    )
    conversion = convert(model, now)
    apply_tuning(
        model, read_tuning("lora"), FFN_TARGETS[family], head=set(), conversion=conversion,
        protocol=Protocol(), method=method,
    )  # fmt: skip
    first = model.eval()(**tiny_batch(family)).logits
    adapted = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
    networks = {n for n in adapted if ".mlp." in n or "DenseReluDense" in n or n.endswith(
        ("intermediate.dense", "output.dense")) and "attention" not in n}  # fmt: skip
    assert adapted - networks
    assert bool(networks) == (later is None)  # blocks that stay dense
    assert ("model.lora_targets" in caplog.text) == (later is not None)
    if later is None:
        return
    merge(model)
    converted = convert(model, later)
    assert [site.layer for site in converted.sites] == ([1] * len(converted.sites))
    assert bool(converted.sites) == (convert_at == "eval")
    torch.testing.assert_close(
        model(**tiny_batch(family)).logits, first
    )  # all experts: the dense model
