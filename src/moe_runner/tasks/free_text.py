"""Reading texts that are answered by a text.

Heavy imports (datasets, pyarrow) stay inside the functions that read data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import Task
from moe_runner.tasks.places import Source, chosen_ood, hub_split, split_source
from moe_runner.tasks.tables import limited, plain_column, read_tables

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1  # raised when the same files would give other examples


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on besides its own: none."""
    return ()


def no_ood(options: Task, name: str) -> None:
    """Stop if an out-of-domain set is asked for.

    Raises:
        ConfigError: with the name that was given.
    """
    chosen_ood(options, name, ood_names, ())


def both_splits(
    options: Task, name: str, hub_id: str, config: str, *, instead: str
) -> dict[str, Source]:
    """Find out where the splits of a task without out-of-domain sets are, without reading them.

    Args:
        options: the task's options.
        name: the member task.
        hub_id: of its data set on the Hub.
        config: there.
        instead: a task that needs no data, for the remedy; "" if there is none.

    Returns:
        "train" and "validation"; with a problem if they can't be had.

    Raises:
        ConfigError: for an out-of-domain set.
    """
    no_ood(options, name)
    return {
        split: split_source(
            options, name, hub_split(options, hub_id, config, split), instead=instead
        )
        for split in ("train", "validation")
    }


def read_texts(
    source: Source,
    columns: Mapping[str, str],
    target: str,
    *,
    limit: int | None = None,
    first: int | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Read a split whose answers are texts.

    Args:
        source: where it is; available.
        columns: what the task calls a column -> what the files call it.
        target: the column of the answer: a text, or SQuAD's {text: [...], answer_start: [...]}.
        limit: keep a random subset of so many examples, the same every time, in order.
        first: keep so many examples from the start.
        cache: `paths.cache`: the examples are memory-mapped from there; None: held in memory.

    Returns:
        The columns, `label` (the answer, or the first one) and `references` (all of them).

    Raises:
        ValueError: if a column is missing, holds no texts or lacks some; names the file.
    """
    data = read_tables(
        source,
        lambda table, origin: _checked(table, origin, columns, target),
        _features(columns),
        {"free_text": VERSION, "columns": columns, "target": target},
        cache,
    )
    if not len(data):
        raise ValueError(f"{source.origin} has no row; expected at least one")
    if first is not None and first < len(data):
        return data.select(range(first))
    return limited(data, limit)


def texts(
    table: Any, origin: str, columns: Mapping[str, str], target: str, limit: int | None = None
) -> Dataset:
    """Check a table and turn it into a data set; see `read_texts`.

    Args:
        table: a pyarrow table.
        origin: names the table in errors.
        columns: as for `read_texts`.
        target: as for `read_texts`.
        limit: as for `read_texts`.

    Raises:
        ValueError: as for `read_texts`.
    """
    from datasets import Dataset

    return limited(Dataset(_checked(table, origin, columns, target)), limit)


def _features(columns: Mapping[str, str]) -> Any:
    from datasets import Features, List, Value

    plain = {name: Value("string") for name in (*columns, "label")}
    return Features({**plain, "references": List(Value("string"))})


def _checked(table: Any, origin: str, columns: Mapping[str, str], target: str) -> Any:
    """Take the columns of a table under the task's names, and list the answers."""
    import pyarrow as pa

    expect(table, origin, [*columns.values(), target])
    given = {
        old: plain_column(table, old, origin).to_pylist() for old in (*columns.values(), target)
    }
    found = {new: _strings(given[old], old, origin) for new, old in columns.items()}
    references = [_answers(value, target, origin) for value in given[target]]
    return pa.table(
        {**found, "label": [answers[0] for answers in references], "references": references},
        schema=_features(columns).arrow_schema,
    )


def expect(table: Any, origin: str, columns: Sequence[str]) -> None:
    """Stop if a column is missing.

    Raises:
        ValueError: with the columns that are there and those that should be.
    """
    if not set(columns) <= set(table.column_names):
        raise ValueError(
            f"{origin} has the columns {', '.join(table.column_names)}; "
            f"expected {', '.join(columns)}"
        )


def _strings(values: list[Any], column: str, origin: str) -> list[str]:
    for value in values:
        if not isinstance(value, str):
            kind = "empty values" if value is None else f"values of type {type(value).__name__}"
            raise ValueError(f"{origin} has {kind} in the column {column}; expected texts")
    return values


def _answers(value: Any, column: str, origin: str) -> list[str]:
    """List the right answers of one example, each once, in their order."""
    given = value.get("text") if isinstance(value, dict) else [value]
    if not given:
        raise ValueError(
            f"{origin} has a question without an answer in the column {column}; SQuAD 1.1 has none"
        )
    return list(dict.fromkeys(_strings(given, column, origin)))
