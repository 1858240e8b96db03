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

from moe_runner.options.task import TextTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.free_text import no_ood
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import glue, glue_mini

if TYPE_CHECKING:
    from datasets import Dataset

MIXED: Mapping[str, Suite[TextTask]] = {"glue": glue.SUITE, "glue_mini": glue_mini.SUITE}


def _mixture(suite: str, licence: str, recipe: Recipe) -> TaskSpec:
    parts = MIXED[suite].specs
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
            licence=licence,
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
        "glue",
        "see the tasks",
        replace(glue.HYPERMOE, epochs={"full": 3, "lora": 5, "lora_block": 5}),
    ),
    "glue_mini": _mixture("glue_mini", "MIT", glue_mini.TEXT_RECIPE),
}


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


class GlueMultitask(Suite[TextTask]):
    """A member is a suite whose tasks are mixed."""

    options = TextTask
    specs = TASKS

    def sources(self, options: TextTask, name: str) -> dict[str, Source]:
        """See `Suite`: "<task>/train" and "<task>/<first validation split>"."""
        no_ood(options, name)
        found: dict[str, Source] = {}
        for part, spec in TASKS[name].parts.items():
            own = MIXED[name].sources(options, part)
            found |= {f"{part}/{split}": own[split] for split in ("train", spec.validation[0])}
        return found

    def load(self, options: TextTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; `limit` and `eval_limit` are of every task.

        Returns:
            `source` (the text that is read), `label` (a text) and `group` (the task).
        """
        from datasets import concatenate_datasets  # heavy, so here

        no_ood(options, name)
        train, validation = [], []
        for part, spec in TASKS[name].parts.items():
            data = MIXED[name].load(options, part, cache)
            selecting = data.validation[spec.validation[0]]
            assert selecting is not None  # its absence is a problem of the plan
            train.append(as_texts(spec, data.train))
            validation.append(as_texts(spec, selecting))
        return TaskData(
            spec=TASKS[name],
            train=concatenate_datasets(train),
            validation={"validation": concatenate_datasets(validation)},
        )


SUITE: Suite[TextTask] = GlueMultitask()
