"""What a token looks like: surface classes that stand in for parts of speech. A heuristic.

The classes go by the letters of a token alone, in English: "run" is a noun and a verb, "-ed" may be
an adjective, a capital may only begin a sentence. They show a tendency, no grammar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_runner.console import clear

FUNCTION_WORDS = {
    "determiner": "a an the this that these those each every some any no all both either neither "
    "another such",
    "pronoun": "i me my mine myself you your yours yourself yourselves he him his himself she "
    "her hers herself it its itself we us our ours ourselves they them their theirs themselves who "
    "whom whose which what one somebody someone something anybody anyone anything nobody nothing "
    "everybody everyone everything",
    "preposition": "of in on at by for with from to into onto over under about after before "
    "between through during without within against across near behind beside along around "
    "off up down out since until upon toward towards above below among",
    "conjunction": "and or but nor so yet because although though while if unless when where "
    "whereas than as whether how why",
    "auxiliary": "be am is are was were been being do does did done have has had having will "
    "would shall should can could may might must not n't s t ll ve re",
}
OF_WORD = {word: name for name, words in FUNCTION_WORDS.items() for word in words.split()}
SUFFIXES = (  # in this order; at least `STEM` letters stand before one
    ("ends in -ly", ("ly",)),
    ("ends in -ing", ("ing",)),
    ("ends in -ed", ("ed",)),
    ("ends in -tion etc.", ("tion", "sion", "ness", "ment", "ity", "ance", "ence", "ship")),
    ("ends in -ous etc.", ("ous", "ful", "able", "ible", "ive", "less", "ish")),
    ("ends in -er, -or", ("er", "or")),
    ("ends in -s", ("s",)),
)
STEM = 3
CLASSES = (
    "special", "punctuation", "number", *FUNCTION_WORDS, "within a word", "capitalised",
    *(name for name, _ in SUFFIXES), "other word",
)  # fmt: skip
MARKS = ("\u0120", "\u2581")  # that begin a word, byte-level BPE and SentencePiece
PIECE = "##"  # that goes on with one, WordPiece


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, as people read them.

    Args:
        text: by id; a piece that goes on with a word begins with a hyphen.
        kind: class by id, a place in `CLASSES`.
    """

    text: tuple[str, ...]
    kind: tuple[int, ...]


def classify(text: str, *, special: bool = False, continues: bool = False) -> str:
    """Choose the surface class of a token.

    Args:
        text: without marks of the tokenizer.
        special: the tokenizer puts it in.
        continues: it goes on with the word before it.

    Returns:
        One of `CLASSES`.
    """
    if special:
        return "special"
    word = text.strip()
    if not any(character.isalnum() for character in word):
        return "punctuation"
    if any(character.isdigit() for character in word):
        return "number"
    if continues:
        return "within a word"
    if (found := OF_WORD.get(word.lower())) is not None:
        return found
    if word[0].isupper():
        return "capitalised"
    for name, endings in SUFFIXES:
        if any(word.endswith(end) and len(word) - len(end) >= STEM for end in endings):
            return name
    return "other word"


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """List the tokens of a tokenizer.

    Args:
        tokenizer: of transformers.
        size: ids from 0; those that it lacks are named by their number.
    """
    known = min(size, len(tokenizer))
    names = [name or "" for name in tokenizer.convert_ids_to_tokens(list(range(known)))]
    names += [f"[{i}]" for i in range(known, size)]
    marked = begins_of_words(names)
    special = set(tokenizer.all_special_ids) | set(range(known, size))
    texts, kinds = [], []
    for index, name in enumerate(names):
        continues = name.startswith(PIECE) and len(name) > len(PIECE)
        plain = name[len(PIECE) :] if continues else name
        if marked and index not in special:
            continues = not name.startswith(MARKS)
            plain = readable(tokenizer, name)
        kind = classify(plain, special=index in special, continues=continues)
        kinds.append(CLASSES.index(kind))
        texts.append(f"-{plain}" if kind == "within a word" else plain)
    return Vocabulary(tuple(texts), tuple(kinds))


def begins_of_words(names: Iterable[str]) -> bool:
    """Tell whether a tokenizer marks where words begin (else it may mark where they go on)."""
    return sum(name.startswith(MARKS) for name in names) > 1


def readable(tokenizer: Any, name: str) -> str:
    """Undo what byte-level BPE and SentencePiece make of a token's letters; spaces go."""
    text = str(tokenizer.convert_tokens_to_string([name])).strip(" ")
    return text or "\u2423"  # a space alone


def join_tokens(texts: Sequence[str]) -> str:
    """List tokens in a cell."""
    return " ".join(map(clear, texts))
