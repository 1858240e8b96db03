"""task=classification: own tables of any format, with classes or scores."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import ClassificationTask
from moe_runner.tasks.own_texts import cut, score_step
from moe_runner.tasks.texts import answer_text

WORDS = [{"title": f"t{n}", "body": f"text {n}", "kind": "ab"[n % 2]} for n in range(40)]


def options(data, **given) -> ClassificationTask:
    given = {"text": ("body",), "label": "kind", "data_dir": str(data), **given}
    return ClassificationTask(suite="classification", members=("classification",), **given)


def load(data, **given):
    return tasks.load(options(data, **given), "classification")


def write(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if ".parquet" in file.name:
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    with (gzip.open if file.suffix == ".gz" else open)(file, "wt", encoding="utf-8") as stream:
        if ".json" in file.name:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(stream, rows[0], delimiter="\t" if ".tsv" in file.name else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def found(dataset) -> list[tuple]:
    names = dataset.features["label"].names
    return [(row["body"], names[row["label"]]) for row in dataset]


@pytest.mark.parametrize(
    "name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.parquet", "d.csv.gz", "d.jsonl.gz"]
)
def test_one_table_of_any_format_is_divided(name, tmp_path):
    data = load(write(tmp_path / name, WORDS))
    held_out = data.validation["validation"]
    assert (len(data.train), len(held_out)) == (36, 4)
    both = [*found(data.train), *found(held_out)]
    assert sorted(both) == sorted((row["body"], row["kind"]) for row in WORDS)
    assert sorted(label for _, label in found(held_out)) == ["a", "a", "b", "b"]  # a share of each
    assert data.spec.metrics == ("accuracy", "macro_f1", "matthews", "f1")
    assert data.spec.labels == ("a", "b")
    assert list(data.validation) == ["validation"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "dev.csv", "test.csv"),
        ("train.jsonl", "valid.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet",
         "data/test-00000-of-00001.parquet"),
        ("train.parquet/part-00000.parquet", "val.parquet/part-00000.parquet",
         "test.parquet/part-00000.parquet"),
    ],
)  # fmt: skip
def test_splits_are_known_by_their_names(names, tmp_path):
    parts = WORDS[:20], WORDS[20:30], WORDS[30:]
    for name, rows in zip(names, parts, strict=True):
        write(tmp_path / name, rows)
    (tmp_path / ".train.csv.swp").write_text("no table")
    data = load(tmp_path)
    read = [data.train, data.validation["validation"], data.validation["test"]]
    assert [found(each) for each in read] == [
        [(row["body"], row["kind"]) for row in rows] for rows in parts
    ]


def test_a_folder_with_one_table_and_parts_of_one(tmp_path):
    one, parts = tmp_path / "one", tmp_path / "parts"
    write(one / "reviews.csv", WORDS)
    write(parts / "part-0.parquet", WORDS[:20])
    write(parts / "part-1.parquet", WORDS[20:])
    assert len(load(one).train) == len(load(parts).train) == 36
    write(one / "more.csv", WORDS)
    with pytest.raises(ConfigError, match=r"no train table \(it has more, reviews\)"):
        load(one)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl.gz"])
def test_all_parts_of_a_table_must_be_there(ending, tmp_path):
    for part in (0, 2, 1):
        write(tmp_path / f"train-{part:05}-of-00003.{ending}", WORDS[10 * part : 10 * part + 10])
        if part == 2:
            with pytest.raises(ConfigError, match="is one of 3 parts, of which 2 are there"):
                load(tmp_path)
    assert len(load(tmp_path).train) == 27


def test_out_of_domain_tables_are_whole_or_a_problem(tmp_path):
    file = write(tmp_path / "d.csv", WORDS)
    for part in (0, 1):
        write(tmp_path / f"ood/news-0000{part}-of-00002.csv", WORDS[10 * part : 10 * part + 10])
    data = load(file, ood_dir=str(tmp_path / "ood"), ood=("all",))
    assert len(data.ood["news"]) == 20
    write(tmp_path / "ood/a.csv", WORDS)
    write(tmp_path / "ood/a.jsonl", WORDS)
    with pytest.raises(ConfigError, match=r"several files \(a.csv, a.jsonl\)"):
        load(file, ood_dir=str(tmp_path / "ood"), ood=("all",))


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_a_label_that_is_kept_secret_is_no_class(name, tmp_path, caplog):
    rows = [{"body": f"t{n}", "kind": n % 2} for n in range(20)]
    write(tmp_path / f"train.{name}", rows)
    write(tmp_path / f"test.{name}", [{"body": "x", "kind": -1}] * 3)
    data = load(tmp_path)
    assert data.spec.labels == ("0", "1")
    assert list(data.validation) == ["validation"]
    assert "has no labels: it is not evaluated" in caplog.text
    write(tmp_path / f"train.{name}", [{**row, "kind": 2 * row["kind"] - 1} for row in rows])
    assert load(tmp_path).spec.labels == ("-1", "1")  # here it is one


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["1_1", "1_2"], ("1_1", "1_2")),
        (["007", "7"], ("007", "7")),
        (["1.10", "1.1", "A.2"], ("1.1", "1.10", "A.2")),
        (["10", "9"], ("9", "10")),
        (["1e3", "0.5"], ()),
        ([".5", "1.5", "-.5"], ()),
        (["0.5", "nan", "1.5"], ()),
    ],
)
def test_codes_stay_words_and_numbers_are_read_as_such(words, labels, tmp_path):
    rows = [{"body": f"t{n}", "kind": words[n % len(words)]} for n in range(30)]
    assert load(write(tmp_path / "d.csv", rows)).spec.labels == labels


def test_classes_are_in_the_order_of_their_numbers_or_of_the_alphabet(tmp_path):
    rows = [{"body": f"t{n}", "kind": n % 12} for n in range(48)]
    data = load(write(tmp_path / "d.jsonl", rows))
    assert data.spec.labels == tuple(map(str, range(12)))
    assert data.spec.metrics == ("accuracy", "macro_f1")
    rows = [{"body": f"t{n}", "kind": n % 2 == 0} for n in range(48)]
    assert load(write(tmp_path / "b.jsonl", rows)).spec.labels == ("false", "true")


def test_names_in_a_schema_decide_not_the_numbers(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    def split(name: str, order: list[str]) -> None:
        features = Features(body=Value("string"), kind=ClassLabel(names=order))
        rows = {"body": [r["body"] for r in WORDS], "kind": [r["kind"] for r in WORDS]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")

    split("train", ["b", "a"])
    split("validation", ["a", "b"])
    data = load(tmp_path)
    assert data.spec.labels == ("b", "a")
    assert found(data.train) == found(data.validation["validation"])
    assert found(data.train)[0] == ("text 0", "a")


def with_names(file: Path, names: list[str], kinds: list[int]) -> Path:
    from datasets import ClassLabel, Dataset, Features, Value

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {"body": [f"text {n}" for n in range(len(kinds))], "kind": kinds}
    features = Features(body=Value("string"), kind=ClassLabel(names=names))
    Dataset.from_dict(rows, features=features).to_parquet(file)
    return file


@pytest.mark.parametrize(
    "names",
    [
        ["1", "0"],
        ["1", "2", "3", "4", "5"],
        ["-1", "0", "1"],
        ["1.0", "2.0", "3.0"],
        ["nan", "null"],
        ["none", "1", "2"],
    ],
)
def test_names_in_a_schema_are_names_whatever_they_look_like(names, tmp_path):
    kinds = [n % len(names) for n in range(40)]
    file = with_names(tmp_path / "d.parquet", names, [*kinds, -1])
    data = load(file)
    assert data.spec.labels == tuple(names)
    assert data.skipped == {"train": 1}
    rows = [*found(data.train), *found(data.validation["validation"])]
    assert sorted(rows) == sorted((f"text {n}", names[kind]) for n, kind in enumerate(kinds))


@pytest.mark.parametrize("name", ["validation.csv", "validation.jsonl", "validation.parquet"])
def test_numbers_without_names_mean_the_names_of_the_training_data(name, tmp_path):
    with_names(tmp_path / "train.parquet", ["neg", "pos"], [0, 1] * 10)
    write(tmp_path / name, [{"body": "x", "kind": 0}, {"body": "y", "kind": 1}])
    data = load(tmp_path)
    assert data.spec.labels == ("neg", "pos")
    assert found(data.validation["validation"]) == [("x", "neg"), ("y", "pos")]


@pytest.mark.parametrize("other", ["train", "validation"])
def test_a_split_without_a_trained_class_is_refused(other, tmp_path):
    named = "validation" if other == "train" else "train"
    with_names(tmp_path / f"{named}.parquet", ["neg", "pos"], [0, 1] * 10)
    write(tmp_path / f"{other}.csv", [{"body": f"{n}", "kind": "AB"[n % 2]} for n in range(20)])
    with pytest.raises(ValueError, match=r"of which the training data has none: there they are"):
        load(tmp_path)


def test_numbers_with_a_point_are_scores(tmp_path, caplog):
    rows = [{"body": f"t{n}", "kind": n / 4} for n in range(41)]
    data = load(write(tmp_path / "d.csv", rows))
    assert (data.spec.labels, data.spec.metrics) == ((), ("pearson", "spearman"))
    assert data.train.features["label"].dtype == "float32"
    assert not caplog.records
    stars = [{"body": f"t{n}", "kind": float(n % 5)} for n in range(40)]
    load(write(tmp_path / "stars.jsonl", stars))
    assert "scores of a regression; write classes as whole numbers" in caplog.text


@pytest.mark.parametrize(
    ("most", "step", "score", "text"),
    [
        (5, 0.2, 3.14, "3.2"),
        (1, 0.05, 0.33, "0.35"),
        (100, 5.0, 33, "35"),
        (0.1, 0.005, 0.031, "0.030"),
    ],
)
def test_scores_as_texts_are_rounded_to_a_step_of_their_range(most, step, score, text, tmp_path):
    assert score_step([0.0, most]) == pytest.approx(step)
    rows = [{"body": f"t{n}", "kind": most * n / 40} for n in range(41)]
    spec = load(write(tmp_path / "d.jsonl", rows), validation_fraction=0.01).spec
    assert answer_text(spec, score) == text


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, caplog):
    rows = [*WORDS, {**WORDS[0], "body": " "}, {**WORDS[0], "kind": ""}]
    data = load(write(tmp_path / "d.csv", rows))
    assert data.skipped == {"train": 2}
    assert "1 rows with no text are left out" in caplog.text
    assert "1 rows with no label are left out" in caplog.text
    assert len(data.train) + len(data.validation["validation"]) == 40


def test_a_test_table_without_labels_is_not_evaluated(tmp_path, caplog):
    write(tmp_path / "train.csv", WORDS)
    write(tmp_path / "test.csv", [{"body": "x"}])
    assert list(load(tmp_path).validation) == ["validation"]
    assert "the test table is not evaluated" in caplog.text
    assert "it lacks kind" in caplog.text


def test_a_class_of_one_split_only_is_named(tmp_path, caplog):
    write(tmp_path / "train.csv", WORDS)
    write(tmp_path / "dev.csv", [*WORDS[:4], {"title": "", "body": "x", "kind": "c"}])
    write(tmp_path / "ood/far.csv", [*WORDS[:4], {"title": "", "body": "y", "kind": "d"}])
    data = load(tmp_path, ood_dir=str(tmp_path / "ood"), ood=("all",))
    assert data.spec.labels == ("a", "b", "c")
    assert "the class c is not in the training data" in caplog.text
    assert "the class d is not in the training data: left out" in caplog.text
    assert data.skipped == {"ood/far": 1}
    assert len(data.ood["far"]) == 4
    assert data.ood_specs["far"].metrics == data.spec.metrics


def test_two_columns_and_names_that_a_data_set_needs_itself(tmp_path):
    rows = [{"label": f"t{n}", "body": f"text {n}", "kind": n % 2} for n in range(20)]
    data = load(write(tmp_path / "d.csv", rows), text=("label", "body"))
    assert data.spec.columns == ("text_0", "body")
    assert data.train.column_names == ["text_0", "body", "label"]


def test_chosen_metrics(tmp_path):
    file = write(tmp_path / "d.csv", WORDS)
    assert load(file, metrics=("matthews",)).spec.metrics == ("matthews",)
    with pytest.raises(ValueError, match=r"has pearson, which does not suit the two classes a or"):
        load(file, metrics=("pearson",))


def test_a_share_of_every_class_is_held_out_and_the_seed_says_which():
    kept, held_out = cut(["a"] * 90 + ["b"] * 10, 0.2, 0)
    assert (len(kept), len(held_out)) == (80, 20)
    assert sum(row >= 90 for row in held_out) == 2
    assert cut(["a"] * 90 + ["b"] * 10, 0.2, 1)[1] != held_out
    assert sorted(kept + held_out) == list(range(100))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"body": "x", "kind": "a"}] * 3, "every label is a"),
        ([{"body": f"{n}", "kind": f"k{n}"} for n in range(50)], "50 different labels in 50 rows"),
        ([{"body": 3, "kind": "a"}], "row 1 has 3 in the column body, which is no text"),
        ([{"body": "x", "kind": {"a": 1}}], "a label is a word or a number"),
        ([{"body": "x", "kind": "1e999"}], "the label 1e999; a score is a finite number"),
    ],
)
def test_what_cannot_be_right_is_one_line(rows, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        load(write(tmp_path / "d.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_missing_columns_and_data_are_problems_of_the_plan(tmp_path):
    file = write(tmp_path / "d.csv", WORDS)

    def problem(**given) -> str:
        found = tasks.sources(options(**given), "classification")
        return found["train"].problem or ""

    assert "it lacks bodi; did you mean body for bodi?" in problem(data=file, text=("bodi",))
    assert "needs task.data_dir=<file or folder>" in problem(data=file, data_dir=None)
    assert "does not exist" in problem(data=tmp_path / "none")
    (tmp_path / "d.docx").write_text("x")
    assert "is no table; give a file of type csv" in problem(data=tmp_path / "d.docx")
    write(tmp_path / "two/train.csv", WORDS)
    write(tmp_path / "two/train.jsonl", WORDS)
    assert "several files (train.csv, train.jsonl)" in problem(data=tmp_path / "two")


def test_the_title_is_that_of_the_data():
    assert options("/data/reviews").title == "reviews"
    assert options("/data/reviews.v1.csv.gz").title == "reviews"
    assert options("x", data_dir=None, hub_id="me/my-set").title == "my-set"
