"""The surface classes of tokens, and how each kind of tokenizer marks its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_runner.analysis.words import CLASSES, OF_WORD, classify, join_tokens, read_vocabulary

ASSETS = Path(__file__).parents[2] / "src" / "moe_runner" / "assets"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".", "punctuation"),
        ("...", "punctuation"),
        ("1984", "number"),
        ("3rd", "number"),
        ("The", "determiner"),
        ("of", "preposition"),
        ("because", "conjunction"),
        ("herself", "pronoun"),
        ("would", "auxiliary"),
        ("Anna", "capitalised"),
        ("slowly", "ends in -ly"),
        ("walking", "ends in -ing"),
        ("walked", "ends in -ed"),
        ("nation", "other word"),
        ("creation", "ends in -tion etc."),
        ("famous", "ends in -ous etc."),
        ("teacher", "ends in -er, -or"),
        ("books", "ends in -s"),
        ("ring", "other word"),
        ("bed", "other word"),
        ("dog", "other word"),
    ],
)
def test_classes(text, expected):
    assert classify(text) == expected


def test_special_tokens_and_pieces_come_first():
    assert classify("the", special=True) == "special"
    assert classify("ing", continues=True) == "within a word"
    assert classify(".", continues=True) == "punctuation"


def test_every_function_word_has_one_class_and_classes_are_named_once():
    assert set(OF_WORD.values()) <= set(CLASSES)
    assert len(CLASSES) == len(set(CLASSES))


@pytest.mark.parametrize(
    ("asset", "text", "expected"),
    [
        ("bert_tiny", "the dogs walk .", {"the": "determiner", ".": "punctuation"}),
        ("gpt2_tiny", "We saw the dog.", {"the": "determiner", ".": "punctuation"}),
        ("switch_tiny", "we saw the dog.", {"the": "determiner", ".": "punctuation"}),
    ],
)
def test_words_are_read_from_every_kind_of_tokenizer(asset, text, expected):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / asset)
    found = read_vocabulary(tokenizer, len(tokenizer) + 2)
    assert len(found.text) == len(found.kind) == len(tokenizer) + 2
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    kinds = {found.text[i]: CLASSES[found.kind[i]] for i in ids}
    assert {word: kinds.get(word) for word in expected} == expected
    assert all(CLASSES[found.kind[i]] == "special" for i in tokenizer.all_special_ids)
    assert CLASSES[found.kind[-1]] == "special"  # beyond the tokenizer
    pieces = [
        t for t, k in zip(found.text, found.kind, strict=True) if CLASSES[k] == "within a word"
    ]
    assert pieces
    assert all(piece.startswith("-") for piece in pieces)


def test_what_cannot_be_seen_is_spelled_out():
    assert join_tokens(["a", "\n", "\u202e"]) == "a \\n \\u202e"
