"""Files as other tools write them: read alike, or refused with file, row and remedy."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner.tasks.records import is_clutter, kind_of, read_column, read_rows

TEXTS = ["a first, with a comma", 'a "second"', "a third\nof two lines", "ein vierter: ä ü"]


def as_csv(texts, delimiter=","):
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "\n".join([f"id{delimiter}text", *(f"{i}{delimiter}{t}" for i, t in enumerate(quoted))])


def as_jsonl(texts):
    return "\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)) + "\n\n"


WRITERS = {
    "a.csv": lambda: as_csv(TEXTS).encode(),
    "bom.csv": lambda: as_csv(TEXTS).encode("utf-8-sig"),
    "windows.csv": lambda: as_csv(TEXTS[:2]).replace("\n", "\r\n").encode("utf-16"),
    "a.tsv": lambda: as_csv(TEXTS, "\t").encode(),
    "a.jsonl": lambda: as_jsonl(TEXTS).encode(),
    "crlf.jsonl": lambda: as_jsonl(TEXTS).replace("\n", "\r\n").encode(),
    "lines.json": lambda: as_jsonl(TEXTS).encode(),
    "array.json": lambda: json.dumps([{"text": t} for t in TEXTS], indent=1).encode(),
    "a.csv.gz": lambda: gzip.compress(as_csv(TEXTS).encode()),
    "a.JSONL": lambda: as_jsonl(TEXTS).encode(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_is_the_same_whatever_the_format(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(WRITERS[name]())
    expected = TEXTS[:2] if name == "windows.csv" else TEXTS
    assert list(read_column(file, "text")) == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_parquet_of_any_writer(kind, tmp_path):
    file = tmp_path / "a.parquet"
    column = pa.array(TEXTS).cast(kind)
    pq.write_table(pa.table({"text": column, "more": range(4)}), file)
    assert list(read_column(file, "text")) == TEXTS


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    file = tmp_path / "a.parquet"
    texts = pa.array(TEXTS)
    pq.write_table(pa.Table.from_arrays([texts, texts], ["text", "text"]), file)
    with pytest.raises(ValueError, match="has the column text twice; rename one"):
        list(read_column(file, "text"))


def test_a_text_of_any_length_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in read_column(tmp_path / "a.csv", "text")] == [200_000]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b'{\n "text": {"0": "x"}\n}\n', "holds one object; write an array of rows"),
        ("a.csv", b"text,text\n1,2\n", "has the column text twice; rename one"),
        ("a.csv", b"id,text\n1,two, three\n", "row 1 has 3 values and the header 2 columns"),
        ("a.csv", b"id,text\n1,caf\xe9\n", "is not utf-8 .*save it as UTF-8"),
        ("a.csv", b"id,body\n1,x\n", "row 1 has the columns id, body; expected text"),
        ("a.csv", gzip.compress(b"id,text\n", mtime=0), "is gzipped; add .gz to its name"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "row 2 is no JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "row 2 is no object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "row 2 has None in the column text"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "row 1 has half a character in the column text"),
        ("a.json", b'[{"text": "x"}, 3]', "row 2 is no object"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_and_row(name, content, complaint, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as refused:
        list(read_column(file, "text"))
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_gzip_file_that_is_damaged_further_on_is_named(name, damage, tmp_path):
    texts = [f"{n} {n * 7919 % 1000}" for n in range(9000)]
    whole = gzip.compress((as_csv(texts) if "csv" in name else as_jsonl(texts)).encode(), mtime=0)
    half = len(whole) // 2
    (tmp_path / name).write_bytes(
        whole[:half] if damage == "cut" else whole[:half] + b"\xff" * 99 + whole[half + 99 :]
    )
    with pytest.raises(ValueError, match="is no whole gzip file") as refused:
        list(read_column(tmp_path / name, "text"))
    assert str(refused.value).startswith(str(tmp_path / name))


STRAY = [("one", "a"), ('"two', "b"), ("three", "a"), ('four"', "b"), ("five", "a")]


def table_of(file, rows, separator):
    lines = [separator.join(row) for row in [("text", "label"), *rows]]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_quote_that_swallows_rows_of_tsv_is_refused(tmp_path):
    file = table_of(tmp_path / "a.tsv", STRAY, "\t")
    with pytest.raises(ValueError, match=r"row 2 \(lines 3 to 5\) has a text with line feeds and"):
        list(read_rows(file))
    quoted = table_of(tmp_path / "b.tsv", [('"one\nof two lines"', "a"), ('"a\ttab"', "b")], "\t")
    assert [row["text"] for row in read_rows(quoted)] == ["one\nof two lines", "a\ttab"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_quote_that_swallows_rows_of_csv_is_told_once(order, tmp_path, caplog):
    rows = [row[::order] for row in [("text", "label"), *STRAY, *STRAY]]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert len(list(read_rows(file))) == len(list(read_rows(file))) == 6
    (told,) = caplog.messages
    assert "row 2 (lines 3 to 5) has a text of several lines that look like rows" in told


@pytest.mark.parametrize(
    "text", ["Hello, friend\nbye", "one\ntwo, three\nfour", "a, b\nc, d\ne, f", "x,y\n1,2,3\nz"]
)
def test_a_text_of_several_lines_with_commas_is_read_as_it_is(text, tmp_path, caplog):
    file = table_of(tmp_path / "a.csv", [(f'"{text}"', "a"), ("two", "b")], ",")
    assert [row["text"] for row in read_rows(file)] == [text, "two"]
    assert not caplog.records


def test_clutter_is_no_data():
    clutter = (".ipynb_checkpoints", "._train.csv", ".DS_Store", "__MACOSX", "@eaDir", "Thumbs.db")
    assert all(map(is_clutter, clutter))
    assert not any(map(is_clutter, ("train.csv", "a.b", "_private", "eaDir")))


def test_the_format_is_known_by_the_suffix(tmp_path):
    kinds = {"a.csv": ".csv", "a.CSV.gz": ".csv", "a.b.json": ".json", "a.txt": "", "csv": ""}
    assert {name: kind_of(tmp_path / name) for name in kinds} == kinds


def test_empty_files_have_no_rows(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.json"):
        (tmp_path / name).touch()
        assert list(read_rows(tmp_path / name)) == []
