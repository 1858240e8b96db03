"""What a bad input is, and what is expected of the program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe_runner.options.model_config import ASSETS

Build = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A command that cannot succeed, or must not mind.

    Args:
        name: for people, unique.
        words: arguments; HERE stands for the folder of the case.
        says: what the screen must say, HERE as above; texts that must all be there.
        code: exit code that is expected: 2 a mistake, 1 a run that failed, 0 it is coped with.
        build: makes the folder's content.
        program: moe-run or moe-report.
        numbers: with code 0, what all results must be.
        left: whether a refused command may leave something, such as what it had done before.
    """

    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2
    build: Build | None = None
    program: str = "moe-run"
    numbers: Callable[[], dict] | None = None
    left: bool = False


def files(contents: dict[str, str | bytes]) -> Build:
    """Make files by path; a text is written as UTF-8."""

    def build(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return build


def both(*builds: Build) -> Build:
    """Make one thing after the other."""

    def build(folder: Path) -> None:
        for each in builds:
            each(folder)

    return build


def model(name: str = "bert_tiny") -> Build:
    """Copy a bundled backbone to the folder `model`."""

    def build(folder: Path) -> None:
        shutil.copytree(ASSETS / name, folder / "model")

    return build


def replaced(path: str, content: bytes | str) -> Build:
    """Write another content into a file."""
    return files({path: content})


def removed(path: str) -> Build:
    """Remove a file."""
    return lambda folder: (folder / path).unlink()


def cut(path: str, share: float = 0.5) -> Build:
    """Keep the first part of a file."""

    def build(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(share * len(content))])

    return build


def edited(path: str, **values: object) -> Build:
    """Give keys of a JSON file other values; the value REMOVED takes one away."""

    def build(folder: Path) -> None:
        tree = json.loads((folder / path).read_text())
        for key, value in values.items():
            tree[key] = value
            if value is REMOVED:
                del tree[key]
        (folder / path).write_text(json.dumps(tree))

    return build


REMOVED = object()
