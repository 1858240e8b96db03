"""The user's mistakes, and how they are worded: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class ConfigError(Exception):
    """One or more mistakes of the user, one line each; the command line ends with exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Find the allowed name that a typo most likely meant.

    Args:
        name: what was typed.
        allowed: the valid names.

    Returns:
        The nearest one, or None where nothing is near.
    """
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def not_an_option(given: str, of: str, name: str, allowed: Sequence[str], prefix: str = "") -> str:
    """Word the error for an unknown choice: what was given, the nearest, all that is allowed."""
    guess = nearest(name, allowed)
    hint = f"; did you mean {prefix}{guess}?" if guess else "; use one of"
    return f"{given} is not an option{of}{hint} ({', '.join(allowed)})"


def nearest_keys(given: str, keys: Iterable[str]) -> list[str]:
    """Find the dotted keys that a typo or a key of the wrong section most likely meant.

    Args:
        given: what was typed: "method.num_expert", "top_k".
        keys: the valid dotted keys.

    Returns:
        The best ones, usually one; empty where nothing is near.
    """

    def likeness(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    section, _, last = given.rpartition(".")
    scores = {}
    for key in keys:
        its_section, _, its_last = key.rpartition(".")
        scores[key] = likeness(last, its_last)  # a shared "trainer." makes no two names alike
        if its_section != section:
            distance = 1 - likeness(section, its_section)
            scores[key] = max(scores[key], likeness(given, key)) - 0.15 * distance
    good = max(0.65, max(scores.values(), default=0.0) - 0.03)
    return [key for key in sorted(scores, key=lambda key: -scores[key]) if scores[key] >= good][:3]


def unknown_key(given: str, key: str, of: str, keys: Sequence[str]) -> str:
    """Word the error for an unknown key.

    Args:
        given: what was typed: "trainer.foo=1".
        key: its dotted key.
        of: where it was looked for: " of trainer"; "" for the root.
        keys: the valid dotted keys.

    Returns:
        One line: what was given, and the nearest key or, where none is near, all of its section.
    """
    section = key.rpartition(".")[0]
    if near := nearest_keys(key, keys):
        hint = f"did you mean {join(near)}?"
    elif section and (own := [name for name in keys if name.rpartition(".")[0] == section]):
        hint = f"use one of {', '.join(own)}"
    else:
        hint = "moe-run --help lists the options"
    return f"{given} is not an option{of}; {hint}"


def join(words: Sequence[str]) -> str:
    """List words in a sentence: "a", "a or b", "a, b or c"."""
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def show(value: Any) -> str:
    """Write a plain value as a user types it: null, true, 3e-5, [8,10]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", repr(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{show(item)}' for key, item in value.items())}}}"
    return str(value)
