"""The suite `generation`: the user's own texts, answered by a text: summaries, answers, rewriting.

A table (csv, tsv, JSON lines, JSON, parquet), a folder of such tables, or a data set of the Hub.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import OwnGenerationTask
from moe_runner.tasks.free_text import texts
from moe_runner.tasks.own_files import CUT, own_sources, with_hub_splits
from moe_runner.tasks.own_texts import cut, internal_names, read_columns, task_data, texts_of
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites.summarisation import RECIPE, ROUGE

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

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
        columns = internal_names(options.source)
        template = options.template or " ".join(
            f"{given.replace('{', '{{').replace('}', '}}')}: {{{ours}}}"
            for given, ours in columns.items()
        )
        if options.template is not None:
            for given, ours in columns.items():
                template = template.replace(f"{{{given}}}", f"{{{ours}}}")
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
            ValueError: if a split but test has no answer, or a row holds what is no text.
        """
        found = self.sources(options, name)
        check(found)
        found = with_hub_splits(found)
        sets, skipped = {}, {}
        for split, source in found.items():
            if not source.available or source.reading == CUT:
                continue
            rows, left_out = _read(source, options)
            if rows is not None:
                sets[split] = rows
            elif split == "test":  # of a competition
                log.warning("  %s has no answers: it is not evaluated", source.origin)
                continue
            else:
                raise ValueError(f"{source.origin} has no row with an answer")
            if left_out:
                skipped[split] = left_out
        if "validation" not in sets:
            kept, held_out = cut(
                [None] * len(sets["train"]), options.validation_fraction, options.data_seed
            )
            sets["validation"] = sets["train"].select(held_out)
            sets["train"] = sets["train"].select(kept)
        spec = self.spec_of(options, name)
        spec = replace(spec, validation=tuple(s for s in spec.validation if s in sets))
        return task_data(spec, sets, options, skipped)


def _read(source: Source, options: OwnGenerationTask) -> tuple[Dataset | None, int]:
    """Read a split; an answer is a text, a list of texts that are all right, or SQuAD's mapping.

    Returns:
        The rows that have an answer, None if no row has; how many were left out, which is logged.
    """
    import pyarrow as pa

    origin, values, _ = read_columns(source, (*options.source, options.target), options.target)
    answers = [_answers(value) for value in values[options.target]]
    for number, answer in enumerate(answers, start=1):
        texts_of(answer, f"{origin}: row {number}, answers", options.target)
    kept = [row for row, answer in enumerate(answers) if answer]
    if left_out := len(answers) - len(kept):
        log.warning("  %s: %d rows without an answer are left out", origin, left_out)
    if not kept:
        return None, left_out
    columns = {}
    for given, ours in internal_names(options.source).items():
        texts_here = texts_of(values[given], origin, given)
        columns[ours] = [texts_here[row] for row in kept]
    made = {**columns, "answer": [{"text": answers[row]} for row in kept]}
    return texts(pa.table(made), origin, {name: name for name in columns}, "answer"), left_out


def _answers(value: Any) -> list[Any]:
    """List the right answers of a row; empty if it has none."""
    given = value.get("text") if isinstance(value, dict) else value
    found = given if isinstance(given, list) else [given]
    return [each for each in found if each is not None and str(each).strip()]


SUITE: Suite[OwnGenerationTask] = Generation()
