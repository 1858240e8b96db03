"""The log of a run: a copy of what a person sees."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_runner.console import INDENT, WIDTH
from moe_runner.files import masked


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Copy the log to a file while the block runs."""
    handler = Copy(file, encoding="utf-8")
    handler.setFormatter(Masked("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):  # of the last words on a full disk; they are on the screen
            handler.close()


class Copy(logging.FileHandler):
    """Write to a file; where that fails, say so once, and let the run go on."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Name the file in a line, in place of logging's own traceback for every record."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            print(f"{self.baseFilename}: {error.strerror}; the log is not kept", file=sys.stderr)


class Masked(logging.Formatter):
    """Leave secrets out, see `files.masked`; also of what is shown, which schedulers keep."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        return masked(super().format(record))


class Fitted(Masked):
    """The same for a terminal: a line wider than that goes on, indented, in the next one."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        text = super().format(record)
        if not sys.stderr.isatty():
            return text
        width = os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH
        return "\n".join(part for line in text.splitlines() for part in fitted(line, width))


def fitted(line: str, width: int) -> list[str]:
    """Divide a line between words; a word that is too long for any line stays whole."""
    if len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.strip(), width, initial_indent=indent, subsequent_indent=indent + " " * INDENT,
        replace_whitespace=False, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
