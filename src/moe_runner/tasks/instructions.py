"""Instructions with responses: reading records, holding some out, writing the prompt."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import InstructTask
from moe_runner.tasks import mmlu
from moe_runner.tasks.places import Source
from moe_runner.tasks.records import read_rows, refuse_half
from moe_runner.tasks.specs import OODSpec, TaskData, TaskSpec
from moe_runner.tasks.tables import chosen_rows, read_table

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

COLUMNS = ("instruction", "input", "output")
ASKS, ANSWERS = ("user", "human", "prompter"), ("assistant", "gpt", "model")  # roles
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
    validation: list[dict[str, str]] | None = None,
) -> InstructData:
    """Put the data of a task together: divided records, and sets of questions; see `divided`."""
    for part in (records, validation or []):
        empty = sum(not record["output"].strip() for record in part)
        if empty and empty == len(part):
            raise ValueError(f"all {empty} records have an empty response; expected texts")
        if empty:
            log.warning("  %d of the %d records have an empty response", empty, len(part))
    train, held_out = divided(records, options, validation)
    return InstructData(
        spec=spec,
        train=train,
        validation={"validation": held_out},
        ood=ood,
        options=options,
        ood_specs=dict.fromkeys(ood, OODSpec(columns=mmlu.COLUMNS, metrics=("accuracy",))),
    )


def divided(
    records: list[dict[str, str]],
    options: InstructTask,
    validation: list[dict[str, str]] | None = None,
) -> tuple[Dataset, Dataset]:
    """Hold records out, and cut the others to `limit` and to a multiple of `MULTIPLE`.

    Args:
        records: in the order of the files; only the rest of fewer than `MULTIPLE` is not cut.
        options: `validation_size`, `data_seed` (which ones), `limit` and `eval_limit`.
        validation: records of a file of their own; then none of the others is held out.

    Returns:
        Training and held-out records.

    Raises:
        ValueError: if nothing is left to train on, or to validate.

    Source: EMoE's code cuts to a multiple of 128. That a part is held out is ours.
    """
    from datasets import Dataset  # heavy, so here

    given = options.data_dir or options.hub_id
    if not records:
        raise ValueError(f"{given} has no record; expected some")
    if validation is None:
        size = options.validation_size
        if len(records) <= size:
            raise ValueError(
                f"task.validation_size={size} leaves none of the {len(records)} records to train "
                "on; use a smaller one"
            )
        held_out = sorted(random.Random(options.data_seed).sample(range(len(records)), size))
        kept = sorted(set(range(len(records))) - set(held_out))
        validation, records = [records[i] for i in held_out], [records[i] for i in kept]
    elif not validation:
        raise ValueError(f"{given} has no record for validation; expected some")
    records = [records[i] for i in chosen_rows(len(records), options.limit)]
    if len(records) > MULTIPLE:
        records = records[: len(records) // MULTIPLE * MULTIPLE]
    validation = [validation[i] for i in chosen_rows(len(validation), options.eval_limit)]
    return Dataset.from_list(records), Dataset.from_list(validation)


# ------------------------------------------------------------------------------------- records


def read_records(source: Source, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read records in the format of Alpaca, of the seed tasks that it was grown from, or others.

    Args:
        source: files (csv, tsv, JSON lines, JSON, parquet) or the Hub.
        columns: what instruction and output, or instruction, input and output are called; of one
            name, the column of conversations; empty: Alpaca's names.

    Returns:
        Records with the keys of `COLUMNS`, all text.

    Raises:
        ValueError: if a file cannot be read, or a record lacks an instruction or an output; names
            the file and the place.
    """
    if source.hub is not None:
        table, origin = read_table(source)
        rows = [(row, origin, number) for number, row in enumerate(table.to_pylist(), start=1)]
    else:
        rows = [
            (row, str(file), number)
            for file in source.files
            for number, row in enumerate(read_rows(file), start=1)
        ]
    if len(columns) == 1:
        return conversations(rows, columns[0])
    names = dict(zip(COLUMNS if len(columns) == 3 else COLUMNS[::2], columns, strict=False))
    if rows and (missing := [name for name in names.values() if name not in rows[0][0]]):
        here = ", ".join(map(str, rows[0][0]))
        raise ValueError(f"{rows[0][1]} has the columns {here}; it lacks {', '.join(missing)}")
    return [
        record({ours: row.get(name) for ours, name in names.items()} or row, origin, number)
        for row, origin, number in rows
    ]


def conversations(
    rows: Sequence[tuple[Mapping[str, Any], str, int]], column: str
) -> list[dict[str, str]]:
    """Make a record of the first question and answer of every conversation.

    Args:
        rows: with what names the file, and the number of the row.
        column: lists of messages, {role, content} or {from, value}; a system's message stands
            before the question.

    Raises:
        ValueError: if a row has no such list, no answer to a question in it, or what is no text.
    """
    found, longer = [], 0
    for row, origin, number in rows:
        given = row.get(column)
        messages = [_message(each) for each in given] if isinstance(given, list) else []
        asked = next((i for i, (role, _) in enumerate(messages) if role in ASKS), None)
        if asked is None or len(messages) <= asked + 1 or messages[asked + 1][0] not in ANSWERS:
            raise ValueError(
                f"{origin}: record {number} has no question with an answer in the column {column}; "
                "it holds messages such as {role: user, content: ...}, {role: assistant, ...}"
            )
        longer += len(messages) > asked + 2
        taken = [message for message in messages[:asked] if message[0] == "system"]
        taken += messages[asked : asked + 2]
        *asks, answer = (_text(content, role, origin, number) for role, content in taken)
        fields = {"instruction": "\n\n".join(asks), "output": answer}
        found.append(record(fields, origin, number))
    if longer:
        log.warning(
            "  %d of %d conversations go on after the first answer: what follows is left out",
            longer, len(found),
        )  # fmt: skip
    return found


def _message(message: Any) -> tuple[str, Any]:
    """Take role and content of a message, in OpenAI's or ShareGPT's words."""
    fields = message if isinstance(message, Mapping) else {}
    role = fields.get("role") or fields.get("from") or ""
    return str(role).lower(), fields.get("content", fields.get("value"))


def _text(content: Any, role: str, origin: str, number: int) -> str:
    """Take the text of a message, or of its parts, a line feed between them.

    Raises:
        ValueError: if there is none, or a part is no text, as an image.
    """
    parts = content if isinstance(content, list) else [content]
    found = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise ValueError(
            f"{origin}: record {number} has a message of {role} whose content is no text: "
            f"{str(content)[:40]}; leave out such records, or messages"
        )
    return "\n".join(texts)


def record(row: Any, origin: str, number: int) -> dict[str, str]:
    """Check one record.

    Args:
        row: with instruction, output and perhaps an input; or a seed task, with `instances` (of
            which the first is taken).
        origin: names the file.
        number: of the row, from 1.

    Raises:
        ValueError: if instruction or output is missing, or no text, or has half a character.
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
    found = {name: fields.get(name) or "" for name in COLUMNS}
    for name, text in found.items():
        refuse_half(text, origin, number, name)
    return found
