"""An upcycled model becomes a mixture of plain transformers, or what does not fit is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers as hf
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from moe_runner import EMoE, GMoE, MoE, convert, to_standard
from moe_runner.backbones.lora import add_lora, merge_lora
from moe_runner.conversion.counts import moe_layers
from moe_runner.conversion.record import conversion_of
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.options.mixtures import MIXTURES
from moe_runner.options.settings import parse
from moe_runner.options.training import Tuning
from moe_runner.registry import METHODS
from tests.methods.rows import CONVERTING, small
from tests.training.test_command import moe_run

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-3,
}  # fmt: skip
METHOD = {"num_experts", "top_k", "layers"}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}


def upcycled(name: str, **options):
    """A model of transformers by the name of its class, converted and as after much training.

    Args:
        name: of the class.
        **options: of the method where it has them, else of the configuration.
    """
    of_method = {key: options.pop(key) for key in METHOD & options.keys()}
    model_class = getattr(hf, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SIZES | options)).eval()
    convert(model, MoE(**{"num_experts": 4, "top_k": 2} | of_method))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def unscaled(model):
    """Weigh by the softmax over all experts, as a Switch Transformer does."""
    for layer in moe_layers(model):
        layer.weighting = "probability"
    return model


CASES: dict[str, tuple[str, Callable]] = {  # -> the class it becomes, and how it is made
    "llama": (
        "MixtralForCausalLM",
        lambda: upcycled("LlamaForCausalLM", rope_parameters=LINEAR),
    ),
    "llama, head_dim": ("MixtralForCausalLM", lambda: upcycled("LlamaForCausalLM", head_dim=6)),
    "llama, one of four": ("MixtralForCausalLM", lambda: upcycled("LlamaForCausalLM", top_k=1)),
    "llama, all of three": (
        "MixtralForCausalLM",
        lambda: upcycled("LlamaForCausalLM", num_experts=3, top_k=3),
    ),
    "llama, one expert": (
        "MixtralForCausalLM",
        lambda: upcycled("LlamaForCausalLM", num_experts=1, top_k=1),
    ),
    "llama, tied": (
        "MixtralForCausalLM",
        lambda: upcycled("LlamaForCausalLM", tie_word_embeddings=True),
    ),
    "llama, gelu": ("MixtralForCausalLM", lambda: upcycled("LlamaForCausalLM", hidden_act="gelu")),
    "llama, classifier": (
        "MixtralForSequenceClassification",
        lambda: upcycled("LlamaForSequenceClassification", num_labels=3),
    ),
    "llama, bare": ("MixtralModel", lambda: upcycled("LlamaModel")),
    "mistral, window": (
        "MixtralForCausalLM",
        lambda: upcycled("MistralForCausalLM", sliding_window=4),
    ),
    "mistral": ("MixtralForCausalLM", lambda: upcycled("MistralForCausalLM", sliding_window=None)),
    "qwen3": ("Qwen3MoeForCausalLM", lambda: upcycled("Qwen3ForCausalLM", head_dim=6)),
    "qwen3, two layers": (
        "Qwen3MoeForCausalLM",
        lambda: upcycled("Qwen3ForCausalLM", layers=(1, 2), num_experts=3),
    ),
    "qwen3, biases and tied": (
        "Qwen3MoeForCausalLM",
        lambda: upcycled(
            "Qwen3ForCausalLM", attention_bias=True, tie_word_embeddings=True, top_k=1
        ),
    ),
    "qwen3, weights below 1": (
        "Qwen3MoeForCausalLM",
        lambda: unscaled(upcycled("Qwen3ForCausalLM")),
    ),
    "qwen3, classifier": (
        "Qwen3MoeForSequenceClassification",
        lambda: upcycled("Qwen3ForSequenceClassification", num_labels=3, layers="last:1"),
    ),
}

# Run by an interpreter that ignores PYTHONPATH, elsewhere: it knows transformers only.
PLAIN = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
inputs, told, outputs = load_file("inputs.safetensors"), {}, {}
for folder, name in json.load(open("folders.json")).items():
    automatic = "AutoModel" + (name[name.index("For"):] if "For" in name else "")
    model, info = getattr(transformers, automatic).from_pretrained(folder, output_loading_info=True)
    told[folder] = [type(model).__name__, *(sorted(map(str, keys)) for keys in info.values())]
    with torch.no_grad():
        outputs[folder] = model.eval()(**inputs)[0].contiguous()
assert "moe_runner" not in sys.modules
save_file(outputs, "outputs.safetensors")
json.dump(told, open("told.json", "w"))
"""


def batch() -> dict[str, torch.Tensor]:
    """Ragged rows with padding on the right."""
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch())[0]


@pytest.fixture(scope="module")
def loaded_plainly(tmp_path_factory) -> Callable:
    """Write every case, load all of them in one process that has transformers only."""
    where = tmp_path_factory.mktemp("plain")
    for number, (_, make) in enumerate(CASES.values()):
        size = "10KB" if number % 2 else "5GB"  # in many files, or in one
        to_standard(make()).save_pretrained(where / str(number), max_shard_size=size)
        assert (where / str(number) / "model.safetensors.index.json").exists() == bool(number % 2)
    save_file(batch(), where / "inputs.safetensors")
    folders = {str(number): name for number, (name, _) in enumerate(CASES.values())}
    (where / "folders.json").write_text(json.dumps(folders))
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN], cwd=where, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((where / "told.json").read_text())
    found = load_file(where / "outputs.safetensors")

    def build(case: str):
        number = str(list(CASES).index(case))
        return told[number], found[number]

    return build


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_load_every_weight_and_compute_the_same(case, loaded_plainly):
    name, make = CASES[case]
    (found, *lacking), theirs = loaded_plainly(case)
    assert found == name
    assert lacking == [[], [], [], []]  # missing, unexpected, mismatched keys, errors
    expected = outputs(make())
    kept = batch()["attention_mask"].bool()
    if expected.ndim == 3:  # what a padding token becomes is nobody's concern
        theirs, expected = theirs[kept], expected[kept]
    scale = expected.abs().max()
    torch.testing.assert_close(theirs / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_cases_tell_experts_and_routers_apart(case):
    """With equal experts, or a constant choice, a mistake would not show."""
    model = CASES[case][1]()
    before = outputs(model)
    for layer in moe_layers(model):
        used = layer.routing.load(layer.experts.num_experts)
        if layer.top_k < layer.experts.num_experts:
            assert (used > 0).sum() > layer.top_k
    with torch.no_grad():
        for layer in moe_layers(model):
            for tensor in (layer.experts.keys, layer.experts.values, layer.experts.ups):
                tensor.copy_(tensor.roll(1, 0))
    moved = (outputs(model) - before).abs().max() / before.abs().max()
    assert moved > 1e-2 or moe_layers(model)[0].experts.num_experts == 1


def test_the_published_names_are_written(tmp_path):
    """Other programs read them: they know no stacked experts."""
    to_standard(upcycled("LlamaForCausalLM")).save_pretrained(tmp_path / "mixtral")
    names = load_file(tmp_path / "mixtral" / "model.safetensors").keys()
    block = "model.layers.0.block_sparse_moe"
    assert {f"{block}.gate.weight", f"{block}.experts.3.w2.weight"} <= names
    to_standard(upcycled("Qwen3ForCausalLM", layers=(1,))).save_pretrained(tmp_path / "qwen")
    names = load_file(tmp_path / "qwen" / "model.safetensors").keys()
    assert {"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.3.up_proj.weight"} < names
    assert "model.layers.0.mlp.up_proj.weight" in names
    config = json.loads((tmp_path / "qwen" / "config.json").read_text())
    assert config["mlp_only_layers"] == [0, 2, 3]
    assert config["norm_topk_prob"] is True


def test_the_converted_model_is_not_changed_and_generates_the_same():
    model = upcycled("LlamaForCausalLM")
    model.generation_config.repetition_penalty = 1.5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = to_standard(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert conversion_of(model) is not None
    assert conversion_of(made) is None
    assert not made.training
    ours, theirs = (
        each.generate(batch()["input_ids"][:1], max_new_tokens=12, do_sample=False)
        for each in (model, made)
    )
    assert torch.equal(ours, theirs)
    assert made.generation_config.repetition_penalty == 1.5


def test_labels_and_a_grown_vocabulary_go_along():
    model = upcycled("LlamaForSequenceClassification", num_labels=3)
    model.config.id2label, model.config.problem_type = {0: "a", 1: "b", 2: "c"}, "regression"
    model.resize_token_embeddings(64)
    made = to_standard(model)
    assert made.config.vocab_size == 64
    assert (made.config.id2label, made.config.problem_type) == (
        {0: "a", 1: "b", 2: "c"},
        "regression",
    )
    torch.testing.assert_close(outputs(made), outputs(model), rtol=1e-5, atol=1e-5)


def test_half_precision_is_kept():
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)).to(torch.bfloat16).eval()
    convert(model, MoE(num_experts=4, top_k=4))  # all: no choice that could fall differently
    made = to_standard(model)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(outputs(made), outputs(model), rtol=0.05, atol=0.01)


def test_lora_has_to_be_merged_first():
    model = upcycled("LlamaForCausalLM")
    lora = Tuning(name="lora", learning_rate=1e-3, learning_rates=(), rank=2, alpha=4, dropout=0.0)
    add_lora(model, lora, ("q_proj",))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = outputs(model)
    with pytest.raises(ValueError, match="lora_A.* merge LoRA first"):
        to_standard(model)
    merge_lora(model)
    torch.testing.assert_close(outputs(to_standard(model)), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ refusals


def converted(name: str, method, **options):
    model_class = getattr(hf, name)
    model = model_class(model_class.config_class(**SIZES | options)).eval()
    convert(model, method)
    return model


def changed(name: str = "LlamaForCausalLM", **settings):
    """An upcycled model whose layers are not `moe`'s any more."""
    model = upcycled(name)
    for layer in moe_layers(model):
        for key, value in settings.items():
            setattr(layer, key, value)
    return model


@pytest.mark.parametrize("name", [name for name in CONVERTING if name not in ("moe", "toy")])
def test_other_methods_are_refused_by_what_they_have(name):
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, "intermediate_size": 32}))
    convert(model, small(name))
    gap = METHODS[name].not_standard
    with pytest.raises(ConfigError, match=f"it has {gap}; use export=moe$") as caught:
        to_standard(model)
    assert len(caught.value.problems) == 1


REFUSED = {
    "biased attention": (
        lambda: converted("LlamaForCausalLM", MoE(), attention_bias=True),
        r"attention_bias=true .* does not fit Mixtral, .* use export=moe",
    ),
    "biased FFN": (
        lambda: converted("LlamaForCausalLM", MoE(), mlp_bias=True),
        "mlp_bias=true in the model's config.json does not fit Mixtral",
    ),
    "windows in some layers": (
        lambda: converted("Qwen3ForCausalLM", MoE(), use_sliding_window=True, max_window_layers=2),
        "use_sliding_window=true in the model's config.json does not fit Qwen3Moe",
    ),
    "some layers": (
        lambda: converted("LlamaForCausalLM", MoE(layers=(1, 2))),
        r"method.layers=\[1,2\] converts 2 of 4 layers, and every layer of Mixtral is a mixture; "
        "use method.layers=all or export=moe",
    ),
    "Qwen2": (
        lambda: converted("Qwen2ForCausalLM", MoE()),
        r"Qwen2-MoE adds a shared expert .*\(Qwen2ForCausalLM\)",
    ),
    "another family": (
        lambda: converted("GPTNeoXForCausalLM", MoE()),
        "no mixture of transformers is an upcycled gpt_neox",
    ),
    "a head": (
        lambda: converted_as("LlamaForPairs"),
        "no Mixtral with the head of LlamaForPairs; use export=moe",
    ),
    "weights that do not sum to 1": (
        lambda: changed(weighting="probability"),
        "the weights of the selected experts do not sum to 1, which Mixtral does not know",
    ),
    "no weights": (lambda: changed(weighting="ones"), "summed without weights"),
    "another router": (
        lambda: changed(router=torch.nn.Linear(16, 4)),
        "the router is a Linear, which Mixtral does not know; use export=moe",
    ),
    "something beside": (
        lambda: changed("Qwen3ForCausalLM", beside=torch.nn.Identity()),
        "something stands beside the experts, which Qwen3Moe does not know",
    ),
    "worst experts": (lambda: changed(select="bottom"), "experts are selected by select=bottom"),
    "scaled weights": (lambda: changed(scale=2.0), "scaled by 2, which Mixtral"),
}


def converted_as(name: str):
    model = upcycled("LlamaForCausalLM")
    model.__class__ = type(name, (hf.LlamaForCausalLM,), {})
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case):
    make, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        to_standard(make())
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("export=hf: ")


def test_a_limited_capacity_is_refused():
    model = upcycled("LlamaForCausalLM")
    for layer in moe_layers(model):
        layer.capacity = type(layer.capacity)(factor=1.5)
    with pytest.raises(ConfigError, match="experts have a limited capacity"):
        to_standard(model)


def test_a_model_without_experts_is_refused():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="not converted; use its own save_pretrained"):
        to_standard(model)
    convert(model, METHODS["dense"]())
    with pytest.raises(ConfigError, match="method=dense exclude each other; use export=dense"):
        to_standard(model)


# ------------------------------------------------------------------- before anything is loaded


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def planned(*words: str) -> tuple[str, ...]:
    """The problems of a command with export=hf."""
    tree = OmegaConf.to_container(compose("config", [*words, "export=hf"]), resolve=True)
    assert isinstance(tree, dict)
    try:
        parse(tree)
    except ConfigError as error:
        return error.problems
    return ()


LLAMA = ("model=llama_tiny", "task=wikitext_mini")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("method=moe", *LLAMA), None),
        (("method=moe", "model=llama_tiny", "task=glue_mini/rte", "method.top_k=2"), None),
        (("method=moe", *LLAMA, "method.layers=last:4"), None),
        (
            ("method=moe", *LLAMA, "method.layers=last:1"),
            "export=hf: method.layers=last:1 converts 1 of 4 layers, and every layer of Mixtral is "
            "a mixture; use method.layers=all or export=moe",
        ),
        (
            ("method=dense", *LLAMA),
            "export=hf and method=dense exclude each other; use export=dense",
        ),
        (
            ("method=emoe", *LLAMA),
            "export=hf: method=emoe is no mixture of transformers: it has an avg-k router, whose "
            "experts are summed without weights; use export=moe",
        ),
        (
            ("method=emoe", *LLAMA, "method.convert_at=train"),
            "export=hf: method.convert_at=train ends as dense; use export=dense",
        ),
        (
            ("method=gmoe", *LLAMA),
            "export=hf: method=gmoe is no mixture of transformers: it has a cosine router; use "
            "export=moe",
        ),
        (
            ("method=hypermoe", *LLAMA),
            "export=hf: method=hypermoe is no mixture of transformers: it has a HyperExpert beside "
            "the experts; use export=moe",
        ),
        (
            ("method=moe", "model=bert_tiny"),
            "export=hf: no mixture of transformers is an upcycled bert (model=bert_tiny); only "
            "llama, mistral, qwen3 can be written so: use export=moe",
        ),
    ],
)
def test_the_plan_names_what_does_not_fit(words, line, hydra):
    assert planned(*words) == (() if line is None else (line,))


def test_every_family_of_the_table_is_tried():
    made = {make().config.model_type for _, make in CASES.values()}
    assert made == MIXTURES.keys()


def test_methods_say_that_they_fit_or_why_not():
    fitting = {name for name, method in METHODS.items() if method.not_standard is None}
    assert fitting - {"toy"} == {"moe"}
    assert EMoE.not_standard != GMoE.not_standard


def test_a_folder_that_does_not_fit_is_refused_by_its_config(tmp_path):
    config = hf.LlamaConfig(**SIZES, attention_bias=True)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").touch()  # a plan looks for its name only
    done = moe_run(
        "method=moe", "model=auto", f"model.path={tmp_path / 'model'}", "task=wikitext_mini",
        "export=hf", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "export=hf: attention_bias=true in the model's config.json does not fit Mixtral, which has "
        "only attention_bias=false; use export=moe"
    ]
    assert not (tmp_path / "outputs" / "runs").exists()
