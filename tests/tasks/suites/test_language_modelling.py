"""Running text: where it is looked for, how it is read, what is said when it is wrong."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import LanguageModellingTask
from moe_runner.tasks.mini.corpus import documents
from moe_runner.tasks.suites import language_modelling as suite

LINES = [f"line {i}\n" for i in range(40)]


def options(name: str, place: Path | None = None, **more) -> LanguageModellingTask:
    folder = None if place is None else str(place)
    return LanguageModellingTask(
        suite="language_modelling", members=(name,), data_dir=folder, **more
    )


def texts(data: tasks.TaskData) -> dict[str, list[str] | None]:
    found = {"train": data.train, **data.validation, **data.ood}
    return {name: None if text is None else text["text"][:] for name, text in found.items()}


@pytest.fixture
def folder(tmp_path):
    for split, lines in (("train", LINES), ("validation", LINES[:5]), ("test", LINES[5:8])):
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_with_a_file_per_split(folder, cache):
    kept = folder / "cache" if cache else None
    data = tasks.load(options("text", folder), "text", kept)
    assert texts(data) == {"train": LINES, "validation": LINES[:5], "test": LINES[5:8]}
    assert data.spec.metrics == ("perplexity",)
    (folder / "test.txt").unlink()
    assert texts(tasks.load(options("text", folder), "text"))["test"] is None


@pytest.mark.parametrize(
    "names", [("wiki.train.raw", "wiki.valid.raw"), ("train.txt", "valid.txt")]
)
@pytest.mark.parametrize("sub", ["", "wikitext2", "wikitext-2-raw-v1"])
def test_names_of_wikitext(tmp_path, names, sub):
    (tmp_path / sub).mkdir(exist_ok=True)
    for name in names:
        (tmp_path / sub / name).write_text(name)
    found = tasks.sources(options("wikitext2", tmp_path), "wikitext2")
    assert [found[split].files[0].name for split in ("train", "validation")] == list(names)
    assert found["test"].absent


def test_parquet_in_the_layout_of_the_hub(tmp_path):
    for split in ("train", "validation"):
        file = tmp_path / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": ["", " = A = \n"]}), file)
    data = tasks.load(options("wikitext2", tmp_path), "wikitext2")
    assert texts(data)["train"] == ["", " = A = \n"]
    pq.write_table(pa.table({"txt": ["a"]}), file)
    with pytest.raises(ValueError, match="validation-.* has the columns txt; expected text"):
        tasks.load(options("wikitext2", tmp_path), "wikitext2")


def test_a_copy_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "datasets--Salesforce--wikitext" / "snapshots" / "main"
    folder = snapshot / "wikitext-103-raw-v1"
    folder.mkdir(parents=True)
    for split, parts in (("train", 2), ("validation", 1)):
        for i in range(parts):
            file = folder / f"{split}-{i:05}-of-{parts:05}.parquet"
            pq.write_table(pa.table({"text": [f"{split} {i}\n"]}), file)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        data = tasks.load(options("wikitext103"), "wikitext103", cache)
        assert texts(data)["train"] == ["train 0\n", "train 1\n"]
        assert texts(data)["test"] is None
    assert tasks.fingerprint(options("wikitext103"), "wikitext103")["train"] == (
        "hub Salesforce/wikitext config wikitext-103-raw-v1 split train at main"
    )


@pytest.mark.parametrize("name", ["book.jsonl", "book.csv", "book.parquet", "book.json"])
def test_a_file_of_rows_is_split_as_the_same_text_is(name, tmp_path):
    lines = [f'line "{number}", one\n' for number in range(200)]
    (tmp_path / "book.txt").write_text("".join(lines))
    file = tmp_path / name
    if name == "book.csv":
        with file.open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerows([["text", "n"], *([line, n] for n, line in enumerate(lines))])
    elif name == "book.parquet":
        pq.write_table(pa.table({"text": lines}), file)
    else:
        file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    for cache in (None, tmp_path / "cache"):
        expected, found = (
            tasks.load(options("text", tmp_path / each), "text", cache)
            for each in ("book.txt", name)
        )
        assert found.train["text"][:] == expected.train["text"][:]
        assert len(found.train) == 180
        for split, part in expected.validation.items():
            assert found.validation[split]["text"][:] == part["text"][:]


def test_rows_of_any_table_are_lines(tmp_path):
    rows = [line.strip() for line in LINES]
    for split in ("train", "validation"):
        for name in ("tables", "parquet"):
            (tmp_path / name / "ood").mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (tmp_path / f"tables/{split}.jsonl").write_text(lines)
        pq.write_table(pa.table({"text": rows}), tmp_path / f"parquet/{split}.parquet")
    pq.write_table(pa.table({"text": rows}), tmp_path / "parquet/ood/far.parquet")
    for cache in (None, tmp_path / "cache"):
        ood = {"ood_dir": str(tmp_path / "parquet/ood"), "ood": ("all",)}
        found = tasks.load(options("text", tmp_path / "parquet", **ood), "text", cache)
        tables = tasks.load(options("text", tmp_path / "tables"), "text", cache)
        assert texts(found) == texts(tables) | {"far": tables.train["text"][:]}
        assert found.train["text"][:] == found.ood["far"]["text"][:] == [f"{r}\n" for r in rows]
    prints = tasks.fingerprint(options("text", tmp_path / "parquet"), "text")
    assert prints["train"].endswith(" rows, each a line")  # not what an earlier version read


@pytest.mark.parametrize("name", ["book.jsonl", "book.csv", "book.jsonl.gz", "book.txt.gz"])
def test_a_folder_with_one_file_and_a_column_of_another_name(name, tmp_path):
    if ".txt" in name:
        content = "".join(LINES)
    elif ".csv" in name:
        content = "id,body\n" + "".join(f'{i},"{line.strip()}"\n' for i, line in enumerate(LINES))
    else:
        content = "".join(json.dumps({"body": line}) + "\n" for line in LINES)
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (tmp_path / name).write_bytes(packed)
    (tmp_path / ".DS_Store").write_text("")
    found = texts(tasks.load(options("text", tmp_path, text=("body",)), "text"))
    assert found == {"train": LINES[:36], "validation": LINES[36:38], "test": LINES[38:]}
    assert found == texts(tasks.load(options("text", tmp_path / name, text=("body",)), "text"))


def test_a_file_that_is_read_in_another_way_than_before_has_another_fingerprint(tmp_path):
    """Else a result of the whole file in every split would count as done."""
    (tmp_path / "book.txt").write_text("".join(LINES))
    pq.write_table(pa.table({"text": LINES}), tmp_path / "book.parquet")
    for name, words in (("book.txt", 2), ("book.parquet", 5)):
        found = tasks.fingerprint(options("text", tmp_path / name), "text")
        assert {len(text.split()) for text in found.values()} == {words}, found
        assert found["train"].startswith("sha256 ")


def test_json_lines_under_the_name_of_a_text_are_refused(tmp_path):
    (tmp_path / "book.txt").write_text('{"text": "a line"}\n' * 40)
    with pytest.raises(ValueError, match=r"holds JSON lines, not running text; name it book.jsonl"):
        tasks.load(options("text", tmp_path / "book.txt"), "text")


def test_one_file_is_split_by_lines_90_5_5(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("".join(LINES))
    data = tasks.load(options("text", file), "text", tmp_path / "cache")
    assert texts(data) == {"train": LINES[:36], "validation": LINES[36:38], "test": LINES[38:]}
    file.write_text("a single line")
    with pytest.raises(ValueError, match=r"book.txt has 1 lines, too few to split; use 20 or more"):
        tasks.load(options("text", file), "text")


def test_blank_lines_are_empty_in_wikitext_alone(folder):
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf = A = \r\n \n\nend")
    assert texts(tasks.load(options("text", folder), "text"))["train"] == [
        " = A = \n", " \n", "\n", "end",
    ]  # fmt: skip
    wikitext = tasks.load(options("wikitext2", folder), "wikitext2")
    assert texts(wikitext)["train"] == [" = A = \n", "", "", "end"]


def test_a_line_that_is_not_utf_8_is_named(folder):
    (folder / "train.txt").write_bytes(b"good\nbad \xe9 word\n")
    with pytest.raises(ValueError, match="UTF-8") as error:
        tasks.load(options("text", folder), "text", folder / "cache")
    assert str(error.value) == (
        f"{folder}/train.txt:2 is not UTF-8 (byte 5 of the line: invalid continuation byte); "
        "save the file as UTF-8"
    )
    assert not list((folder / "cache").glob("data/*.arrow"))


def test_an_empty_text_is_an_error(folder):
    (folder / "validation.txt").write_text("")
    with pytest.raises(ValueError, match="validation.txt has no line of text"):
        tasks.load(options("text", folder), "text")


def test_what_is_missing_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(ConfigError) as error:
        tasks.load(options("wikitext2", tmp_path), "wikitext2")
    assert error.value.problems == (
        f"task.data_dir={tmp_path} lacks a split: looked for validation.txt, valid.txt, "
        "wiki.valid.raw and wikitext-2-raw-v1/validation-*-of-*.parquet (all parts); put it there, "
        "or use task=wikitext_mini",
    )
    with pytest.raises(ConfigError, match="nowhere is neither a folder nor a text file"):
        tasks.load(options("text", tmp_path / "nowhere"), "text")
    with pytest.raises(ConfigError, match="task=text needs task.data_dir=<text file>"):
        tasks.load(options("text"), "text")
    with pytest.raises(ConfigError, match="cannot load 'Salesforce/wikitext' .*use task.data_dir="):
        tasks.load(options("wikitext103"), "wikitext103")


def test_limits_keep_the_first_lines(folder):
    data = tasks.load(options("text", folder, limit=3, eval_limit=2), "text")
    assert texts(data) == {"train": LINES[:3], "validation": LINES[:2], "test": LINES[5:7]}


def test_out_of_domain_texts_are_those_of_a_folder(folder):
    (folder / "ood" / "plays").mkdir(parents=True)
    (folder / "ood" / "news.txt").write_text("news\n")
    (folder / "ood" / "plays" / "test.txt").write_text("play\n")
    chosen = options("text", folder, ood=("all",), ood_dir=str(folder / "ood"))
    data = tasks.load(chosen, "text")
    assert texts(data)["news"] == ["news\n"]
    assert texts(data)["plays"] == ["play\n"]
    assert data.ood_specs["news"].metrics == ("perplexity",)
    with pytest.raises(ConfigError, match=r"task.ood=\[new\] .* did you mean news\?"):
        tasks.sources(replace(chosen, ood=("new",)), "text")


def test_the_fingerprint_is_of_the_files(folder):
    before = tasks.fingerprint(options("text", folder), "text")
    (folder / "validation.txt").write_text("other")
    after = tasks.fingerprint(options("text", folder), "text")
    assert {split for split in before if before[split] != after[split]} == {"validation"}


def test_the_generated_text_is_new_to_the_backbones_and_the_other_set_is_of_another_kind():
    mini = options("wikitext_mini", ood=("all",))
    found = texts(tasks.load(mini, "wikitext_mini"))
    assert {name: len(lines) for name, lines in found.items()} == suite.MINI_DOCUMENTS
    assert found == texts(tasks.load(mini, "wikitext_mini"))
    assert found["train"] != texts(tasks.load(replace(mini, data_seed=1), "wikitext_mini"))["train"]
    questions = {name: sum("?" in line for line in found[name]) for name in ("test", "dialogue")}
    assert questions["test"] == 0
    assert questions["dialogue"] > 200
    seen = {" ".join(d) + "\n" for seed in range(3) for d in documents(count=400, seed=seed)}
    shared = len(seen & set(found["validation"])) / len(found["validation"])
    assert shared < 0.01  # the grammar's documents hardly repeat


def test_real_text_has_the_rows_of_the_hub(shared_data, tmp_path):
    source = shared_data / "wikitext2"
    for target, name in (("train", "validation"), ("validation", "test")):
        (tmp_path / f"{target}.txt").write_bytes((source / f"{name}.txt").read_bytes())
    data = tasks.load(options("wikitext2", tmp_path), "wikitext2", tmp_path / "cache")
    rows = texts(data)
    published = {"train": 1159288, "validation": 1305088}  # num_bytes of the Hub: 4 a string
    for split, size in published.items():
        lines = rows[split]
        assert lines is not None
        total = sum(len(line.encode()) + 4 for line in lines) + 0
        assert abs(total - size) < 0.02 * size
    assert [len(rows["train"] or []), len(rows["validation"] or [])] == [3760, 4358]
    assert rows["train"][:3] == ["", " = Homarus gammarus = \n", ""]


def test_shakespeare_as_one_file(shared_data, tmp_path):
    file = shared_data / "tinyshakespeare" / "input.txt"
    data = tasks.load(options("text", file), "text", tmp_path / "cache")
    joined = "".join("".join(lines or []) for lines in texts(data).values())
    assert joined == file.read_text()
    assert len(data.train) == 36000


@pytest.mark.parametrize("name", ["book.csv", "book.parquet"])
def test_a_table_without_the_column_is_refused_before_anything_runs(name, tmp_path):
    file = tmp_path / name
    if name == "book.csv":
        file.write_text("body,n\n" + "a,1\n" * 30)
    else:
        pq.write_table(pa.table({"body": ["a"] * 30, "n": [1] * 30}), file)
    with pytest.raises(ConfigError, match=r"book.* has the columns body, n; it lacks text"):
        tasks.load(options("text", file), "text")
