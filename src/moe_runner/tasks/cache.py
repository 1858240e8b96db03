"""Data sets on disk, found again by what they were made from, and memory-mapped.

An entry is `<hash>.arrow` with `<hash>.json` beside it, which says what it was made from and how
many bytes it has; it is complete once that file is there. Processes may share a folder: one makes
an entry, the others wait for it.

Heavy imports (datasets, pyarrow) stay inside the functions: the suites import this module.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from moe_runner.files import naming, read_json, write_json
from moe_runner.runs.identity import canonical_json

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features

log = logging.getLogger(__name__)

VERSION = 1  # of the entries; raised when the same key would give another content
FOLDER = "data"  # within paths.cache
ROWS = 4096  # that are read or hashed together


def cached_map(
    dataset: Dataset,
    function: Callable[[dict[str, list[Any]]], Mapping[str, Any]],
    key: Mapping[str, Any],
    cache: Path | None,
    *,
    keep: Sequence[str] = (),
    features: Features | None = None,
) -> Dataset:
    """Apply a function to batches of rows once, and find the result on disk ever after.

    Args:
        dataset: what is read, wherever it lies; its content is part of the key.
        function: columns of some rows -> new columns. Batches come in order.
        key: all that the result depends on beside the data, as plain values: the form, the
            settings, and `tokenizer_content`.
        cache: `paths.cache`; None: the result is made anew, in memory.
        keep: columns that stay as they are; the others are dropped.
        features: of the result; None: inferred from the first batch.

    Returns:
        The result, memory-mapped if there is a cache.
    """
    options: dict[str, Any] = {
        "batched": True,
        "remove_columns": [name for name in dataset.column_names if name not in keep],
        "features": features,
        "load_from_cache_file": False,
    }
    # The fingerprints are given, or datasets would pickle the function to hash it.
    if cache is None or not len(dataset):
        fingerprint = uuid.uuid4().hex
        return dataset.map(function, keep_in_memory=True, new_fingerprint=fingerprint, **options)
    key = {"data": content(dataset), **key}
    fingerprint = key_hash(key)

    def write(file: Path) -> None:
        dataset.map(function, cache_file_name=str(file), new_fingerprint=fingerprint, **options)

    return cached(key, write, cache)


def cached_batches(
    batches: Callable[[], Iterable[pyarrow.Table]],
    features: Features,
    key: Mapping[str, Any],
    cache: Path | None,
) -> Dataset:
    """Write tables one after the other into a data set, and find it on disk ever after.

    Args:
        batches: gives the tables, of the schema of `features`; not called if the result is there.
        features: of the result.
        key: all that the result depends on, as plain values.
        cache: `paths.cache`; None: all tables are held in memory.

    Returns:
        The data set, memory-mapped if there is a cache.
    """
    import pyarrow as pa
    from datasets import Dataset

    schema = features.arrow_schema
    if cache is None:
        return Dataset(pa.concat_tables([schema.empty_table(), *batches()]))

    def write(file: Path) -> None:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for table in batches():
                writer.write_table(table)

    return cached(key, write, cache)


def cached_table(
    make: Callable[[], Mapping[str, list[Any]]], key: Sequence[Any], cache: Path | None
) -> pyarrow.Table:
    """Generate a table once, and find it on disk ever after.

    Args:
        make: gives its columns; not called if the table is there.
        key: all that the table depends on, as plain values: name, version, split, seed.
        cache: `paths.cache`; None: the table is held in memory.

    Returns:
        The table, memory-mapped if there is a cache.
    """
    import pyarrow as pa

    if cache is None:
        return pa.table(make())

    def write(file: Path) -> None:
        table = pa.table(make())
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    return cached({"generated": key}, write, cache).data.table


def cached(key: Mapping[str, Any], write: Callable[[Path], None], cache: Path) -> Dataset:
    """Find an entry by its key; make it if it is not there, or damaged.

    Args:
        key: what it is made from, as plain values.
        write: writes the Arrow file, with the name given to it.
        cache: `paths.cache`.

    Returns:
        The entry, memory-mapped.
    """
    from datasets import Dataset

    file = cache / FOLDER / f"{key_hash(key)}.arrow"
    found = read_entry(file)
    if found is not None:
        return found
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        found = read_entry(file, warn=True)  # another process may have made it meanwhile
        if found is not None:
            return found
        temporary = file.with_name(f".{file.stem}") / file.name
        shutil.rmtree(temporary.parent, ignore_errors=True)  # of a process that was killed
        temporary.parent.mkdir()
        try:
            with naming(file, temporary):
                write(temporary)
            size = temporary.stat().st_size
            os.replace(temporary, file)
        finally:
            shutil.rmtree(temporary.parent)
        write_json(file.with_suffix(".json"), {"bytes": size, "made_from": key})
    return Dataset.from_file(str(file))


def key_hash(key: Mapping[str, Any]) -> str:
    """Hash a key to 32 hex digits."""
    text = canonical_json({"version": VERSION, **key})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_entry(file: Path, *, warn: bool = False) -> Dataset | None:
    """Open an entry.

    Returns:
        The data set; None if there is none or it is damaged (said in the log with `warn`).
    """
    from datasets import Dataset

    try:
        size = read_json(file.with_suffix(".json"))["bytes"]
        if file.stat().st_size != size:  # a stream cut between two batches would read as whole
            raise ValueError(f"it has {file.stat().st_size} bytes instead of {size}")
        return Dataset.from_file(str(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:  # ArrowInvalid is a ValueError
        if warn:
            log.warning("the cached data %s are damaged (%s); making them anew", file, error)
        return None


def content(dataset: Dataset) -> str:
    """Hash names, types and values of a data set, wherever and in whichever pieces it lies.

    Returns:
        64 hex digits.
    """
    import pyarrow as pa

    digest = hashlib.sha256(repr(dataset.features).encode())
    schema = pa.schema(list(dataset.features.arrow_schema))  # without metadata
    with pa.ipc.new_stream(pa.PythonFile(_Hashing(digest), "w"), schema) as writer:
        for table in dataset.with_format("arrow").iter(ROWS):
            writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return digest.hexdigest()


class _Hashing:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self.digest, self.written = digest, 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def tell(self) -> int:
        return self.written

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def tokenizer_content(tokenizer: Any) -> str:
    """Hash what decides the tokens of a text; part of a key of `cached_map`.

    Args:
        tokenizer: of transformers, fast or slow.

    Returns:
        64 hex digits; the same for the same content in another folder.
    """
    import json

    import tokenizers

    what: dict[str, Any] = {
        "library": tokenizers.__version__,
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "padding": tokenizer.padding_side,
        "truncation": tokenizer.truncation_side,
        "inputs": list(tokenizer.model_input_names),
    }
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        what["backend"] = {**backend, "truncation": None, "padding": None}  # of the last call
    else:
        places = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file")
        settings = {k: repr(v) for k, v in tokenizer.init_kwargs.items() if k not in places}
        what |= {"vocabulary": tokenizer.get_vocab(), "settings": settings}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
