"""Rows of the files that other tools write: csv, tsv, JSON lines, JSON, parquet; also gzipped.

A row is a mapping from column to value. What cannot be read is named with file, row and remedy.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
CLUTTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of systems, not data
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)  # what gzip raises, some of it far into a file
QUOTE = (
    "a quote at its start takes what follows up to the next one; put a text that has quotes in "
    'quotes and double its own ("")'
)


def is_clutter(name: str) -> bool:
    """Tell whether a file or folder is no data: hidden, or left there by a system."""
    return name.startswith(".") or name in CLUTTER


def kind_of(file: Path) -> str:
    """Name the format of a file by its suffix, a `.gz` behind it left out: ".jsonl", or ""."""
    suffixes = [s.lower() for s in file.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file, one after the other.

    Args:
        file: its suffix is one of `SUFFIXES`, perhaps with `.gz` behind it.

    Yields:
        Column -> value; of csv and tsv all values are strings.

    Raises:
        ValueError: if the file is not what its suffix says, or not UTF-8, or a quote makes one row
            of several in tsv; names file and row.
    """
    kind = kind_of(file)
    if kind == ".parquet":
        yield from _parquet_rows(file)
    elif kind in (".csv", ".tsv"):
        yield from _table_rows(file, "," if kind == ".csv" else "\t")
    else:
        yield from _json_rows(file)


def columns_of(file: Path) -> list[str]:
    """List the columns of a file's first row; empty if it has no row, but for parquet.

    Raises:
        ValueError: as `read_rows`.
    """
    if kind_of(file) == ".parquet":
        with _opened_parquet(file) as parts:
            return list(map(str, parts.schema_arrow.names))
    return list(map(str, next(read_rows(file), {})))


def refuse_other_types(files: Sequence[Path]) -> None:
    """Refuse parts of one table of parquet whose columns have types that do not go together.

    Raises:
        ValueError: naming the first part and the one that differs, and as `read_rows`.
    """
    import pyarrow as pa  # heavy, so here

    known = None
    for file in files:
        with _opened_parquet(file) as parts:
            schema = parts.schema_arrow
        try:
            here = [schema] if known is None else [known, schema]
            known = pa.unify_schemas(here, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"{files[0]} and {file} are no one table ({error}); write all parts with the same "
                "types"
            ) from error


def read_column(file: Path, column: str) -> Iterator[str]:
    """Read a column of texts.

    Raises:
        ValueError: if a row lacks the column, or has no text there, and as `read_rows`.
    """
    for number, row in enumerate(read_rows(file), start=1):
        if column not in row:
            here = ", ".join(map(str, row))
            raise ValueError(
                f"{file}: row {number} has the columns {here}; expected {column} (task.text)"
            )
        value = row[column]
        if isinstance(value, bytes):  # Spark writes texts like that
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                raise _not_text(file, number, error) from error
        if not isinstance(value, str):
            raise ValueError(
                f"{file}: row {number} has {value!r} in the column {column}, which is no text"
            )
        refuse_half(value, str(file), number, column)
        yield value


def refuse_half(text: str, origin: str, number: int, column: str) -> None:
    """Refuse a lone surrogate, which no tokenizer takes.

    Raises:
        ValueError: naming the row.
    """
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError(
            f"{origin}: row {number} has half a character in the column {column} (a lone "
            "surrogate, of a text that was cut in the middle of a pair); write it anew"
        )


def open_text(file: Path) -> io.TextIOWrapper:
    """Open a text file, gzipped or not; a byte order mark is left out, UTF-16 is known by its own.

    Raises:
        ValueError: if it is compressed and its name does not say so.
    """
    packed = file.suffix.lower() == ".gz"
    opened = partial(gzip.open if packed else open, file, "rb")
    try:
        with opened() as probe:
            first = probe.read(2)
    except DAMAGED as error:
        raise _not_whole(file, error) from error
    if first == b"\x1f\x8b":
        raise ValueError(f"{file} is gzipped; add .gz to its name")
    encoding = "utf-16" if first in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    stream: Any = opened()
    return io.TextIOWrapper(stream, encoding=encoding, newline="")


def refuse_doubled(file: Path, header: Sequence[str]) -> None:
    """Refuse two columns of one name, of which a row would keep the last.

    Raises:
        ValueError: naming the first such column.
    """
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{file} has the column {double} twice; rename one")


@contextmanager
def _opened_text(file: Path) -> Iterator[io.TextIOWrapper]:
    """Open a text file as `open_text`; where reading it fails, damage of gzip is what is told."""
    with open_text(file) as stream:
        try:
            yield stream
        except (ValueError, *DAMAGED):
            if file.suffix.lower() == ".gz":
                _refuse_damaged(file)  # which may have given rows of nonsense before it shows
            raise


def _refuse_damaged(file: Path) -> None:
    """Read a gzip file to its end.

    Raises:
        ValueError: if it is not whole; names it.
    """
    try:
        with gzip.open(file) as stream:
            while stream.read(2**20):
                pass
    except DAMAGED as error:
        raise _not_whole(file, error) from error


def _not_whole(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is no whole gzip file ({error}); write it anew")


def _not_text(file: Path, number: int, error: UnicodeDecodeError) -> ValueError:
    """Word what is no text, in or after the row of a number: files are decoded in pieces."""
    number += error.object[: error.start].count(b"\n")
    return ValueError(
        f"{file}: about row {number} is not {error.encoding} ({error.reason}); save it as UTF-8"
    )


def _table_rows(file: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    number, told = 0, False
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the library's 131,072 letters
    with _opened_text(file) as stream:
        try:
            rows = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(rows, [])
            refuse_doubled(file, header)
            line = rows.line_num
            for number, row in enumerate(rows, start=1):
                first, line = line + 1, rows.line_num
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{file}: row {number} has {len(row)} values and the header {len(header)} "
                        "columns; quote values that hold the separator"
                    )
                if line > first and not told and _holds_rows(row, delimiter):
                    _tell_of_quote(f"{file}: row {number} (lines {first} to {line})", delimiter)
                    told = True  # the first such row is enough
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(f"{file}: row {number + 1} cannot be read: {error}") from error
        except UnicodeDecodeError as error:
            raise _not_text(file, number + 1, error) from error


def _holds_rows(row: Sequence[str], delimiter: str) -> bool:
    """Tell whether a value of several lines holds rows: those after a quote that nothing closes.

    Of tsv, lines and tabs are enough. Texts of csv have commas, too: there every line must have as
    many as its part of a row, none with a space behind it.
    """
    for place, value in enumerate(row):
        lines = re.split("\r\n|\r|\n", value)
        if delimiter not in value or len(lines) == 1:
            continue
        whole = len(row) - 1
        counts = [whole - place, *[whole] * (len(lines) - 2), place]
        exact = [line.count(delimiter) for line in lines] == counts
        if delimiter == "\t" or exact and ", " not in value:
            return True
    return False


def _tell_of_quote(where: str, delimiter: str) -> None:
    """Refuse rows of tsv that a quote has made one; warn of those of csv, which may be a text.

    Raises:
        ValueError: for tsv.
    """
    if delimiter == "\t":
        raise ValueError(
            f"{where} has a text with line feeds and tabs: {QUOTE}, or save all as JSON lines"
        )
    _warn_of_quote(where)


@functools.cache
def _warn_of_quote(where: str) -> None:
    """Warn once, however often a file is read."""
    log.warning("  %s has a text of several lines that look like rows: %s", where, QUOTE)


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read objects of JSON, one a line, or one array of them."""
    number = 0
    with _opened_text(file) as stream:
        try:
            for line in stream:
                if not line.strip():
                    continue
                if number == 0 and line.lstrip().startswith("["):
                    rows = json.loads(line + stream.read())
                elif number == 0 and line.strip() == "{":
                    raise ValueError(
                        f"{file} holds one object; write an array of rows or a row a line (pandas: "
                        "to_json(orient='records', lines=True))"
                    )
                else:
                    rows = [json.loads(line)]
                for row in rows:
                    number += 1
                    if not isinstance(row, dict):
                        raise ValueError(
                            f"{file}: row {number} is no object {{column: value}}: {str(row)[:40]}"
                        )
                    yield row
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: row {number + 1} is no JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise _not_text(file, number + 1, error) from error


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    with _opened_parquet(file) as parts:
        for batch in parts.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


@contextmanager
def _opened_parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa  # heavy, so here
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parts:
            refuse_doubled(file, parts.schema_arrow.names)
            yield parts
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} cannot be read as parquet: {reason}") from error
