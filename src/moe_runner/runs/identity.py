"""What makes two runs the same: the id of a run, and the content hash of the files it reads."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_runner.files import read_json, write_json

SCHEMA = 2  # part of every id: raise it when the meaning of the options changes


def canonical_json(value: Any) -> str:
    """Spell a value as JSON in the one way that equal values share.

    Keys are sorted, there is no white space, and an integral float is written as an integer, so
    that 1 and 1.0 agree (True stays true). Two keys of a dataclass field's metadata count:
    `identity=False` leaves the field out, `identity=(X, Y)` unless its value is X or Y;
    `neutral=X` leaves it out while its value is X, so that an option added later does not change
    old ids. A dataclass is spelled as its fields alone:
    two classes with the same fields and values agree, so whoever chooses between them must also
    hold the choice's name.

    Args:
        value: dataclass instance, mapping with string keys, list, tuple, str, bool, int, finite
            float or None; nested as deep as you like.

    Returns:
        The JSON text, ASCII.

    Raises:
        ValueError: if a float is NaN or infinite.
        TypeError: if there is a value, or a mapping's key, of another type (a path, a set).
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"))


def run_id(run: Any) -> str:
    """Return the id of a run.

    Args:
        run: the validated options dataclass; see `canonical_json` for what may be in it.

    Returns:
        16 hex digits, the first of the SHA-256 of the canonical JSON of schema and run.

    Raises:
        ValueError: if a float is NaN or infinite.
        TypeError: if an option has a type that has no canonical JSON.
    """
    text = canonical_json({"schema": SCHEMA, "run": run})
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def content_hash(paths: Sequence[Path], memo: Path | None = None) -> str:
    """Hash the names and contents of files, wherever their folder lies.

    Args:
        paths: at least one file; order and repetition do not matter. Names are taken relative to
            the files' common folder, and links are not resolved for them.
        memo: JSON file that remembers the hash of each file by absolute path, size and mtime; made
            if missing, made anew if unreadable. Processes may share it: what one of them
            overwrites is only hashed again.

    Returns:
        64 hex digits.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there is no path.
    """
    files = sorted({os.path.abspath(path) for path in paths})
    if not files:
        raise ValueError("content_hash needs at least one file; got none")
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    digests = file_hashes(files, memo)
    total = hashlib.sha256()
    for name, file in sorted((Path(os.path.relpath(f, folder)).as_posix(), f) for f in files):
        name_bytes = os.fsencode(name)
        total.update(f"{len(name_bytes)}:".encode() + name_bytes + digests[file].encode())
    return total.hexdigest()


def file_hashes(files: Sequence[str], memo: Path | None = None) -> dict[str, str]:
    """Hash the content of each file.

    Args:
        files: absolute paths.
        memo: see `content_hash`.

    Returns:
        File -> 64 hex digits.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    known = _read_memo(memo)
    fresh: dict[str, list[int | str]] = {}
    digests = {}
    for file in files:
        stat = os.stat(file)
        match known.get(file):
            case [stat.st_size, stat.st_mtime_ns, str(digest)]:
                pass
            case _:
                with open(file, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                fresh[file] = [stat.st_size, stat.st_mtime_ns, digest]
        digests[file] = digest
    if memo is not None and fresh:
        with suppress(OSError):  # a store that can only be read: hashed again next time
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_json(memo, _read_memo(memo) | fresh)  # read again: others may have added to it
    return digests


def identifying(options: Any) -> list[dataclasses.Field[Any]]:
    """List the fields of a dataclass instance that count, see `canonical_json`."""
    return [
        field
        for field in dataclasses.fields(options)
        if _counts(options, field) and not _is_neutral(options, field)
    ]


def _counts(options: Any, field: dataclasses.Field[Any]) -> bool:
    counts = field.metadata.get("identity", True)
    return counts if isinstance(counts, bool) else getattr(options, field.name) in counts


def _plain(value: Any, where: str) -> Any:
    """Reduce a value to what `json` writes in one way; `where` names it in errors."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{where}.{field.name}")
            for field in identifying(value)
        }
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where} has keys that are not strings: {list(value)}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}={value} cannot identify a run; use a finite number")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no canonical JSON; "
        "leave the field out of the identity, or hold plain values (of a file: its content hash)"
    )


def _is_neutral(owner: Any, field: dataclasses.Field[Any]) -> bool:
    neutral = field.metadata.get("neutral", dataclasses.MISSING)
    if neutral is dataclasses.MISSING:
        return False
    value = getattr(owner, field.name)
    if type(value) is type(neutral) and isinstance(value, str | int | None):  # most, and fast
        return bool(value == neutral)
    return canonical_json(value) == canonical_json(neutral)


def _read_memo(memo: Path | None) -> dict[str, Any]:
    if memo is None:
        return {}
    try:
        known = read_json(memo)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
