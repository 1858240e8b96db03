"""What makes a score meaningless is said when the data are loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_runner import tasks
from moe_runner.options.task import TextTask
from tests.tasks.suites.test_glue import write

OPTIONS = TextTask(suite="glue", members=("cola",))


@pytest.fixture
def load(tmp_path, caplog):
    def of(train: dict, validation: dict, name: str = "cola") -> list[str]:
        for split, columns in (("train", train), ("validation", validation)):
            write(tmp_path / name / f"{split}.parquet", **columns)
        tasks.load(replace(OPTIONS, members=(name,), data_dir=str(tmp_path)), name)
        return [message.strip() for message in caplog.messages]

    return of


def rows(texts: str, labels: list[int]) -> dict:
    return {"sentence": list(texts), "label": labels}


def test_sound_data_need_no_word(load):
    assert load(rows("abcd", [0, 1, 0, 1]), rows("ef", [0, 1])) == []


def test_rows_that_are_trained_on_and_evaluated_are_counted(load):
    found = load(rows("abcd", [0, 1, 0, 1]), rows("aebf", [0, 1, 1, 0]))
    assert found == ["2 of the 4 rows of validation are in the training data as well"]


def test_a_set_of_one_class_is_named(load):
    found = load(rows("abcd", [0, 1, 0, 1]), rows("ef", [1, 1]))
    assert found == ["every row of validation has the label acceptable: its scores say nothing"]


def test_a_constant_target_is_named(load):
    pair = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    other = {"sentence1": ["e", "f"], "sentence2": ["g", "h"]}
    found = load({**pair, "label": [1.0, 2.0]}, {**other, "label": [2.5, 2.5]}, "stsb")
    assert found == ["every row of validation has the label 2.5: its scores say nothing"]


def test_a_class_without_a_training_example_is_named(load):
    found = load(rows("abcd", [1, 1, 1, 1]), rows("ef", [0, 1]))
    assert found == ["the class unacceptable is not in the training data"]
