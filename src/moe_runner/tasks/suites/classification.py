"""The suite `classification`: the user's own texts, with a class or a score in a column.

A table (csv, tsv, JSON lines, JSON, parquet), a folder of such tables, or a data set of the Hub.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from moe_runner.options.errors import join
from moe_runner.options.task import ClassificationTask
from moe_runner.tasks.own_files import CUT, own_sources, with_hub_splits
from moe_runner.tasks.own_texts import (
    as_numbers,
    classes_of,
    cut,
    dataset_of,
    internal_names,
    read_own,
    refuse_other_classes,
    score_step,
    task_data,
    with_class_names,
    without_hidden,
)
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import glue

log = logging.getLogger(__name__)

SCORES = ("pearson", "spearman")
CLASSES = ("accuracy", "macro_f1")
TWO_CLASSES = (*CLASSES, "matthews", "f1")
NAME = "classification"
TASKS = {
    NAME: TaskSpec(
        name=NAME,
        columns=("text",),  # of a run those of `task.text`, and labels and metrics of its data
        metrics=CLASSES,
        validation=("validation", "test"),  # the latter where there is one
        recipe=glue.RECIPE,
        about=About(source="task.data_dir, task.hub_id", licence="the data's own"),
        recipes={"text_to_text": glue.HYPERMOE},
    )
}


class Classification(Suite[ClassificationTask]):
    """The user's own texts, with a class or a score."""

    options = ClassificationTask
    specs = TASKS

    def sources(self, options: ClassificationTask, name: str) -> dict[str, Source]:
        """See `Suite`; of `data_dir`, a test table is evaluated if it has labels."""
        columns = (*options.text, options.label)
        return own_sources(options, name, options.config, columns)

    def load(self, options: ClassificationTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; what is read is held in memory.

        Raises:
            ConfigError: as for every suite.
            ValueError: if a row or a label is not what it should be, or a metric does not suit.
        """
        found = self.sources(options, name)
        check(found)
        found = with_hub_splits(found)
        read = {
            split: read_own(source, options.text, options.label)
            for split, source in found.items()
            if source.available and source.reading != CUT
        }
        order = read["train"].names
        labels = {split: with_class_names(rows, order) for split, rows in read.items()}
        if order is None:
            labels = without_hidden(as_numbers(labels))
        if "test" in read and not any(label is not None for label in labels["test"]):
            log.warning("  %s has no labels: it is not evaluated", read.pop("test").origin)
        elif "test" in found and not found["test"].available:
            log.warning("  the test table is not evaluated: %s", found["test"].absent)
        classes = classes_of(
            {split: labels[split] for split in ("train", "validation", "test") if split in read},
            order,
        )
        for split in ("validation", "test"):
            if classes and split in read:
                refuse_other_classes(read[split].origin, labels[split], labels["train"])
        metrics = metrics_of(options.metrics, classes)
        columns = tuple(internal_names(options.text).values())
        skipped, sets = {}, {}
        for split, rows in read.items():
            sets[split], left_out = dataset_of(rows, labels[split], columns, classes)
            if left_out:
                skipped[split] = left_out
        if "validation" not in sets:
            kept, held_out = cut(
                [classes[label] if classes else label for label in sets["train"]["label"][:]],
                options.validation_fraction,
                options.data_seed,
            )
            sets["validation"] = sets["train"].select(held_out)
            sets["train"] = sets["train"].select(kept)
        spec = replace(
            TASKS[name],
            columns=columns,
            labels=classes,
            metrics=metrics,
            validation=tuple(split for split in TASKS[name].validation if split in sets),
            step=TASKS[name].step if classes else score_step(sets["train"]["label"][:]),
        )
        return task_data(spec, sets, options, skipped)


def metrics_of(chosen: tuple[str, ...], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the metrics.

    Args:
        chosen: `task.metrics`; empty: all that suit.
        classes: of the data; (): scores.

    Raises:
        ValueError: for one that does not suit the labels.
    """
    able: tuple[str, ...]
    if not classes:
        able, kind = SCORES, "scores"
    elif len(classes) == 2:
        able, kind = TWO_CLASSES, f"the two classes {join(classes)}"
    else:
        able, kind = (*CLASSES, "matthews"), f"{len(classes)} classes"
    if wrong := [name for name in chosen if name not in able]:
        raise ValueError(
            f"task.metrics=[{','.join(chosen)}] has {wrong[0]}, which does not suit {kind}; use "
            f"{join(able)}"
        )
    return chosen or (able if len(classes) <= 2 else CLASSES)


SUITE: Suite[ClassificationTask] = Classification()
