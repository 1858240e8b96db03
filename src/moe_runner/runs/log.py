"""The log of a run: a copy of what a person sees."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_runner.files import masked


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Copy the log to a file while the block runs."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(Masked("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class Masked(logging.Formatter):
    """Leave secrets out, see `files.masked`; also of what is shown, which schedulers keep."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        return masked(super().format(record))
