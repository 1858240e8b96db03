"""The log of a run: a copy of what a person sees."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
