"""The suite `instruct`: instructions with responses, as Alpaca has them; scored on MMLU too.

Source: Alpaca (tatsu-lab/alpaca), its data format and prompt; EMoE's experiments with Llama
(PROTOCOL.md I.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_runner.options.task import InstructTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import mmlu
from moe_runner.tasks.instructions import COLUMNS, assemble, read_records
from moe_runner.tasks.own_files import one_table, split_of, warn_of_unread
from moe_runner.tasks.places import (
    Source,
    check,
    chosen_ood,
    hub_source,
    hub_split,
    ood_part,
    optional,
)
from moe_runner.tasks.records import is_clutter, kind_of
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

HUB_ID = "tatsu-lab/alpaca"
OWN = "instruct"
FORMATS = "csv, tsv, json, jsonl or parquet"
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
TASKS[OWN] = replace(
    TASKS["alpaca"],
    name=OWN,
    about=About(source="task.data_dir, task.hub_id", licence="the data's own"),
)


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on: MMLU."""
    return TASKS[task_name].ood


class Instructions(Suite[InstructTask]):
    """Records in the format of Alpaca, and the questions of MMLU."""

    options = InstructTask
    specs = TASKS

    def sources(self, options: InstructTask, name: str) -> dict[str, Source]:
        """See `Suite`; without a table of its own, "validation" is a part of "train"."""
        found = record_sources(options)
        for ood, named in chosen_ood(options, name, ood_names, TASKS[name].ood).items():
            place = mmlu.source(options)
            found[f"ood/{ood}"] = place if named else optional(place)
        return found

    def load(self, options: InstructTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; of `cache` only what is encoded makes use.

        Raises:
            ConfigError: as for every suite.
            ValueError: if a record or a question is not what it should be; names file and place.
        """
        found = self.sources(options, name)
        check(found)
        records = read_records(found["train"], options.columns)
        validation = None
        if found["validation"] != found["train"]:
            validation = read_records(found["validation"], options.columns)
        ood = {ood: mmlu.load(place, options) for ood, place in ood_part(found).items()}
        return assemble(TASKS[name], records, ood, options, validation)


def record_sources(options: InstructTask) -> dict[str, Source]:
    """Say where the records are: in `task.data_dir`, a file or a folder, else on the Hub.

    Returns:
        "train" and "validation"; they are the same unless a folder has a table for each.
    """
    if options.data_dir is not None:
        found = _find_tables(
            Path(options.data_dir).expanduser(), f"task.data_dir={options.data_dir}"
        )
    elif options.hub_id is None and OWN in options.members:
        needs = "task.data_dir=<file or folder>, or task.hub_id=<data set>"
        found = {"train": Source(problem=f"task={OWN} needs {needs}")}
    else:
        place = hub_split(options, HUB_ID, options.config or "default", "train")
        remedy = "use task.data_dir=<file or folder>, or task=instruct_mini"
        found = {"train": hub_source(place, remedy)}
    found.setdefault("validation", found["train"])
    return found


def _find_tables(path: Path, given: str) -> dict[str, Source]:
    """Look for a table named train or alpaca, or the only one, and for one of validation."""
    if path.is_file():
        if kind_of(path):
            return {"train": Source(files=(path,))}
        problem = f"{given} is not a file of records; give one of type {FORMATS}"
        return {"train": Source(problem=problem)}
    if not path.is_dir():
        problem = f"{given} does not exist; give a file or a folder with {FORMATS}"
        return {"train": Source(problem=problem)}
    if not any(map(kind_of, path.iterdir())) and (path / "data").is_dir():
        path = path / "data"  # as repositories of the Hub have it
    files = sorted(file for file in path.iterdir() if kind_of(file) and not is_clutter(file.name))
    if not files:
        problem = f"{given} holds no records: looked for files of type {FORMATS}"
        return {"train": Source(problem=problem)}
    apart = [file for file in files if split_of(file.name) in ("validation", "test")]
    train = [file for file in files if file not in apart]
    for stem in ("train", "alpaca"):
        if named := [file for file in train if file.stem.startswith(stem)]:
            train = named
            break
    else:
        if apart:
            names = ", ".join(file.name for file in files)
            problem = f"{given} has no train table (it has {names}); name one train, or give its"
            return {"train": Source(problem=f"{problem} path")}
    validation = [file for file in apart if split_of(file.name) == "validation"]
    if unread := [file.name for file in files if file not in (*train, *validation)]:
        warn_of_unread(given, ", ".join(unread), "train and validation")
    found = {"train": train, "validation": validation}
    return {split: _table(files, given) for split, files in found.items() if files}


def _table(files: Sequence[Path], given: str) -> Source:
    """Take files as one table, or say why they are none."""
    if (reason := one_table(files)) is not None:
        return Source(problem=f"{given}: {reason}; give the path of one, or all parts of it")
    return Source(files=tuple(files))


SUITE: Suite[InstructTask] = Instructions()
