"""What is shown to people: where it fits, how a time is written, what a terminal can spell."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 150  # characters, where the output is a file or a pipe
READER_GONE = 141  # what a shell tells of a program that SIGPIPE ended: 128 + 13
INDENT = 2  # spaces before what goes on in the next line
PLAIN = {  # how ASCII writes what we print
    "\u00b1": "+-",
    "\u2192": "->",
    "\u2013": "-",
    "\u2014": "-",
    "\u2212": "-",
    "\u00d7": "x",
    "\u2191": "^",
    "\u2193": "v",
    "\u2020": "*",
    "\u2021": "#",
    "\u2026": "...",
    "\u00b7": "-",
    "\u2265": ">=",
    "\u2264": "<=",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
}


@contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """End the program, without a word, once the reader of its output, such as head, has enough.

    Raises:
        SystemExit: `READER_GONE`, for a write to stdout that nobody reads any more.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(READER_GONE)


def reader_is_gone() -> bool:
    """Tell whether the other end of stdout, a pipe, is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors only
    return bool(poll.poll(0))


def spell_plainly() -> None:
    """Let streams that know ASCII only write "+-" for "±" instead of ending the program."""

    def spelled(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        bad = error.object[error.start : error.end]
        return "".join(PLAIN.get(char, "?") for char in bad), error.end

    codecs.register_error("plain", spelled)
    for stream in (sys.stdout, sys.stderr):
        encoding = str(getattr(stream, "encoding", None) or "utf-8")
        if isinstance(stream, io.TextIOWrapper) and not encoding.lower().startswith("utf"):
            stream.reconfigure(errors="plain")


def fitted_lines(parts: Iterable[str], width: int | None) -> list[str]:
    """Write parts with two spaces between them, in as few lines as the width allows.

    Args:
        parts: what belongs together; empty ones are left out. One that is too long for a line is
            divided between its words, or anywhere if it has none: nothing is lost.
        width: characters; None: one line.

    Returns:
        The lines; those after the first are indented.
    """
    shown = [part for part in parts if part]
    if width is None:
        return ["  ".join(shown)]
    lines = [""]
    for part in shown:
        joint = "  "
        for word in [part] if len(part) <= width - INDENT else part.split():
            if lines[-1].strip() and len(lines[-1]) + len(joint) + len(word) <= width:
                lines[-1] += joint + word
            else:
                lines += [" " * INDENT] if lines[-1].strip() else []
                room = max(1, width - len(lines[-1]))
                while len(word) > room:
                    lines[-1] += word[:room]
                    word, room = word[room:], max(1, width - INDENT)
                    lines.append(" " * INDENT)
                lines[-1] += word
            joint = " "
    return lines


def duration(seconds: float) -> str:
    """Write a time with two figures: 42 s, 3.5 min, 2.1 h, 5.0 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size or (seconds >= size and unit != "min"):
            count = seconds / size
            return f"{count:.0f} {unit}" if count >= 9.95 else f"{count:.1f} {unit}"
    return f"{seconds:.0f} s"


class Output(Console):
    """The standard output of a program that leaves broken pipes to `until_the_reader_leaves`."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is handled, in place of rich's exit code 1."""
        raise  # noqa: PLE0704


class Wide(Output):
    """Prints a table that is wider than the terminal as a line per cell: none is cut off."""

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Print; see rich."""
        for each in objects:
            if isinstance(each, Table) and self.is_terminal and self.cuts(each):
                each = Text("\n".join(line for row in records(each) for line in row))
            super().print(each, **kwargs)

    def cuts(self, table: Table) -> bool:
        """Tell whether a table has no room."""
        unlimited = self.options.update(max_width=10_000)
        return Measurement.get(self, unlimited, table).maximum > self.width


def records(table: Table) -> Iterator[list[str]]:
    """Write a table as lines "column: value"; an empty line after each row.

    Yields:
        Its title, its rows, its caption, where there are such.
    """
    if table.title:
        yield [str(table.title)]
    columns = [(str(column.header), list(map(str, column.cells))) for column in table.columns]
    for number in range(table.row_count):
        cells = [(header, found[number]) for header, found in columns if found[number]]
        yield [*(f"{header}: {cell}" if header else cell for header, cell in cells), ""]
    if table.caption:
        yield [str(table.caption)]


def wide_console() -> Console:
    """Write to the standard output, as wide as the terminal, or `WIDTH` where it is none."""
    spell_plainly()
    console = Wide(markup=False)  # names are the user's: never read as markup
    return console if console.is_terminal else Wide(width=WIDTH, markup=False)


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
