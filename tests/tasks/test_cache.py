"""Data on disk: found by content, made once, made anew where damaged."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from moe_runner import tasks
from moe_runner.options.task import TextTask
from moe_runner.tasks.cache import cached_map, cached_table, content, tokenizer_content

ASSETS = Path(__file__).parents[2] / "src" / "moe_runner" / "assets"
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
ROWS = {"text": [f"text {i}" for i in range(10)], "label": [i % 2 for i in range(10)]}
DATA = Dataset.from_dict(ROWS, features=FEATURES)


class Counting:
    """A function for `cached_map` that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: dict) -> dict:
        self.calls += 1
        return {"length": [len(text) for text in rows["text"]]}


def entry(cache: Path) -> Path:
    (file,) = cache.glob("data/*.arrow")
    return file


def test_the_second_time_nothing_is_made(tmp_path):
    function = Counting()
    first = cached_map(DATA, function, {"form": "x"}, tmp_path, keep=("label",))
    second = cached_map(DATA, function, {"form": "x"}, tmp_path, keep=("label",))
    assert function.calls == 1
    assert first.to_dict() == second.to_dict() == {"label": ROWS["label"], "length": [6] * 10}
    assert second.features["label"] == FEATURES["label"]
    assert [Path(file["filename"]) for file in second.cache_files] == [entry(tmp_path)]
    made_from = json.loads(entry(tmp_path).with_suffix(".json").read_text())["made_from"]
    assert made_from == {"data": content(DATA), "form": "x"}
    without = cached_map(DATA, function, {"form": "x"}, None, keep=("label",))
    assert function.calls == 2
    assert without.to_dict() == first.to_dict()
    assert without.cache_files == []


def test_other_data_and_other_settings_are_other_entries(tmp_path):
    function = Counting()
    others = [
        (DATA, {"form": "y"}),
        (DATA.select(range(9)), {"form": "x"}),
        (DATA.rename_column("label", "other"), {"form": "x"}),
    ]
    cached_map(DATA, function, {"form": "x"}, tmp_path)
    for calls, (data, key) in enumerate(others, start=2):
        cached_map(data, function, key, tmp_path)
        assert function.calls == calls


def test_content_is_that_of_the_rows_wherever_they_lie(tmp_path):
    DATA.save_to_disk(str(tmp_path / "saved"))
    mapped = Dataset.load_from_disk(str(tmp_path / "saved"))
    shuffled = Dataset.from_dict({k: v[::-1] for k, v in ROWS.items()}, features=FEATURES)
    assert content(mapped) == content(DATA)
    assert content(shuffled.select(range(9, -1, -1))) == content(DATA)
    assert content(DATA.select(range(2, 8)).select(range(1, 3))) == content(DATA.select([3, 4]))
    assert content(shuffled) != content(DATA)
    names = FEATURES | {"label": ClassLabel(names=["a", "c"])}
    assert content(DATA.cast(Features(names))) != content(DATA)


@pytest.mark.parametrize("keep", ["none", "half", "all but a batch", "garbage"])
def test_a_damaged_entry_is_made_anew(tmp_path, keep, caplog):
    function = Counting()
    first = cached_map(DATA, function, {"form": "x"}, tmp_path).to_dict()
    file = entry(tmp_path)
    whole = file.read_bytes()
    file.unlink()  # it may be mapped
    left = {"none": 0, "half": len(whole) // 2, "all but a batch": len(whole) - 8, "garbage": 0}
    file.write_bytes(whole[: left[keep]] if keep != "garbage" else b"x" * len(whole))
    assert cached_map(DATA, function, {"form": "x"}, tmp_path).to_dict() == first
    assert function.calls == 2
    assert caplog.text.count("are damaged") == 1
    assert file.read_bytes() == whole


def test_an_interrupted_entry_leaves_nothing_behind(tmp_path):
    def fail(rows: dict) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_map(DATA, fail, {"form": "x"}, tmp_path)
    assert [file.suffix for file in (tmp_path / "data").iterdir()] == [".lock"]
    assert len(cached_map(DATA, Counting(), {"form": "x"}, tmp_path)) == 10


def test_of_two_at_the_same_time_one_makes_the_entry_and_one_waits(tmp_path):
    function = Counting()

    def slow(rows: dict) -> dict:
        time.sleep(0.5)
        return function(rows)

    def make() -> None:
        found.append(len(cached_map(DATA, slow, {"form": "x"}, tmp_path)))

    found: list[int] = []
    threads = [threading.Thread(target=make) for _ in range(2)]  # a lock is per open file
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10]
    assert function.calls == 1


def test_a_tokenizer_is_known_by_its_content(tmp_path):
    from transformers import AutoTokenizer

    one = AutoTokenizer.from_pretrained(ASSETS / "gpt2_tiny")
    before = tokenizer_content(one)
    one(["a b c"], truncation=True, max_length=2, padding=True)  # leaves its traces in the backend
    assert tokenizer_content(one) == before
    one.save_pretrained(tmp_path / "copy")
    assert tokenizer_content(AutoTokenizer.from_pretrained(tmp_path / "copy")) == before
    one.truncation_side = "left"
    assert tokenizer_content(one) != before
    other = AutoTokenizer.from_pretrained(ASSETS / "llama_tiny")
    assert tokenizer_content(other) != before
    added = AutoTokenizer.from_pretrained(ASSETS / "gpt2_tiny")
    added.add_tokens(["another"])
    assert tokenizer_content(added) != before


def test_what_is_read_is_mapped_and_a_limit_reads_nothing_anew(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "cola").mkdir()
    for split in ("train", "validation"):
        table = pa.table({"sentence": ROWS["text"], "label": ROWS["label"]})
        pq.write_table(table, tmp_path / "cola" / f"{split}.parquet")
    options = TextTask(suite="glue", members=("cola",), data_dir=str(tmp_path))
    first = tasks.load(options, "cola", tmp_path / "cache")
    assert first.train.to_dict() == tasks.load(options, "cola").train.to_dict()
    assert first.train.features == tasks.load(options, "cola").train.features
    assert len(first.train.cache_files) == 1
    monkeypatch.setattr(pq, "ParquetFile", None)  # may not be read again
    second = tasks.load(replace(options, limit=4), "cola", tmp_path / "cache")
    monkeypatch.undo()
    assert second.train.to_dict() == tasks.load(replace(options, limit=4), "cola").train.to_dict()


def test_a_generated_table_is_made_once(tmp_path):
    calls = []

    def make():
        calls.append(None)
        return {"text": ["a", "b"], "answers": [{"text": ["x"]}, {"text": ["y", "z"]}]}

    plain = cached_table(make, ["toy", 1, "train", 0], None)
    first = cached_table(make, ["toy", 1, "train", 0], tmp_path)
    second = cached_table(make, ["toy", 1, "train", 0], tmp_path)
    assert len(calls) == 2  # without the cache, and for it
    assert first.to_pydict() == second.to_pydict() == plain.to_pydict() == make()
    assert second.schema == plain.schema
    cached_table(make, ["toy", 2, "train", 0], tmp_path)  # another version
    assert len(calls) == 4


def test_generated_tasks_are_the_same_from_the_cache(tmp_path):
    options = TextTask(suite="glue_mini", members=("mnli",), ood=("all",))
    without, new, again = (tasks.load(options, "mnli", c) for c in (None, tmp_path, tmp_path))
    assert len(list(tmp_path.glob("data/*.arrow"))) == 4  # training, two validation sets, ood
    for each in (new, again):
        assert content(each.train) == content(without.train)
        for split, data in {**without.validation, **without.ood}.items():
            found = {**each.validation, **each.ood}[split]
            assert found.features == data.features
            assert content(found) == content(data)
