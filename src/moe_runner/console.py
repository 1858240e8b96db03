"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

WIDTH = 150  # characters, where the output is a file or a pipe


def wide_console() -> Console:
    """Write to the standard output, as wide as the terminal, or `WIDTH` where it is none."""
    console = Console(markup=False)  # names are the user's: never read as markup
    return console if console.is_terminal else Console(width=WIDTH, markup=False)
