"""Texts with a class or a score in the user's own columns: reading them, and what labels mean.

Whole numbers and words are classes; if any label is a number with a point, all are scores.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import RESERVED, Task
from moe_runner.tasks.places import Source, ood_part
from moe_runner.tasks.records import read_rows, refuse_half
from moe_runner.tasks.specs import OODSpec, TaskData, TaskSpec
from moe_runner.tasks.tables import class_names, limited, plain_column, read_table

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NONE: Mapping[str, int] = {}
Label = str | int | float | None  # None: the row has none

WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)")
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
NO_LABEL = ("nan", "null", "none", "n/a")  # in a column of numbers
FEW, MANY = 20, 1000  # classes: never too many, always too many; between, half of the rows is


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What was read of a split.

    Args:
        origin: names it in messages.
        texts: a list per column, of the same length; "" where there was none.
        labels: of every row.
        names: of the classes whose numbers the labels are, where the file says so.
    """

    origin: str
    texts: tuple[list[str], ...]
    labels: list[Label]
    names: tuple[str, ...] | None = None


def read_own(source: Source, columns: Sequence[str], label: str) -> Rows:
    """Read the columns of a table.

    Args:
        source: files, or a split of the Hub.
        columns: of texts.
        label: the column of labels.

    Raises:
        ValueError: if a column is missing or holds what is no text or no label; names file and row.
    """
    origin, values, names = read_columns(source, (*columns, label), label)
    return Rows(
        origin=origin,
        texts=tuple(texts_of(values[name], origin, name) for name in columns),
        labels=[
            _label(value, origin, number, label) for number, value in enumerate(values[label], 1)
        ],
        names=names,
    )


def read_columns(
    source: Source, wanted: Sequence[str], label: str
) -> tuple[str, dict[str, list[Any]], tuple[str, ...] | None]:
    """Read some columns of a table as they are.

    Args:
        source: files, or a split of the Hub.
        wanted: the columns.
        label: the one of them that may have names of classes.

    Returns:
        What names the table in messages, the values by column, the names of the classes.

    Raises:
        ValueError: if a column is missing, or a file cannot be read.
    """
    if source.hub is not None or source.files[0].suffix == ".parquet":
        table, origin = read_table(source, label)
        if missing := [name for name in wanted if name not in table.column_names]:
            raise ValueError(_lacks(origin, table.column_names, missing))
        columns = {name: plain_column(table, name, origin).to_pylist() for name in wanted}
        return origin, columns, class_names(table.schema, label)
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for file in source.files:
        for number, row in enumerate(read_rows(file)):
            missing = [name for name in wanted if name not in row]
            if missing and number == 0:
                raise ValueError(_lacks(str(file), list(map(str, row)), missing))
            for name in wanted:  # a later row of JSON may leave out what it has not
                values[name].append(row.get(name))
    return source.origin, values, None


def _lacks(origin: str, here: Sequence[str], missing: Sequence[str]) -> str:
    return f"{origin} has the columns {', '.join(here)}; it lacks {', '.join(missing)}"


def texts_of(values: Sequence[Any], origin: str, column: str) -> list[str]:
    """Take a column of texts, "" where there is none.

    Raises:
        ValueError: for another value; names the row.
    """
    for number, value in enumerate(values, start=1):
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"{origin}: row {number} has {value!r} in the column {column}, which is no text"
            )
        refuse_half(value or "", origin, number, column)
    return ["" if value is None else value for value in values]


def _label(value: Any, origin: str, number: int, column: str) -> Label:
    """Take a label: a word, a whole number, a number; None where it is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.strip() or None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{origin}: row {number} has the label {value} in {column}")
        return None if math.isnan(value) else value
    raise ValueError(
        f"{origin}: row {number} has {value!r} in the column {column}; a label is a word or a "
        "number"
    )


def as_numbers(splits: Mapping[str, list[Label]]) -> dict[str, list[Label]]:
    """Read words as numbers if all of them are numbers in the usual spelling.

    Codes such as 1_1, 007 or, beside words, 1.10 stay words; in a column of numbers "nan" is none.

    Args:
        splits: the labels of all splits.

    Raises:
        ValueError: for a number that is too large.
    """
    known = {label for key, each in splits.items() if not key.startswith("ood/") for label in each}
    words = {label for label in known if isinstance(label, str) and label.lower() not in NO_LABEL}
    if not all(NUMBER.fullmatch(word) for word in words):
        return {
            split: [label if label is None else str(label) for label in labels]
            for split, labels in splits.items()
        }

    def read(label: Label) -> Label:
        if not isinstance(label, str):
            return label
        if label.lower() in NO_LABEL:
            return None
        if not NUMBER.fullmatch(label):
            return label  # of an out-of-domain set
        number = int(label) if WHOLE.fullmatch(label) else float(label)
        if isinstance(number, float) and math.isinf(number):
            raise ValueError(f"there is the label {label}; a score is a finite number")
        return number

    return {split: [read(label) for label in labels] for split, labels in splits.items()}


def without_hidden(splits: Mapping[str, list[Label]]) -> dict[str, list[Label]]:
    """Take -1 as no label in the other splits where no training label is negative.

    GLUE and its like write it where the labels of a test set are kept secret.

    Args:
        splits: the labels of "train" and others, numbers read.
    """
    if any(isinstance(label, int | float) and label < 0 for label in splits["train"]):
        return dict(splits)
    return {
        split: [None if label == -1 else label for label in labels]
        for split, labels in splits.items()
    }


def with_class_names(rows: Rows, order: tuple[str, ...] | None) -> list[Label]:
    """Write labels as class names where a file has names for its numbers.

    Args:
        rows: of a split.
        order: the names of the training file, which numbers of other files without names mean.

    Returns:
        Names, whatever they look like; -1, which `datasets` writes for a label that is not known,
        becomes None.
    """
    names = rows.names or order
    if names is None:
        return rows.labels
    found: list[Label] = []
    for number, label in enumerate(rows.labels, start=1):
        if rows.names is None and isinstance(label, str) and label not in names:
            label = int(label) if WHOLE.fullmatch(label) else label  # csv has words only
        if not isinstance(label, int):
            found.append(label if label is None else str(label))
        elif -1 <= label < len(names):
            found.append(None if label == -1 else names[label])
        else:
            raise ValueError(
                f"{rows.origin}: row {number} has the label {label}; there are the classes "
                f"{', '.join(names)} (0 to {len(names) - 1})"
            )
    return found


def classes_of(splits: Mapping[str, list[Label]], order: tuple[str, ...] | None) -> tuple[str, ...]:
    """Find the classes.

    Args:
        splits: the labels of the training and the validation splits.
        order: the names that the training file gives its numbers; None: it gives none.

    Returns:
        Names in label order: that of the file, else by number, else by the alphabet; () if the
        labels are scores.

    Raises:
        ValueError: if there is one class only, or so many that the column cannot be right.
    """
    labels = [label for each in splits.values() for label in each if label is not None]
    numeric = not any(isinstance(label, str) for label in labels)
    if numeric and any(isinstance(label, float) for label in labels):
        _warn_of_scores([float(label) for label in labels])
        return ()
    found = set(labels)
    if order is not None:
        rest = sorted(str(label) for label in found - set(order))
        names = (*order, *rest)
    else:
        names = tuple(
            str(label) for label in (sorted(found) if numeric else sorted(map(str, found)))
        )
    if len(set(names)) < 2:
        raise ValueError(f"every label is {names[0] if names else 'empty'}; expected two classes")
    if len(found) > MANY or len(found) > FEW and 2 * len(found) > len(labels):
        raise ValueError(
            f"there are {len(found)} different labels in {len(labels)} rows, such as "
            f"{', '.join(names[:3])}; is task.label the column of classes?"
        )
    return names


def refuse_other_classes(origin: str, labels: Sequence[Label], train: Sequence[Label]) -> None:
    """Refuse a split that has none of the classes that are trained.

    Args:
        origin: names the split.
        labels: of it.
        train: of the training rows.

    Raises:
        ValueError: if they have no class in common, as 0 and 1 beside neg and pos.
    """
    found, known = ({str(each) for each in part if each is not None} for part in (labels, train))
    if found and not found & known:
        here, there = (", ".join(sorted(part)[:FEW]) for part in (found, known))
        raise ValueError(
            f"{origin} has the classes {here}, of which the training data has none: there they are "
            f"{there}; write them alike"
        )


def _warn_of_scores(scores: list[float]) -> None:
    """Warn of scores that look like classes, and of those that a head learns badly."""
    few = set(scores)
    if len(few) <= FEW and all(score.is_integer() for score in few):
        shown = ", ".join(f"{score:g}" for score in sorted(few)[:FEW])
        log.warning(
            "  the labels (%s) have a point, so they are scores of a regression; write classes as "
            "whole numbers or words",
            shown,
        )
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    if abs(mean) > 30 or spread > 30 or 0 < spread < 0.01:
        log.warning(
            "  the scores have the mean %.3g and the standard deviation %.3g: a new head starts at "
            "0 and learns such scores slowly; scale them to about 0 to 5",
            mean, spread,
        )  # fmt: skip


def score_step(labels: Sequence[Label]) -> float:
    """Choose to what scores are rounded where they are written as a text: 1, 2 or 5 times 10^n.

    Args:
        labels: of the training rows.

    Returns:
        About a twenty-fifth of their range, as STS-B's 0.2 of 0 to 5.
    """
    scores = [float(label) for label in labels if label is not None]
    width = (max(scores) - min(scores)) / 25 or 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return min((power, 2 * power, 5 * power, 10 * power), key=lambda step: abs(step - width))


def internal_names(columns: Sequence[str]) -> dict[str, str]:
    """Name columns of texts as a data set and a template can take them.

    Args:
        columns: of the user's table.

    Returns:
        Theirs -> ours: the same, or text_<i> for one that a data set has itself, or that is no
        plain word.
    """
    plain = [name for name in columns if name.isidentifier() and name not in RESERVED]
    return {
        name: name if name in plain else "_" * ("text_" + str(i) in plain) + f"text_{i}"
        for i, name in enumerate(columns)
    }


def cut(labels: Sequence[Label], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out a share of the rows, at random; of every class the same share.

    Args:
        labels: of the rows; scores are not balanced.
        fraction: that is held out.
        seed: another one holds out others.

    Returns:
        The rows that are kept and those that are held out, in order; of each at least one.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if len(labels) < 2:
        raise ValueError(
            f"there are {len(labels)} rows with a text and a label; expected 2 or more"
        )
    groups: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(None if isinstance(label, float) else label, []).append(row)
    chance = random.Random(f"validation/{seed}")
    order = []  # of every class, its rows spread evenly over 0 to 1
    for rows in groups.values():
        chance.shuffle(rows)
        offset = chance.random()
        order += [((place + offset) / len(rows), row) for place, row in enumerate(rows)]
    count = min(max(1, round(fraction * len(labels))), len(labels) - 1)
    held_out = sorted(row for _, row in sorted(order)[:count])
    kept = sorted(set(range(len(labels))) - set(held_out))
    return kept, held_out


def dataset_of(
    rows: Rows, labels: Sequence[Label], columns: Sequence[str], classes: tuple[str, ...]
) -> tuple[Dataset, int]:
    """Make a data set of the rows that have a text and a label that is one of the classes.

    Args:
        rows: of a split.
        labels: of them, names where a file has names.
        columns: what the texts are called.
        classes: names; (): the labels are scores.

    Returns:
        The columns and `label`; how many rows were left out, of which the log tells.

    Raises:
        ValueError: if a score is none, or no row is left.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    empty = [not any(text.strip() for text in texts) for texts in zip(*rows.texts, strict=True)]
    number = {name: index for index, name in enumerate(classes)}
    kept, values, foreign, unlabelled = [], [], set(), 0
    for row, label in enumerate(labels):
        if label is None:
            unlabelled += not empty[row]
        elif empty[row]:
            pass
        elif not classes:
            if isinstance(label, str):
                raise ValueError(f"{rows.origin}: row {row + 1} has the score {label!r}, no number")
            kept.append(row)
            values.append(float(label))
        elif str(label) in number:
            kept.append(row)
            values.append(number[str(label)])
        else:
            foreign.add(str(label))
    for count, what in ((sum(empty), "no text"), (unlabelled, "no label")):
        if count:
            log.warning("  %s: %d rows with %s are left out", rows.origin, count, what)
    for name in sorted(foreign):
        log.warning("  %s: the class %s is not in the training data: left out", rows.origin, name)
    if not kept:
        raise ValueError(f"{rows.origin} has no row with a text and a known label")
    texts = {
        column: [values_of[row] for row in kept]
        for column, values_of in zip(columns, rows.texts, strict=True)
    }
    label_type = ClassLabel(names=list(classes)) if classes else Value("float32")
    features = Features({**dict.fromkeys(columns, Value("string")), "label": label_type})
    return Dataset.from_dict({**texts, "label": values}, features=features), len(labels) - len(kept)


def task_data(
    spec: TaskSpec, sets: Mapping[str, Dataset], options: Task, skipped: Mapping[str, int] = NONE
) -> TaskData:
    """Put the sets of a user's own data together, cut to the task's limits.

    Args:
        spec: of the member, as its data are.
        sets: by split, and "ood/<set>".
        options: of the task.
        skipped: rows that were left out, by split.
    """
    ood = {name: limited(rows, options.eval_limit) for name, rows in ood_part(sets).items()}
    return TaskData(
        spec=spec,
        train=limited(sets["train"], options.limit),
        validation={split: limited(sets[split], options.eval_limit) for split in spec.validation},
        ood=ood,
        ood_specs=dict.fromkeys(ood, OODSpec(columns=spec.columns, metrics=spec.metrics)),
        skipped=dict(skipped),
    )
