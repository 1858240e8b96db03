"""Rows that are trained on and evaluated as well: counted, never silent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_runner.tasks.specs import TaskData

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

FORMS = ("classification", "text_to_text")  # whose rows are examples of their own


def warn_of_data(data: TaskData) -> None:
    """Warn of evaluation sets that repeat rows of the training data, and of those of one label.

    Args:
        data: as loaded; running text, images, mixtures and instructions are left out.
    """
    columns = data.spec.columns
    if data.spec.form not in FORMS or not set(columns) <= set(data.train.column_names):
        return
    trained = set(rows_of(data.train, columns))
    for name, dataset in data.validation.items():
        if dataset is None or not len(dataset):
            continue
        if repeated := sum(row in trained for row in rows_of(dataset, columns)):
            log.warning(
                "  %d of the %d rows of %s are in the training data as well",
                repeated, len(dataset), name,
            )  # fmt: skip
        labels = set(dataset["label"][:]) if "label" in dataset.column_names else set()
        if len(labels) == 1 and len(dataset) > 1 and not data.spec.free_text:
            (label,) = labels
            named = data.spec.labels[label] if data.spec.labels else f"{label:g}"
            log.warning("  every row of %s has the label %s: its scores say nothing", name, named)
    if data.spec.labels:
        missing = set(range(len(data.spec.labels))) - set(data.train["label"][:])
        for label in sorted(missing):
            log.warning("  the class %s is not in the training data", data.spec.labels[label])


def rows_of(dataset: Dataset, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """List the texts of every row."""
    return list(zip(*(dataset[column][:] for column in columns), strict=True))
