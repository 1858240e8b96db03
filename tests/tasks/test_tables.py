"""Texts and labels are the same, whatever tool wrote the parquet file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner.tasks.places import Source
from moe_runner.tasks.tables import read, read_table

TEXTS = ["good", "äöü 世界", "bad", "worse"]
NAMES = ["yes", "no", "no", "yes"]
KINDS = {
    "pandas": pa.string(),
    "pandas categories": pa.dictionary(pa.int32(), pa.string()),
    "polars": pa.large_string(),
    "polars views": pa.string_view(),
    "spark": pa.binary(),
    "large bytes": pa.large_binary(),
}


def read_file(file, table):
    pq.write_table(table, file)
    return read(Source(files=(file,)), [("text",)], ("no", "yes"))


@pytest.mark.parametrize("label", KINDS)
@pytest.mark.parametrize("text", KINDS)
def test_columns_of_every_kind_are_read_alike(tmp_path, text, label):
    def column(values, kind):
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return pa.array([value.encode() for value in values], kind)
        return pa.array(values, kind)

    table = pa.table(
        {
            "text": column(TEXTS, KINDS[text]),
            "label": column(NAMES, KINDS[label]),
            "extra": range(4),
        }
    )
    data = read_file(tmp_path / "train.parquet", table)
    assert data["text"][:] == TEXTS
    assert data["label"][:] == [1, 0, 0, 1]


def test_a_category_without_a_value_is_an_empty_value(tmp_path):
    categories = pa.array(["a", None, "b"], pa.dictionary(pa.int32(), pa.string()))
    table = pa.table({"text": categories, "label": [0, 1, 0]})
    file = tmp_path / "train.parquet"
    with pytest.raises(ValueError, match="has 1 empty values in the column text"):
        read_file(file, table)


def test_bytes_that_are_no_text_are_named_with_file_column_and_row(tmp_path):
    table = pa.table({"text": pa.array([b"fine", b"caf\xe9"]), "label": [0, 1]})
    file = tmp_path / "train.parquet"
    with pytest.raises(ValueError, match="bytes that are no UTF-8") as caught:
        read_file(file, table)
    assert str(caught.value).startswith(f"{file}: the column text has bytes")
    assert "row 2" in str(caught.value)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    texts = pa.array(["a", "b"])
    table = pa.Table.from_arrays([texts, texts, pa.array([0, 1])], ["text", "text", "label"])
    file = tmp_path / "train.parquet"
    with pytest.raises(ValueError, match="has the column text 2 times; rename all but one"):
        read_file(file, table)


def with_names(file, names: list[str]) -> list[int]:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(text=Value("string"), label=ClassLabel(names=names))
    Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features).to_parquet(file)
    return read(Source(files=(file,)), [("text",)], ("negative", "positive"))["label"][:]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["negative", "positive"], [0, 1]),
        (["positive", "negative"], [1, 0]),
        (["Neg", "Pos"], [0, 1]),
        (["pos", "neg"], [1, 0]),
        (["positive review", "negative review"], [1, 0]),
        (["0", "1"], [0, 1]),
    ],
)
def test_names_that_are_cut_short_decide_too(names, labels, tmp_path, caplog):
    assert with_names(tmp_path / "train.parquet", names) == labels
    assert "by number" not in caplog.text


def test_names_that_say_nothing_are_told(tmp_path, caplog):
    assert with_names(tmp_path / "train.parquet", ["bad", "good"]) == [0, 1]
    assert "labels bad, good; they are taken by number, as negative, positive" in caplog.text


def test_names_that_mean_one_class_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="names its labels neg, negative; expected negative"):
        with_names(tmp_path / "train.parquet", ["neg", "negative"])


def test_parts_of_types_that_do_not_go_together_are_named(tmp_path):
    files = (tmp_path / "train-0.parquet", tmp_path / "train-1.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), files[0])
    pq.write_table(pa.table({"text": ["a"], "label": ["no"]}), files[1])
    with pytest.raises(ValueError, match=r"train-0.* \+ .*train-1.* do not go together"):
        read_table(Source(files=files))
