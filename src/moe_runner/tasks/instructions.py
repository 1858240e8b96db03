"""Instructions with responses: reading records, holding some out, writing the prompt."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import InstructTask
from moe_runner.tasks import mmlu
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import OODSpec, TaskData, TaskSpec
from moe_runner.tasks.tables import chosen_rows, read_table

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("instruction", "input", "output")
MULTIPLE = 128  # the training records are cut to a multiple of it: EMoE's code

# Prompts with and without an input. `alpaca` is that of the data set, the others are ours.
TEMPLATES: Mapping[str, tuple[str, str]] = {
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:",
    ),
    "plain": ("{instruction}\n{input}\n", "{instruction}\n"),
    "chat": ("User: {instruction}\n\n{input}\nAssistant: ", "User: {instruction}\nAssistant: "),
}


def prompt(template: str, instruction: str, given: str) -> str:
    """Write what the model reads before its response.

    Args:
        template: a key of `TEMPLATES`.
        instruction: what is to be done.
        given: the input; empty if there is none.
    """
    with_input, without = TEMPLATES[template]
    text = with_input if given else without
    # one pass: braces in a record are text
    before, _, rest = text.partition("{instruction}")
    between, placeholder, after = rest.partition("{input}")
    return before + instruction + between + (given if placeholder else "") + after


@dataclass(kw_only=True)
class InstructData(TaskData):
    """Records of `COLUMNS`, and sets of questions; see `mmlu.load`.

    Args:
        options: of the task; how prompts are written.
    """

    options: InstructTask


def assemble(
    spec: TaskSpec,
    records: list[dict[str, str]],
    ood: dict[str, Dataset | None],
    options: InstructTask,
) -> InstructData:
    """Put the data of a task together: divided records, and sets of questions; see `divided`."""
    train, validation = divided(records, options)
    return InstructData(
        spec=spec,
        train=train,
        validation={"validation": validation},
        ood=ood,
        options=options,
        ood_specs=dict.fromkeys(ood, OODSpec(columns=mmlu.COLUMNS, metrics=("accuracy",))),
    )


def divided(records: list[dict[str, str]], options: InstructTask) -> tuple[Dataset, Dataset]:
    """Hold records out, and cut the others to `limit` and to a multiple of `MULTIPLE`.

    Args:
        records: in the order of the files; only the rest of fewer than `MULTIPLE` is not cut.
        options: `validation_size`, `data_seed` (which ones), `limit` and `eval_limit`.

    Returns:
        Training and held-out records.

    Raises:
        ValueError: if nothing is left to train on.

    Source: EMoE's code cuts to a multiple of 128. That a part is held out is ours.
    """
    from datasets import Dataset  # heavy, so here

    if len(records) <= options.validation_size:
        raise ValueError(
            f"task.validation_size={options.validation_size} leaves none of the {len(records)} "
            "records to train on; use a smaller one"
        )
    held_out = sorted(
        random.Random(options.data_seed).sample(range(len(records)), options.validation_size)
    )
    kept = sorted(set(range(len(records))) - set(held_out))
    kept = [kept[i] for i in chosen_rows(len(kept), options.limit)]
    if len(kept) > MULTIPLE:
        kept = kept[: len(kept) // MULTIPLE * MULTIPLE]
    held_out = [held_out[i] for i in chosen_rows(len(held_out), options.eval_limit)]
    return (
        Dataset.from_list([records[i] for i in kept]),
        Dataset.from_list([records[i] for i in held_out]),
    )


# ------------------------------------------------------------------------------------- records


def read_records(source: Source) -> list[dict[str, str]]:
    """Read records in the format of Alpaca, or of the seed tasks that it was grown from.

    Args:
        source: files or the Hub.

    Returns:
        Records with the keys of `COLUMNS`, all text.

    Raises:
        ValueError: if a file is not UTF-8 or not JSON, or a record lacks an instruction or an
            output; names the file and the place.
    """
    if source.hub is not None:
        table, origin = read_table(source)
        return [record(row, origin, i) for i, row in rows_of(table)]
    found = []
    for file in source.files:
        found += [record(row, str(file), number) for number, row in read_rows(file)]
    return found


def read_rows(file: Path) -> Iterable[tuple[int, Any]]:
    """Read a file's rows with their number, from 1: lines of jsonl, else positions."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq  # heavy, so here

        return rows_of(pq.read_table(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}:{line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file"
        ) from None
    if file.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
        if not isinstance(rows, list):
            raise ValueError(f"{file} holds a {type(rows).__name__}; expected a list of records")
        return enumerate(rows, start=1)
    found = []
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            try:
                found.append((number, json.loads(line_text)))
            except ValueError as error:
                raise ValueError(f"{file}:{number} is not JSON: {error}") from None
    return found


def rows_of(table: Any) -> Iterable[tuple[int, Any]]:
    """Number the rows of a pyarrow table."""
    return enumerate(table.to_pylist(), start=1)


def record(row: Any, origin: str, number: int) -> dict[str, str]:
    """Check one record.

    Args:
        row: with instruction, output and perhaps an input; or a seed task, with `instances` (of
            which the first is taken).
        origin: names the file.
        number: of the row, from 1.

    Raises:
        ValueError: if instruction or output is missing or not text.
    """
    fields = row if isinstance(row, Mapping) else {}
    instances = fields.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], Mapping):
        fields = {**instances[0], "instruction": fields.get("instruction")}
    wrong = [name for name in ("instruction", "output") if not isinstance(fields.get(name), str)]
    if not isinstance(fields.get("input") or "", str):
        wrong.append("input")
    if wrong:
        raise ValueError(
            f"{origin}: record {number} has no text for {' and '.join(wrong)}; a record has "
            "instruction, output and, if needed, input"
        )
    return {name: fields.get(name) or "" for name in COLUMNS}
