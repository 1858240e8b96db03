"""The suite `generation`: the user's own texts, answered by a text: summaries, answers, rewriting.

A table (csv, tsv, JSON lines, JSON, parquet), a folder of such tables, or a data set of the Hub.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import RESERVED, OwnGenerationTask
from moe_runner.tasks.free_text import texts
from moe_runner.tasks.own_files import CUT, own_sources, with_hub_splits
from moe_runner.tasks.own_texts import cut, read_columns, task_data, texts_of
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites.summarisation import RECIPE, ROUGE

if TYPE_CHECKING:
    from datasets import Dataset

NAME = "generation"
TASKS = {
    NAME: TaskSpec(
        name=NAME,
        form="text_to_text",
        columns=("source",),
        free_text=True,
        metrics=ROUGE,
        validation=("validation", "test"),  # the latter where there is one
        recipe=RECIPE,
        about=About(source="task.data_dir, task.hub_id", licence="the data's own"),
    )
}


class Generation(Suite[OwnGenerationTask]):
    """The user's own texts with answers."""

    options = OwnGenerationTask
    specs = TASKS

    def spec_of(self, options: OwnGenerationTask, name: str) -> TaskSpec:
        """See `Suite`: columns, template and metrics are the user's."""
        columns = {name: _internal(name) for name in options.source}
        template = options.template or " ".join(f"{name}: {{{name}}}" for name in columns)
        for given, internal in columns.items():
            template = template.replace(f"{{{given}}}", f"{{{internal}}}")
        return replace(
            TASKS[name],
            columns=tuple(columns.values()),
            template=template,
            metrics=options.metrics,
        )

    def sources(self, options: OwnGenerationTask, name: str) -> dict[str, Source]:
        """See `Suite`; a test table is evaluated if it has answers."""
        columns = (*options.source, options.target)
        return own_sources(options, name, options.config, columns)

    def load(self, options: OwnGenerationTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; what is read is held in memory.

        Raises:
            ConfigError: as for every suite.
            ValueError: if a row has no text or no answer; names file and row.
        """
        found = self.sources(options, name)
        check(found)
        found = with_hub_splits(found)
        sets = {
            split: _read(source, options)
            for split, source in found.items()
            if source.available and source.reading != CUT
        }
        if "validation" not in sets:
            kept, held_out = cut(
                [None] * len(sets["train"]), options.validation_fraction, options.data_seed
            )
            sets["validation"] = sets["train"].select(held_out)
            sets["train"] = sets["train"].select(kept)
        spec = self.spec_of(options, name)
        spec = replace(spec, validation=tuple(s for s in spec.validation if s in sets))
        return task_data(spec, sets, options)


def _internal(column: str) -> str:
    """Name a column in a data set, which has other columns of its own."""
    return f"{column}_text" if column in RESERVED else column


def _read(source: Source, options: OwnGenerationTask) -> Dataset:
    """Read a split; an answer is a text, a list of texts that are all right, or SQuAD's mapping."""
    import pyarrow as pa

    origin, values, _ = read_columns(source, (*options.source, options.target), options.target)
    columns = {_internal(name): texts_of(values[name], origin, name) for name in options.source}
    answers = [
        {"text": value} if isinstance(value, list) else value for value in values[options.target]
    ]
    for number, answer in enumerate(answers, start=1):
        if answer is None or isinstance(answer, str) and not answer.strip():
            raise ValueError(
                f"{origin}: row {number} has no answer in the column {options.target}; fill it or "
                "leave the row out"
            )
    made = {**columns, "answer": [a if isinstance(a, dict) else {"text": [a]} for a in answers]}
    if not answers:
        raise ValueError(f"{origin} has no row; expected at least one")
    return texts(pa.table(made), origin, {name: name for name in columns}, "answer")


SUITE: Suite[OwnGenerationTask] = Generation()
