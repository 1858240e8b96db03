"""Files of a model folder that are not what they seem are named, with the remedy."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from moe_runner.backbones.integrity import INDEX, file_problem, tokenizer_problem, weights_problem

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4400000\n"


@pytest.fixture
def whole(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4, 5), "b": torch.zeros(3)}, file, metadata={"format": "pt"})
    return file


def test_a_whole_file_has_no_problem(whole):
    assert file_problem(whole) is None
    assert weights_problem(whole.parent) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: POINTER, "is a pointer of git LFS (72 bytes), not the weights"),
        (lambda content: b"", "is empty"),
        (lambda content: content[:-1], "it is cut off; download it again"),
        (lambda content: content[:20], "is cut off: 20 bytes, less than its header"),
        (lambda content: content[:5], "is not a safetensors file"),
        (lambda content: content + b"\0", "it is damaged; download it again"),
        (lambda content: b"\xff" * 200, "is not a safetensors file"),
        (lambda content: content[:8] + b"[" + content[9:], "no readable header"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(whole, damage, words):
    whole.write_bytes(damage(whole.read_bytes()))
    problem = weights_problem(whole.parent)
    assert problem is not None
    assert problem.startswith(str(whole))
    assert words in problem
    assert "\n" not in problem


def test_a_pickled_file_can_be_a_pointer_too(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(POINTER)
    assert "git lfs pull" in str(weights_problem(tmp_path))


def test_shards_that_are_not_there_are_counted(tmp_path):
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"weight_map": dict(zip("abc", names, strict=True))}
    (tmp_path / INDEX).write_text(json.dumps(index))
    save_file({"a": torch.zeros(2)}, tmp_path / names[0])
    assert f"lacks 2 of the 3 files that {INDEX} names ({names[1]}, " in str(
        weights_problem(tmp_path)
    )
    for name, key in zip(names[1:], "bc", strict=True):
        save_file({key: torch.zeros(2)}, tmp_path / name)
    assert weights_problem(tmp_path) is None
    (tmp_path / INDEX).write_text("[]")
    assert "is not readable as an index" in str(weights_problem(tmp_path))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path, monkeypatch):
    assert "has no tokenizer files" in str(tokenizer_problem(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{}")  # transformers makes 5 tokens of it
    assert "has no tokenizer files" in str(tokenizer_problem(tmp_path))
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package sentencepiece" in str(tokenizer_problem(tmp_path))
    (tmp_path / "tokenizer.json").touch()
    assert tokenizer_problem(tmp_path) is None


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path):
    """With the version that the extra pins."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="an extra, see pyproject.toml")
    from transformers import AutoTokenizer

    texts = ["the cat sees a farmer", "my sister likes some birds"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "tokenizer"), vocab_size=50,
        model_type="bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 50}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert tokenizer_problem(tmp_path) is None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the cat likes birds").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat likes birds"
    assert tokenizer.unk_token_id not in ids
