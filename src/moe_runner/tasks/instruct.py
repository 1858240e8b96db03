"""The suite `instruct`: instructions with responses, as Alpaca has them; scored on MMLU too.

Source: Alpaca (tatsu-lab/alpaca), its data format and prompt; EMoE's experiments with Llama
(PROTOCOL.md I.4).
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import InstructTask, Task
from moe_runner.tasks import mmlu
from moe_runner.tasks.base import (
    About,
    OODSpec,
    Recipe,
    Source,
    TaskData,
    TaskSpec,
    check,
    chosen_ood,
    hub_source,
    hub_split,
    ood_part,
    optional,
    read_table,
    subset,
)

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

HUB_ID = "tatsu-lab/alpaca"
COLUMNS = ("instruction", "input", "output")
SUFFIXES = (".json", ".jsonl", ".parquet")
MULTIPLE = 128  # the training records are cut to a multiple of it: EMoE's code
RECIPE = Recipe(
    epochs={"full": 3, "lora": 3, "lora_block": 3},
    learning_rate=2e-5,
    batch_size=128,
    eval_batch_size=16,  # ours
    schedule="cosine",
    warmup_ratio=0.03,
)
TASKS: dict[str, TaskSpec] = {
    "alpaca": TaskSpec(
        name="alpaca",
        form="instruct",
        columns=COLUMNS,
        metrics=("perplexity",),
        validation=("validation",),
        ood=("mmlu",),
        recipe=RECIPE,
        about=About(source=HUB_ID, licence="CC BY-NC 4.0"),
    )
}

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


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on: MMLU."""
    return TASKS[task_name].ood


def sources(options: Task, name: str) -> dict[str, Source]:
    """Find out where the records are, and MMLU.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        "train", "validation" (held out of the same files) and "ood/mmlu" if it is chosen, with a
        problem if the user named it and it can't be had.

    Raises:
        ConfigError: for an unknown out-of-domain set.
    """
    records = record_source(options)
    found = {"train": records, "validation": records}
    for ood, named in chosen_ood(options, name, ood_names, TASKS[name].ood).items():
        place = mmlu.source(options)
        found[f"ood/{ood}"] = place if named else optional(place)
    return found


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Read the records, hold some of them out, and read MMLU.

    Args:
        options: the task's options.
        name: the member task.
        cache: `paths.cache`; only what is encoded is kept there.

    Returns:
        The data: text columns `COLUMNS`, and for MMLU those of `mmlu.COLUMNS`.

    Raises:
        ConfigError: if the data can't be had, or for an unknown out-of-domain set.
        ValueError: if a record or a question is not what it should be; names file and place.
    """
    assert isinstance(options, InstructTask)
    found = sources(options, name)
    check(found)
    records = read_records(found["train"])
    ood = {ood: mmlu.load(place, options) for ood, place in ood_part(found).items()}
    return assemble(TASKS[name], records, ood, options)


def assemble(
    spec: TaskSpec,
    records: list[dict[str, str]],
    ood: dict[str, Dataset | None],
    options: InstructTask,
) -> TaskData:
    """Put the data of a task together: divided records, and sets of questions; see `divided`."""
    train, validation = divided(records, options)
    return TaskData(
        spec=spec,
        train=train,
        validation={"validation": validation},
        ood=ood,
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
    kept = some_of(kept, options.limit)
    if len(kept) > MULTIPLE:
        kept = kept[: len(kept) // MULTIPLE * MULTIPLE]
    return (
        Dataset.from_list([records[i] for i in kept]),
        Dataset.from_list([records[i] for i in some_of(held_out, options.eval_limit)]),
    )


def some_of(items: list[int], limit: int | None) -> list[int]:
    """Choose a random subset of so many items, see `subset`."""
    chosen = subset(len(items), limit)
    return items if chosen is None else [items[place] for place in chosen]


# ------------------------------------------------------------------------------------- records


def record_source(options: Task) -> Source:
    """Say where the records are: `task.data_dir`, a file or a folder, else the Hub."""
    if options.data_dir is None:
        place = hub_split(options, HUB_ID, "default", "train")
        return hub_source(place, "use task.data_dir=<file or folder>, or task=instruct_mini")
    path = Path(options.data_dir).expanduser()
    given = f"task.data_dir={options.data_dir}"
    formats = "json, jsonl or parquet"
    if path.is_file():
        if path.suffix not in SUFFIXES:
            return Source(problem=f"{given} is not a file of records; give one of type {formats}")
        return Source(files=(path,))
    if not path.is_dir():
        return Source(problem=f"{given} does not exist; give a file or a folder with {formats}")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    for stem in ("train", "alpaca"):
        if named := [file for file in files if file.stem.startswith(stem)]:
            files = named
            break
    if not files:
        return Source(problem=f"{given} holds no records: looked for files of type {formats}")
    parts = all(file.suffix == ".parquet" and "-of-" in file.stem for file in files)
    if len(files) > 1 and not parts:
        names = ", ".join(file.name for file in files)
        return Source(problem=f"{given} holds several files ({names}); give the path of one")
    return Source(files=tuple(files))


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
