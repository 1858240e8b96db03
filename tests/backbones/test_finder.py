"""Traps of finding FFN sites: dropouts, shared layers, towers, heads, unknown model types."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from moe_runner import EMoE, convert, merge
from moe_runner.backbones.finder import find_sites
from moe_runner.backbones.proof import tensors
from moe_runner.conversion.counts import moe_layers
from moe_runner.options.errors import ConfigError
from tests.backbones.tiny_configs import batch_of, build

ALL = EMoE(num_experts=2, top_k=2, layers="all", backend="masked")
SPEECH = {"apply_spec_augment": False, "layerdrop": 0.0, "activation_dropout": 0.3}
DROPS = {  # model type -> configuration with a dropout of the neurons; how it is made
    "bart": {"activation_dropout": 0.3},  # functional, inline in the block
    "biogpt": {"activation_dropout": 0.3, "layerdrop": 0.0},
    "whisper": {"activation_dropout": 0.3, "apply_spec_augment": False},
    "hubert": SPEECH,  # a module of its own
    "wav2vec2": SPEECH,
    "funnel": {"activation_dropout": 0.3},
    "xlnet": {"dropout": 0.3},  # one module for neurons and output
    "pvt": {"hidden_dropout_prob": 0.3},
    "t5": {"dropout_rate": 0.3},  # in the module that is replaced
    "t5gemma": {"dropout_rate": 0.3},
    "modernbert": {"mlp_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3},  # of the output only
}


def contiguous(model):
    """Group the neurons in their order, so that both models draw the same random numbers."""
    sites = find_sites(model)
    return {s.key: torch.arange(s.read(model).keys.shape[0]) * 2 // len(s.read(model).keys)
            for s in sites}  # fmt: skip


def run(model, batch):
    torch.manual_seed(5)
    return [tensor for tensor in tensors(model(**batch)) if tensor.is_floating_point()]


@pytest.mark.parametrize("model_type", DROPS)
def test_in_training_the_same_neurons_are_dropped_as_in_the_dense_model(model_type):
    model, batch = build(model_type, **DROPS[model_type]).train(), batch_of(model_type)
    settings = {n: vars(m).get("activation_dropout") for n, m in model.named_modules()}
    dense, still = run(model, batch), run(model.eval(), batch)
    assert any(not torch.equal(a, b) for a, b in zip(dense, still, strict=True))
    convert(model.train(), ALL, assignments=contiguous(model))
    converted = run(model, batch)
    for found, expected in zip(converted, dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    merge(model)
    assert {n: vars(m).get("activation_dropout") for n, m in model.named_modules()} == settings
    for found, expected in zip(run(model, batch), dense, strict=True):
        assert torch.equal(found, expected)


def test_the_dropout_of_a_bart_block_is_0_while_the_layer_has_it():
    model = build("bart", activation_dropout=0.3)
    convert(model, ALL)
    blocks = [*model.encoder.layers, *model.decoder.layers]
    assert [block.activation_dropout for block in blocks] == [0.0] * 4
    assert [layer.experts.dropout for layer in moe_layers(model)] == [0.3] * 4
    merge(model)
    assert [block.activation_dropout for block in blocks] == [0.3] * 4


@pytest.mark.parametrize("model_type", ["opt", "bart", "llama"])
def test_padding_is_left_out_of_the_load(model_type):
    model, batch = build(model_type), batch_of(model_type)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 5:] = 0
    convert(model, EMoE(num_experts=2, top_k=1, layers="all"))
    model(**batch, attention_mask=mask)
    layer = moe_layers(model)[0]
    assert int(layer.routing.load(2).sum()) == int(mask.sum())


@pytest.mark.parametrize("layers", [(0,), "last:1", "last-even:1"])
def test_an_albert_is_converted_in_all_its_layers_or_not_at_all(layers):
    model = build("albert", num_hidden_layers=3)
    text = str(model)
    with pytest.raises(ConfigError, match=r"names 1 of 3 layers that share one FFN; use all"):
        convert(model, EMoE(num_experts=2, top_k=1, layers=layers))
    assert str(model) == text
    conversion = convert(model, EMoE(num_experts=2, top_k=1, layers="all"))
    assert len(conversion.layers) == 1


@pytest.mark.parametrize("model_type", ["phi3", "glm", "modernbert"])
def test_the_first_half_of_a_fused_projection_is_the_gate(model_type):
    model = build(model_type)
    site = find_sites(model)[0]
    ffn, weight = site.read(model), model.get_submodule(site.key).weight
    assert torch.equal(ffn.keys, weight[:64])
    assert torch.equal(ffn.ups, weight[64:])
    x = torch.randn(5, 32)
    torch.testing.assert_close(ffn(x), model.get_submodule(site.slot)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "changes", "gated"),
    [
        ("dinov2", {"use_swiglu_ffn": True}, True),
        ("dinov2", {"use_swiglu_ffn": False}, False),
        ("t5", {"feed_forward_proj": "gated-gelu"}, True),
        ("umt5", {"feed_forward_proj": "relu"}, False),
        ("dinov3_vit", {"use_gated_mlp": True}, True),
    ],
)
def test_variants_of_a_type_are_told_by_their_modules(model_type, changes, gated):
    model, batch = build(model_type, **changes), batch_of(model_type)
    assert {site.up is not None or site.fused for site in find_sites(model)} == {gated}
    dense = run(model, batch)
    convert(model, ALL)
    for found, expected in zip(run(model, batch), dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "stacks"),
    [
        ("clip", {"vision_model", "text_model"}),
        ("blip", {"vision_model", "text_model"}),
        ("llava", {"vision_tower", "language_model"}),
        ("bart", {"encoder", "decoder"}),
        ("opt", {"decoder"}),
        ("swin", {"encoder"}),
    ],
)
def test_towers_are_stacks_of_their_own(model_type, stacks):
    model = build(model_type)
    conversion = convert(model, EMoE(num_experts=2, top_k=1, layers="last:1"))
    assert {site.stack for site in conversion.sites} == stacks
    assert [site.layer for site in conversion.sites] == [1] * len(stacks)


def test_a_decoder_that_is_a_bert_is_the_decoder():
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 60,
        "num_attention_heads": 4, "pad_token_id": 0,
    }  # fmt: skip
    decodes = hf.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    model = hf.EncoderDecoderModel(
        encoder=hf.BertModel(hf.BertConfig(**sizes)), decoder=hf.BertLMHeadModel(decodes)
    ).eval()
    conversion = convert(model, EMoE(num_experts=2, top_k=1, layers="last:1"))
    assert [(site.stack, site.layer) for site in conversion.sites] == [
        ("encoder", 1),
        ("decoder", 1),
    ]
    ids = torch.full((2, 8), 5)
    long, short = torch.ones_like(ids), torch.ones(2, 4, dtype=torch.long)
    model(
        input_ids=ids, attention_mask=long, decoder_input_ids=ids[:, :4],
        decoder_attention_mask=short,
    )  # fmt: skip
    assert [int(layer.routing.load(2).sum()) for layer in moe_layers(model)] == [16, 8]


def share_modules(model):
    """As MobileLLM does: a layer has the FFN of the one before."""
    model.layers[1].mlp = model.layers[0].mlp


def share_layers(model):
    model.layers[1] = model.layers[0]


def tie_weights(model):
    model.layers[1].mlp.up_proj.weight = model.layers[0].mlp.up_proj.weight


@pytest.mark.parametrize("share", [share_modules, share_layers, tie_weights])
def test_layers_that_share_an_ffn_or_a_weight_of_it_are_refused(share):
    model = build("llama")
    share(model)
    text, expected = str(model), run(model, batch_of("llama"))
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.\w+\.weight and layers\.1\.mlp\.\w+\.weight are one par"
    ) as caught:
        convert(model, ALL)
    assert "\n" not in str(caught.value)
    assert str(model) == text
    assert all(map(torch.equal, run(model, batch_of("llama")), expected))


@pytest.mark.parametrize(
    ("model_type", "not_taken"),
    [
        ("siglip", "vision_model.head.mlp"),
        ("blip", "text_model.pooler.dense"),
        ("swinv2", "encoder.layers.1.blocks.0.attention.self.continuous_position_bias_mlp"),
        ("xmod", "encoder.layer.0.output.adapter_modules.en_XX.dense1"),
        ("llava", "multi_modal_projector.linear_1"),
    ],
)
def test_what_only_looks_like_the_ffn_of_a_block_is_left_alone(model_type, not_taken):
    model = build(model_type)
    part = model.get_submodule(not_taken)  # it is there
    convert(model, ALL)
    assert model.get_submodule(not_taken) is part


def test_activations_that_only_some_neurons_pass_are_refused():
    model = build("gemma3n_text", activation_sparsity_pattern=[0.95, 0.0])
    with pytest.raises(ValueError, match="computes _gaussian_topk between its projections"):
        convert(model, ALL)


def test_a_deit_folder_loads_for_another_image_size_and_is_converted(tmp_path):
    from transformers import DeiTImageProcessor

    from moe_runner.backbones.drop_path import add_drop_path
    from moe_runner.backbones.loading import load_image_classifier
    from moe_runner.backbones.weights import find_weights
    from moe_runner.options.model import Model

    build("deit").save_pretrained(tmp_path)
    DeiTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 2}
    options = Model(name="deit", family="vit", path=str(tmp_path), **sizes)
    model = load_image_classifier(options, find_weights(options), ("a", "b"), 32).model
    add_drop_path(model, 0.5)
    pixels = torch.randn(2, 3, 32, 32)
    dense = model.eval()(pixels).logits
    conversion = convert(model, ALL)
    assert [site.family for site in conversion.sites] == ["vit", "vit"]
    torch.testing.assert_close(model(pixels).logits, dense, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------- unknown model types


class ToyConfig(PretrainedConfig):
    model_type = "toy_of_the_finder"

    def __init__(self, **options):
        self.vocab_size, self.hidden_size = 50, 16
        super().__init__(**options)


class Narrow(nn.Module):
    """An FFN by other names."""

    def __init__(self):
        super().__init__()
        self.expand, self.squash, self.contract = nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)

    def forward(self, x):
        return self.contract(self.squash(self.expand(x)))


class Scaled(Narrow):
    """Something more than an FFN, as its code says."""

    def forward(self, x):
        return self.contract(self.squash(self.expand(x)) * torch.arange(32.0))


class Doubled(nn.Linear):
    """Something else than its weight says, hidden from whoever reads the FFN's code."""

    def forward(self, x):
        return 2 * super().forward(x)


class Hidden(Narrow):
    def __init__(self):
        super().__init__()
        self.contract = Doubled(32, 16)


class Inline(nn.Module):
    """A block that holds its FFN itself, with an activation that is a plain function."""

    def __init__(self):
        super().__init__()
        self.mix, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.act = functional.gelu

    def forward(self, x):
        x = x + self.mix(x.mean(1, keepdim=True))
        return x + self.second(self.act(self.first(self.norm(x))))


class HardCoded(Inline):
    def forward(self, x):
        return x + self.second(functional.gelu(self.first(self.norm(x) + self.mix(x))))


class Around(nn.Module):
    """A block around an FFN."""

    def __init__(self, ffn, calls=1):
        super().__init__()
        self.mix, self.inner, self.calls = nn.Linear(16, 16), ffn, calls

    def forward(self, x):
        x = x + self.mix(x.mean(1, keepdim=True))
        for _ in range(self.calls):
            x = x + self.inner(x)
        return x


class Toy(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, *blocks):
        super().__init__(ToyConfig())
        self.embed, self.rungs = nn.Embedding(50, 16), nn.ModuleList(blocks)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for rung in self.rungs:
            x = rung(x)
        return (x,)


@pytest.mark.parametrize("block", [lambda: Around(Narrow()), Inline])
def test_an_unknown_model_type_proves_itself(block):
    torch.manual_seed(0)
    model = Toy(block(), block()).eval()
    ids = torch.randint(50, (2, 7))
    before, dense, text = copy.deepcopy(model.state_dict()), model(ids)[0], str(model)
    conversion = convert(model, ALL)
    assert [site.family for site in conversion.sites] == ["toy_of_the_finder"] * 2
    torch.testing.assert_close(model(ids)[0], dense, rtol=1e-5, atol=1e-5)
    merge(model)
    assert torch.equal(model(ids)[0], dense)
    assert str(model) == text
    assert list(model.state_dict()) == list(before)
    assert all(getattr(b, "act", functional.gelu) is functional.gelu for b in model.rungs)


@pytest.mark.parametrize(
    ("block", "cause"),
    [
        (lambda: Around(Scaled()), r"rungs\.0 computes torch\.arange between its projections"),
        (lambda: Around(Hidden()), r"does not compute its FFN's equation: on a random batch the"),
        (lambda: Around(Narrow(), calls=2), r"expand is called 2 times in a forward pass, not"),
        (lambda: Around(Narrow(), calls=0), r"expand is called 0 times in a forward pass, not"),
        (HardCoded, r"names its activation function in the code"),
        (lambda: Around(nn.Linear(16, 16)), "no known FFN sites"),
    ],
)
def test_a_model_that_computes_something_else_is_refused_and_left_as_it_was(block, cause):
    torch.manual_seed(0)
    model = Toy(block()).train()
    parameters, text = dict(model.named_parameters()), str(model)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=cause):
        convert(model, ALL)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert str(model) == text
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
