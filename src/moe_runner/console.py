"""Where tables are printed."""

from __future__ import annotations

import unicodedata

from rich.console import Console

WIDTH = 150  # characters, where the output is a file or a pipe


def wide_console() -> Console:
    """Write to the standard output, as wide as the terminal, or `WIDTH` where it is none."""
    console = Console(markup=False)  # names are the user's: never read as markup
    return console if console.is_terminal else Console(width=WIDTH, markup=False)


def clear(text: str) -> str:
    r"""Spell out what can't be seen in a name: line ends, control characters, changes of direction.

    Returns:
        One line; a new line in it is the two letters "\n", U+202E is "\u202e".
    """
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else char
        for char in text
    )
