"""task=generation: own texts with answers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import tasks
from moe_runner.options.model import Model
from moe_runner.options.task import OwnGenerationTask
from moe_runner.tasks.texts import source_text

NEWS = [{"article": f"long {n}", "summary": f"short {n}"} for n in range(20)]
T5 = Model(
    name="t5_base", family="t5", d_model=8, d_ff=8, num_layers=1, lora_targets=("q",),
)  # fmt: skip


def options(data, **given) -> OwnGenerationTask:
    given = {"source": ("article",), "target": "summary", "data_dir": str(data), **given}
    return OwnGenerationTask(suite="generation", members=("generation",), **given)


def load(data, **given):
    return tasks.load(options(data, **given), "generation")


def write(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", ["news.jsonl", "news.parquet"])
def test_one_table_is_divided(name, tmp_path):
    data = load(write(tmp_path / name, NEWS))
    held_out = data.validation["validation"]
    assert (len(data.train), len(held_out)) == (18, 2)
    both = [*data.train, *held_out]
    assert {(row["article"], row["label"]) for row in both} == {
        (row["article"], row["summary"]) for row in NEWS
    }
    assert all(row["references"] == [row["label"]] for row in both)
    assert data.spec.metrics == ("rouge1", "rouge2", "rougeL")
    assert source_text(data.spec, data.spec.columns, ["x y"]) == "article: x y"


def test_splits_out_of_domain_sets_and_a_template(tmp_path):
    write(tmp_path / "train.jsonl", NEWS)
    write(tmp_path / "dev.jsonl", NEWS[:3])
    write(tmp_path / "test.jsonl", NEWS[3:7])
    write(tmp_path / "ood/blogs.jsonl", NEWS[7:9])
    data = load(
        tmp_path, ood_dir=str(tmp_path / "ood"), ood=("all",), template="summarize: {article} {{x}}"
    )
    assert {name: len(rows) for name, rows in data.validation.items()} == {
        "validation": 3,
        "test": 4,
    }
    assert data.ood["blogs"]["label"][:] == ["short 7", "short 8"]
    assert source_text(data.spec, data.spec.columns, ["long"]) == "summarize: long {x}"


@pytest.mark.parametrize(
    "answers", [["Paris", "paris"], {"text": ["Paris", "paris"], "answer_start": [0, 9]}]
)
def test_several_right_answers(answers, tmp_path):
    rows = [{"label": "Where?", "text": "In Paris, paris.", "answers": answers}] * 2
    data = load(
        write(tmp_path / "d.jsonl", rows),
        source=("label", "text"), target="answers", metrics=("exact_match", "token_f1"),
    )  # fmt: skip
    (row,) = data.train
    assert (row["label"], row["references"]) == ("Paris", ["Paris", "paris"])
    assert source_text(data.spec, data.spec.columns, ["Where?", "x"]) == "label: Where? text: x"


def test_rows_without_an_answer_are_left_out_and_a_hidden_test_set_too(tmp_path, caplog):
    write(tmp_path / "train.jsonl", [*NEWS, {"article": "x", "summary": " "}, {"article": "y"}])
    write(tmp_path / "test.jsonl", [{"article": "x", "summary": None}])
    data = load(tmp_path)
    assert len(data.train) + len(data.validation["validation"]) == 20
    assert list(data.validation) == ["validation"]
    assert data.skipped == {"train": 2}
    assert "2 rows without an answer are left out" in caplog.text
    assert "has no answers: it is not evaluated" in caplog.text


def test_columns_of_any_name(tmp_path):
    rows = [{"a.b": f"x{n}", "{c}": "y", "label": "z", "t": "answer"} for n in range(4)]
    given = {"source": ("a.b", "{c}", "label"), "target": "t"}
    spec = load(write(tmp_path / "d.jsonl", rows), **given).spec
    assert source_text(spec, spec.columns, ["1", "2", "3"]) == "a.b: 1 {c}: 2 label: 3"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"article": 3, "summary": "x"}, "row 21 has 3 in the column article, which is no text"),
    ],
)
def test_a_row_that_is_wrong_is_named(row, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load(write(tmp_path / "d.jsonl", [*NEWS, row]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"template": "{articel}"}, "has {articel}, which task.source=[article] does not"),
        ({"template": "{article"}, "is no template"),
        ({"template": "{article!r}"}, "is no template (a format behind a name)"),
        ({"template": "short"}, "has no column; write for example {article}"),
        ({"metrics": ("rouge",)}, "task.metrics=[rouge] is not an option of task=generation"),
        ({"metrics": ()}, "task.metrics=[] is empty"),
        ({"source": ()}, "names no column"),
        ({"target": "article"}, "has the column of task.target=article"),
        ({"validation_fraction": 0.0}, "leaves nothing to select by"),
    ],
)
def test_options_that_cannot_be_are_problems(given, words):
    (problem,) = options("x", **given).problems(T5)
    assert words in problem
