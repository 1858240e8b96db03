"""The suite `instruct`: instructions with responses, as Alpaca has them; scored on MMLU too.

Source: Alpaca (tatsu-lab/alpaca), its data format and prompt; EMoE's experiments with Llama
(PROTOCOL.md I.4).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_runner.options.task import InstructTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import mmlu
from moe_runner.tasks.instructions import COLUMNS, assemble, read_records
from moe_runner.tasks.own_files import one_table
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
        """See `Suite`; "validation" is held out of the files of "train"."""
        records = record_source(options)
        found = {"train": records, "validation": records}
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
        ood = {ood: mmlu.load(place, options) for ood, place in ood_part(found).items()}
        return assemble(TASKS[name], records, ood, options)


def record_source(options: InstructTask) -> Source:
    """Say where the records are: `task.data_dir`, a file or a folder, else the Hub."""
    if options.data_dir is None:
        if options.hub_id is None and OWN in options.members:
            needs = "task.data_dir=<file or folder>, or task.hub_id=<data set>"
            return Source(problem=f"task={OWN} needs {needs}")
        place = hub_split(options, HUB_ID, options.config or "default", "train")
        return hub_source(place, "use task.data_dir=<file or folder>, or task=instruct_mini")
    path = Path(options.data_dir).expanduser()
    given = f"task.data_dir={options.data_dir}"
    formats = "csv, tsv, json, jsonl or parquet"
    if path.is_file():
        if not kind_of(path):
            return Source(problem=f"{given} is not a file of records; give one of type {formats}")
        return Source(files=(path,))
    if not path.is_dir():
        return Source(problem=f"{given} does not exist; give a file or a folder with {formats}")
    if not any(map(kind_of, path.iterdir())) and (path / "data").is_dir():
        path = path / "data"  # as repositories of the Hub have it
    files = sorted(file for file in path.iterdir() if kind_of(file) and not is_clutter(file.name))
    for stem in ("train", "alpaca"):
        if named := [file for file in files if file.stem.startswith(stem)]:
            files = named
            break
    if not files:
        return Source(problem=f"{given} holds no records: looked for files of type {formats}")
    if (reason := one_table(files)) is not None:
        return Source(problem=f"{given}: {reason}; give the path of one, or all parts of it")
    return Source(files=tuple(files))


SUITE: Suite[InstructTask] = Instructions()
