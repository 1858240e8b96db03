"""Reading tables of texts with labels, from parquet files and from the Hub.

Heavy imports (datasets, pyarrow) stay inside the functions: the command line plans runs with the
modules that import this one.
"""

from __future__ import annotations

import functools
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner import hub
from moe_runner.downloads import fetching
from moe_runner.runs.identity import content_hash
from moe_runner.tasks.places import Source

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SCORE_RANGE = (0.0, 5.0)  # of a regression's labels; STS-B is the only one
CLASSES = b"classes"  # metadata of a table: the names of its labels, as JSON
ROWS = 4096  # that are read and checked together


def read(
    source: Source,
    columns: Sequence[tuple[str, ...]],
    labels: tuple[str, ...],
    limit: int | None = None,
    cache: Path | None = None,
) -> Dataset | None:
    """Read one split.

    Args:
        source: where it is.
        columns: the names of the text columns, and other names they may have in the files (text
            for sentence): the first ones found are taken, and named as the first entry says.
        labels: class names; () for a regression.
        limit: keep a random subset of so many examples, the same every time, in order.
        cache: `paths.cache`: the examples are memory-mapped from there; None: held in memory.

    Returns:
        The examples: the text columns and `label`; rows of label -1 (no gold label) are left out.
        None if the split is not available.

    Raises:
        ValueError: if the columns or the labels are not what they should be; names the file.
    """
    if not source.available:
        return None
    data = read_tables(
        source,
        lambda table, origin: _checked(table, origin, columns, labels),
        _features(columns[0], labels),
        {"columns": columns, "labels": labels, "by name": 2},
        cache,
    )
    if not len(data):
        raise ValueError(f"{source.origin} has no labelled row; expected at least one")
    return limited(data, limit)


def read_tables(
    source: Source,
    convert: Callable[[Any, str], Any],
    features: Any,
    key: Mapping[str, Any],
    cache: Path | None,
) -> Dataset:
    """Read the parquet files of a split, or its copy of the Hub, a part at a time.

    Args:
        source: available, and not generated.
        convert: (pyarrow table of some rows, name of their origin) -> table of the schema of
            `features`.
        features: of the result.
        key: what `convert` depends on, as plain values.
        cache: `paths.cache`; None: the result is held in memory.

    Returns:
        The data set, memory-mapped if there is a cache.

    Raises:
        ValueError: if a file is not parquet, and what `convert` raises.
    """
    from moe_runner.tasks.cache import cached_batches

    files, tables = _open(source)
    if cache is not None and files:
        key = {"files": content_hash(files, cache / "hashes.json"), **key}
    else:
        cache = None  # nothing says what is read: a data set that is in memory already
    return cached_batches(
        lambda: (convert(table, source.origin) for table in tables()), features, key, cache
    )


def read_table(source: Source, label: str = "label") -> tuple[Any, str]:
    """Read one split as it is, into memory.

    Args:
        source: where it is; available.
        label: the column whose names of classes are kept; see `class_names`.

    Returns:
        A pyarrow table, and what names it in errors.

    Raises:
        ValueError: if its files do not agree on the names of the labels, or on types.
    """
    import pyarrow as pa  # heavy, so here

    _, tables = _open(source, label)
    parts = list(tables())
    if not parts:
        raise ValueError(f"{source.origin} has no row; expected at least one")
    if len({class_names(part.schema, label) for part in parts}) > 1:
        raise ValueError(f"{source.origin} name their labels in different orders; make them one")
    try:
        return pa.concat_tables(parts, promote_options="permissive"), source.origin
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{source.origin} do not go together: {error}") from error


def tidy(
    table: Any,
    origin: str,
    columns: Sequence[tuple[str, ...]],
    labels: tuple[str, ...],
    limit: int | None = None,
) -> Dataset:
    """Check a table and turn it into a data set; see `read`.

    Args:
        table: a pyarrow table.
        origin: names the table in errors: a file, or what stands for it.
        columns: as for `read`.
        labels: as for `read`.
        limit: as for `read`.

    Returns:
        The data set.

    Raises:
        ValueError: as for `read`.
    """
    from datasets import Dataset

    table = _checked(table, origin, columns, labels)
    if not len(table):
        raise ValueError(f"{origin} has no labelled row; expected at least one")
    return limited(Dataset(table), limit)


def chosen_rows(count: int, limit: int | None) -> list[int]:
    """Choose a random subset of so many rows, the same every time, in order; None: all."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), limit))


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Keep the `chosen_rows` of a data set."""
    rows = chosen_rows(len(dataset), limit)
    return dataset if len(rows) == len(dataset) else dataset.select(rows)


def fraction(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Keep a random share of the examples, in order; the labels are not balanced.

    A smaller share of the same seed is a part of a larger one, so that their difference is the
    number of examples alone.

    Args:
        dataset: at least one example.
        share: above 0, to 1.
        seed: another seed draws others.

    Returns:
        `share` of the examples, rounded, but at least one.
    """
    if share == 1.0:
        return dataset
    order = random.Random(f"fraction/{seed}").sample(range(len(dataset)), len(dataset))
    return dataset.select(sorted(order[: max(1, round(share * len(dataset)))]))


def _features(columns: tuple[str, ...], labels: tuple[str, ...]) -> Any:
    from datasets import ClassLabel, Features, Value

    label = ClassLabel(names=list(labels)) if labels else Value("float32")
    return Features({**dict.fromkeys(columns, Value("string")), "label": label})


def _checked(
    table: Any, origin: str, columns: Sequence[tuple[str, ...]], labels: tuple[str, ...]
) -> Any:
    """Take the columns of a table under their first names, and check the values; see `read`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    here = table.column_names
    names = next((n for n in columns if {*n, "label"} <= set(here)), None)
    if names is None:
        expected = ", ".join((*columns[0], "label"))
        raise ValueError(f"{origin} has the columns {', '.join(here)}; expected {expected}")
    text = {
        new: _column(table, old, pa.string(), origin)
        for new, old in zip(columns[0], names, strict=True)
    }
    table = pa.table({**text, "label": _label(table, origin, labels)})
    if labels:
        table = table.filter(pc.not_equal(table["label"], -1))
    least, most = (0, len(labels) - 1) if labels else SCORE_RANGE
    inside = pc.and_(pc.greater_equal(table["label"], least), pc.less_equal(table["label"], most))
    if len(table) and not pc.all(inside).as_py():
        outside = table["label"].filter(pc.invert(inside))[0].as_py()
        names_of_labels = f" ({', '.join(labels)})" if labels else ""
        raise ValueError(
            f"{origin} has the label {outside}; expected {least} to {most}{names_of_labels}"
        )
    return table.cast(_features(columns[0], labels).arrow_schema)


def class_names(schema: Any, label: str = "label") -> tuple[str, ...] | None:
    """Read the class names of a column from a schema; None: it names none.

    Args:
        schema: of pyarrow, as `datasets` writes it, or as `_parquet_tables` keeps it.
        label: the column; of what `_parquet_tables` keeps, the one that it was asked for.
    """
    metadata = schema.metadata or {}
    if CLASSES in metadata:
        return tuple(json.loads(metadata[CLASSES]))
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names))


def _label(table: Any, origin: str, labels: tuple[str, ...]) -> Any:
    """Take the label column as numbers of the task's classes, or as scores.

    Names decide: those that are the values, or those that the file's schema gives its numbers.

    Raises:
        ValueError: if a name is not one of the task's, or the values are of another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not labels:
        return _column(table, "label", pa.float32(), origin)
    column = plain_column(table, "label", origin)
    order = {spelled(name): number for number, name in enumerate(labels)}
    if pa.types.is_string(column.type):
        if column.null_count:
            raise ValueError(f"{origin} has {column.null_count} empty values in the column label")
        unknown = [name for name in column.unique().to_pylist() if spelled(name) not in order]
        if unknown:
            raise ValueError(
                f"{origin} has the label {unknown[0]!r} (type string in the column label); "
                f"expected one of {', '.join(labels)}"
            )
        return pa.chunked_array([[order[spelled(name)] for name in column.to_pylist()]], pa.int64())
    numbers = _column(table, "label", pa.int64(), origin)
    names = class_names(table.schema)
    found = [_known(spelled(name), order) for name in names or ()]
    if all(order.get(name, number) == number for number, name in enumerate(found)):
        if other := [
            name for number, name in enumerate(found) if name not in (*order, str(number))
        ]:
            _tell_of_words(origin, tuple(other), labels)
        return numbers  # none, the same order, or other words
    if sorted(found) != sorted(order):
        raise ValueError(
            f"{origin} names its labels {', '.join(names or ())}; expected {', '.join(labels)}"
        )
    _tell_of_order(origin, tuple(found))
    mapped = {number: order[name] for number, name in enumerate(found)} | {-1: -1}
    unnamed = [n for n in pc.unique(numbers).to_pylist() if n not in mapped]
    if unnamed:
        raise ValueError(f"{origin} has the label {unnamed[0]}, which its schema does not name")
    return pa.chunked_array([[mapped[number] for number in numbers.to_pylist()]], pa.int64())


def _known(name: str, order: Mapping[str, int]) -> str:
    """Find the class that a name means, which may be cut short: pos is positive."""
    meant = [other for other in order if other.startswith(name) or name.startswith(other)]
    return meant[0] if name not in order and len(meant) == 1 else name


@functools.cache
def _tell_of_words(origin: str, names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Warn once of a file whose classes have names that say nothing here."""
    log.warning(
        "  %s names labels %s; they are taken by number, as %s",
        origin, ", ".join(names), ", ".join(labels),
    )  # fmt: skip


@functools.cache
def _tell_of_order(origin: str, names: tuple[str, ...]) -> None:
    """Warn once of a file that counts its classes in another order."""
    log.warning(
        "  %s names its labels in another order (%s): they are taken by name",
        origin, ", ".join(names),
    )  # fmt: skip


def spelled(name: str) -> str:
    """Write a class name so that spellings agree: "Not entailment" and "not_entailment"."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _column(table: Any, name: str, kind: Any, origin: str) -> Any:
    """Take a column as pyarrow type `kind`; a ValueError says where its values don't fit."""
    import pyarrow as pa

    column = plain_column(table, name, origin)
    if column.null_count:
        raise ValueError(f"{origin} has {column.null_count} empty values in the column {name}")
    is_text = pa.types.is_string(column.type)
    try:
        if is_text == pa.types.is_string(kind):  # else a number would be spelled, a text parsed
            return column.cast(kind)
    except pa.ArrowInvalid:  # such as 0.5 for a class
        pass
    raise ValueError(
        f"{origin} has values of type {column.type} in the column {name} that are no {kind}"
    )


def plain_column(table: Any, name: str, origin: str) -> Any:
    """Take a column whose texts have one type, whatever wrote them.

    pandas' categories, polars' and duckdb's views, large strings and Spark's bytes become strings.

    Args:
        table: of pyarrow.
        name: a column that is there.
        origin: names the table in errors.

    Returns:
        The column; other types are as they were.

    Raises:
        ValueError: if the column is there twice, or bytes are no UTF-8; names the row.
    """
    import pyarrow as pa

    if (times := table.column_names.count(name)) > 1:
        raise ValueError(f"{origin} has the column {name} {times} times; rename all but one")
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if not any(is_kind(column.type) for is_kind in kinds):
        return column
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            (value or b"").decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{origin}: the column {name} has bytes that are no UTF-8 (row {row} of those "
                f"read together: {error.reason}); write it as text"
            ) from error
    return column.cast(pa.binary()).cast(pa.string())


def _parquet_tables(files: Sequence[Path], label: str) -> Iterator[Any]:
    """Yield the rows of parquet files, some at a time, as pyarrow tables.

    Args:
        files: of one split.
        label: of this column, the names of the classes are kept as metadata.

    Raises:
        ValueError: if a file is not parquet; names it.
    """
    # Heavy, so here; pyarrow instead of load_dataset("parquet"), which copies all to its cache.
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS):
                table = pa.Table.from_batches([batch])
                classes = class_names(table.schema, label)
                kept = None if classes is None else {CLASSES: json.dumps(classes)}
                yield table.replace_schema_metadata(kept)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{file} cannot be read as parquet: {reason}") from error


def _open(
    source: Source, label: str = "label"
) -> tuple[tuple[Path, ...], Callable[[], Iterable[Any]]]:
    """Open parquet files, or a split of the Hub, from the cache where it is there.

    Returns:
        The files on this machine, and a function that gives their rows as pyarrow tables.
    """
    place, files = source.hub, source.files
    if place is None:
        return files, lambda: _parquet_tables(files, label)
    files = hub.cached_dataset(place.hub_id, place.config, place.split, place.revision)
    if files and files[0].suffix == ".parquet":
        return files, lambda: _parquet_tables(files, label)
    from datasets import Dataset, concatenate_datasets, load_dataset

    if files:
        data = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    else:
        with fetching("dataset", place.hub_id, place.revision):
            data = load_dataset(
                place.hub_id, place.config, split=place.split, revision=place.revision
            )
        files = tuple(Path(entry["filename"]) for entry in data.cache_files)
    return files, lambda: data.with_format("arrow").iter(ROWS)
