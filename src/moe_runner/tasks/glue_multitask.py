"""The suite `glue_multitask`: one run on a mixture of tasks, answered by texts.

The training examples of all tasks are put together; every task is scored by its own metrics, and
the primary number is the mean over the tasks. The task lists of EMoE's multi-task experiment are
unknown (PROTOCOL.md I.7): the list is ours, the eight tasks of GLUE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import Task
from moe_runner.tasks import glue, glue_mini
from moe_runner.tasks.base import About, Recipe, Source, TaskData, TaskSpec
from moe_runner.tasks.free_text import no_ood, ood_names

if TYPE_CHECKING:
    from types import ModuleType

    from datasets import Dataset

__all__ = ["TASKS", "load", "ood_names", "sources"]

SUITES: Mapping[str, ModuleType] = {"glue": glue, "glue_mini": glue_mini}


def _mixture(suite: str, recipe: Recipe) -> TaskSpec:
    parts: dict[str, TaskSpec] = SUITES[suite].TASKS
    return TaskSpec(
        name=suite,
        form="text_to_text",
        columns=("source",),
        template="{source}",
        metrics=tuple(f"{name}/{m}" for name, part in parts.items() for m in part.metrics),
        validation=("validation",),
        recipe=recipe,
        parts=parts,
        about=About(
            source=next(iter(parts.values())).about.source,
            licence="see the tasks" if suite == "glue" else "MIT",
            rows={
                "train": sum(part.about.rows.get("train", 0) for part in parts.values()),
                "validation": sum(
                    part.about.rows.get(part.validation[0], 0) for part in parts.values()
                ),
            }
            if all(part.about.rows for part in parts.values())
            else {},
        ),
    )


TASKS = {
    "glue": _mixture(
        "glue", replace(glue.HYPERMOE, epochs={"full": 3, "lora": 5, "lora_block": 5})
    ),
    "glue_mini": _mixture("glue_mini", glue_mini.TEXT_RECIPE),
}


def sources(options: Task, name: str) -> dict[str, Source]:
    """Find out where the splits of every task are, without reading them.

    Args:
        options: the task's options.
        name: the suite that is mixed.

    Returns:
        "<task>/train" and "<task>/<first validation split>".

    Raises:
        ConfigError: for an out-of-domain set: there are none.
    """
    no_ood(options, name)
    found: dict[str, Source] = {}
    for part, spec in TASKS[name].parts.items():
        own = SUITES[name].sources(options, part)
        found |= {f"{part}/{split}": own[split] for split in ("train", spec.validation[0])}
    return found


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Read the data of all tasks and mix them.

    Args:
        options: the task's options; `limit` and `eval_limit` are of every task.
        name: the suite that is mixed.
        cache: `paths.cache`; see `base.read`.

    Returns:
        The data: `source` (the text that is read), `label` (a text) and `group` (the task).

    Raises:
        ConfigError: if a split can't be had, or for an out-of-domain set.
        ValueError: if the columns or labels of a file are not what they should be.
    """
    from datasets import concatenate_datasets  # heavy, so here

    no_ood(options, name)
    train, validation = [], []
    for part, spec in TASKS[name].parts.items():
        data = SUITES[name].load(options, part, cache)
        selecting = data.validation[spec.validation[0]]
        assert selecting is not None  # its absence is a problem of the plan
        train.append(as_texts(spec, data.train))
        validation.append(as_texts(spec, selecting))
    return TaskData(
        spec=TASKS[name],
        train=concatenate_datasets(train),
        validation={"validation": concatenate_datasets(validation)},
    )


def as_texts(spec: TaskSpec, data: Dataset) -> Dataset:
    """Write the examples of a task as texts with texts for answers."""
    from datasets import Dataset, Features, Value

    from moe_runner.tasks.texts import answer_text, source_text

    rows = data.to_list()
    return Dataset.from_dict(
        {
            "source": [
                source_text(spec, spec.columns, [row[c] for c in spec.columns]) for row in rows
            ],
            "label": [answer_text(spec, row["label"]) for row in rows],
            "group": [spec.name] * len(rows),
        },
        features=Features(dict.fromkeys(("source", "label", "group"), Value("string"))),
    )
