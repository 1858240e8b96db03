"""Which table is which split, in folders and in the cache of the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import tasks
from moe_runner.options.task import ClassificationTask
from moe_runner.tasks.own_files import CUT, split_of, with_hub_splits

COMMIT = "0123456789" * 4


def options(**given) -> ClassificationTask:
    return ClassificationTask(
        suite="classification", members=("classification",), ood=("all",), **given
    )


def write(file: Path, count: int = 20) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"{file.stem} {n}", "label": "ab"[n % 2]} for n in range(count)]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        lines = [f"{row['text']},{row['label']}" for row in rows]
        file.write_text("\n".join(["text,label", *lines]) + "\n")
    return file


@pytest.mark.parametrize("name", ["test", "validation", "train"])
def test_an_out_of_domain_set_may_be_a_folder_of_one_split(name, tmp_path):
    train = write(tmp_path / "d.csv")
    write(tmp_path / f"ood/news/{name}.csv", 6)
    given = options(data_dir=str(train), ood_dir=str(tmp_path / "ood"))
    assert len(tasks.load(given, "classification").ood["news"]) == 6


def test_without_a_train_table_a_folder_is_a_problem(tmp_path):
    write(tmp_path / "test.csv")
    found = tasks.sources(options(data_dir=str(tmp_path)), "classification")
    assert "has no train table (it has test)" in (found["train"].problem or "")


def test_every_word_for_a_split_is_known(tmp_path):
    words = {"train": "train Training", "validation": "validate val Dev", "test": "test testing"}
    for split, names in words.items():
        for name in names.split():
            assert split_of(name) == split_of(f"{name}.csv.gz") == split
    assert split_of("holdout") is None
    write(tmp_path / "training.csv")
    write(tmp_path / "validate.csv", 4)
    write(tmp_path / "testing.csv", 6)
    data = tasks.load(options(data_dir=str(tmp_path)), "classification")
    assert len(data.train) == 20
    sizes = {split: len(rows) for split, rows in data.validation.items()}
    assert sizes == {"validation": 4, "test": 6}


def test_tables_that_are_not_read_are_named_once(tmp_path, caplog):
    for name in ("train", "holdout", "more"):
        write(tmp_path / f"{name}.csv")
    for _ in range(2):
        tasks.sources(options(data_dir=str(tmp_path)), "classification")
    (told,) = caplog.messages
    assert "has tables that are not read: holdout, more; only train, validation and" in told


def test_parts_whose_types_do_not_go_together_are_named(tmp_path):
    for part, label in enumerate(([0, 1], ["0", "1"])):
        file = tmp_path / f"train-0000{part}-of-00002.parquet"
        pq.write_table(pa.table({"text": ["x", "y"], "label": label}), file)
    problem = tasks.sources(options(data_dir=str(tmp_path)), "classification")["train"].problem
    assert problem is not None
    assert problem.startswith(
        f"{tmp_path}/train-00000-of-00002.parquet and {file} are no one table"
    )
    assert "Field label has incompatible types: int64 vs string" in problem
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0.0, 1.0]}), file)
    assert tasks.sources(options(data_dir=str(tmp_path)), "classification")["train"].available


# ------------------------------------------------------------------------------- the Hub's cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the Hub with the training rows of me/reviews; the Hub does not answer."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    repository = tmp_path / "hub" / "datasets--me--reviews"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT / "data"
    write(folder / "train-00000-of-00001.parquet")
    return folder


def note(home: Path, *splits: str) -> None:
    """Write what `datasets` notes when it has made its own copy of a data set."""
    folder = home / "datasets" / "me___reviews" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    info = {"splits": {split: {"name": split} for split in splits}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


REVIEWS = options(hub_id="me/reviews")
USUAL = f"hub me/reviews config default split train at {COMMIT}"


def test_offline_a_cache_without_validation_is_refused_unless_there_is_none(cache, tmp_path):
    found = tasks.sources(REVIEWS, "classification")
    assert found["train"].problem == found["validation"].problem
    assert found["train"].problem == (
        "the local cache of task.hub_id=me/reviews has no validation, and the Hub, which may have "
        f"it, is unreachable; fetch all of it, or, if that is all, use task.data_dir={cache}"
    )
    assert tasks.sources(options(data_dir=str(cache)), "classification")["train"].available
    note(tmp_path, "train")
    found = tasks.sources(REVIEWS, "classification")
    assert found["train"].available
    assert with_hub_splits(found)["validation"].reading == CUT


def test_offline_a_split_that_is_noted_must_be_there(cache, tmp_path):
    note(tmp_path, "train", "validation", "test", "unsupervised")
    problem = tasks.sources(REVIEWS, "classification")["train"].problem
    assert "has no validation or test, and the Hub" in (problem or "")


def test_offline_a_whole_cache_is_read_under_the_usual_id(cache):
    write(cache / "validation-00000-of-00001.parquet", 4)
    assert tasks.fingerprint(REVIEWS, "classification") == {"train": USUAL, "validation": USUAL}
    assert len(tasks.load(REVIEWS, "classification").validation["validation"]) == 4
