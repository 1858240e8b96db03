"""What a checkpoint lacks is never made up without a word."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from moe_runner.backbones.loading import load_causal, load_classifier
from moe_runner.backbones.weights import ASSETS, Weights, find_weights
from moe_runner.options.errors import ConfigError
from moe_runner.options.model import Model


def options(name: str = "bert") -> Model:
    return Model(name=name, family=name, d_model=128, d_ff=512, num_layers=4, vocab_size=2000)


@pytest.fixture
def folder(tmp_path):
    """A copy of bert_tiny."""
    place = tmp_path / "copy"
    shutil.copytree(ASSETS / "bert_tiny", place)
    return place


def load(folder, labels=("no", "yes")):
    torch.manual_seed(0)
    return load_classifier(options(), Weights(folder=folder), labels)


def change(folder, rename) -> None:
    """Rename tensors of the folder's file; None leaves one out."""
    file = folder / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    tensors.pop(None, None)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(folder, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_bundled_backbone_has_all_but_pooler_and_head(folder, caplog):
    caplog.set_level(logging.INFO)
    backbone = load(folder)
    new = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert backbone.head == new | {"classifier.weight", "classifier.bias"}
    assert "new, not pretrained: bert.pooler.dense.bias, bert.pooler.dense.weight" in caplog.text


@pytest.mark.parametrize(
    ("rename", "cause"),
    [
        (lambda name: f"module.{name}", "every name in the file has the prefix module."),
        (lambda name: f"other.{name}", "every name in the file has the prefix other."),
        (lambda name: name.replace("attention", "attn"), "incomplete, or of another architecture"),
    ],
)
def test_renamed_tensors_are_refused_with_the_likely_cause(folder, rename, cause):
    change(folder, rename)
    with pytest.raises(ConfigError) as refused:
        load(folder)
    (line,) = refused.value.problems
    assert str(folder) in line
    assert "tensors of the backbone are not in the file (bert." in line
    assert cause in line


def test_one_missing_tensor_is_enough(folder):
    gone = "encoder.layer.2.output.dense.weight"
    change(folder, lambda name: None if name.endswith(gone) else name)
    with pytest.raises(ConfigError, match=rf"1 of the 71 tensors .*\(bert\.{gone}\)"):
        load(folder)


def test_more_layers_in_the_config_than_in_the_file_are_refused(folder):
    configure(folder, num_hidden_layers=6)
    with pytest.raises(ConfigError, match=r"32 of the 103 tensors .* fewer layers than config"):
        load(folder)


def test_more_layers_in_the_file_than_in_the_config_are_a_warning(folder, caplog):
    configure(folder, num_hidden_layers=3)
    load(folder)
    assert "16 tensors of layers that config.json does not have are left out" in caplog.text


def test_another_width_is_refused(folder):
    configure(folder, intermediate_size=256)
    with pytest.raises(
        ConfigError, match=r"12 tensors .* another shape .* \(512,\) in the file, \(256,\) expected"
    ):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder, value):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layer.1.intermediate.dense.bias"))
    tensors[name][3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="encoder.layer.1.intermediate.dense.bias holds NaN or"):
        load(folder)


def test_pickled_code_is_never_loaded(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Exception}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="never unpickled here; save the model as safetensors"):
        load(folder)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_tuned_head_is_replaced_whatever_its_size(folder, classes, caplog):
    caplog.set_level(logging.INFO)
    tuned = BertForSequenceClassification.from_pretrained(folder, num_labels=classes)
    with torch.no_grad():
        tuned.classifier.weight.fill_(9.0)
        tuned.classifier.bias.fill_(9.0)
    tuned.save_pretrained(folder)
    backbone = load(folder)
    head = backbone.model.classifier
    assert head.weight.shape == (2, 128)
    assert 0.01 < float(head.weight.detach().std()) < 0.03  # initializer_range 0.02
    assert not head.bias.any()
    pooler = backbone.model.bert.pooler.dense.weight
    assert torch.equal(pooler, tuned.bert.pooler.dense.weight)  # was tuned, and stays


def test_a_language_model_without_its_head_is_a_warning(tmp_path, caplog):
    shutil.copytree(ASSETS / "llama_tiny", tmp_path / "copy")
    folder = tmp_path / "copy"
    configure(folder, tie_word_embeddings=False)
    change(folder, lambda name: None if name == "lm_head.weight" else name)
    load_causal(options("llama"), Weights(folder=folder))
    assert "has no language head (the file lacks lm_head.weight)" in caplog.text


def test_a_folder_of_many_files_is_the_same_model(tmp_path):
    model = load_causal(options("llama"), Weights(folder=ASSETS / "llama_tiny"))
    folder = tmp_path / "sharded"
    model.model.save_pretrained(folder, max_shard_size="500KB")
    model.processor.save_pretrained(folder)
    assert len([*folder.glob("*.safetensors")]) > 3
    given = replace(options("llama"), path=str(folder))
    found = find_weights(given)
    assert found.problem is None
    again = load_causal(given, found)
    assert not again.head
    expected = model.model.state_dict()
    assert again.model.state_dict().keys() == expected.keys()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    last = max(folder.glob("*.safetensors"))
    last.unlink()
    assert f"lacks 1 of the {int(last.stem[-5:])} files" in str(find_weights(given).problem)


def test_a_token_beyond_the_embedding_gets_a_row(folder, caplog):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"[EXTRA{i}]" for i in range(rows - len(tokenizer) + 2)])
    tokenizer.save_pretrained(folder)
    model = load(folder).model
    assert model.get_input_embeddings().num_embeddings == rows + 2
    assert f"2 tokens of the tokenizer are beyond the {rows} rows" in caplog.text
    assert model(input_ids=torch.tensor([[rows + 1]])).logits.isfinite().all()


def test_the_tokenizer_of_another_model_is_refused(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = tensors[name][:500].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    configure(folder, vocab_size=500)
    with pytest.raises(ConfigError, match="the tokenizer is that of another model"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_the_tokenizer_that_is_no_object_is_named(folder, name):
    (folder / name).write_text("[]")
    with pytest.raises(ConfigError, match=f"cannot be read \\({name} holds no object of JSON\\)"):
        load(folder)
