"""Tables in their forms, and the published numbers."""

from __future__ import annotations

import csv

import pytest

from moe_runner.report.beside import published_sheet
from moe_runner.report.published import published_tables
from moe_runner.report.sheet import Entry, Sheet, latex, to_csv, to_latex, to_markdown

SHEET = Sheet(
    title="a_b: 50% & more",
    header=("method", "cola"),
    rows=((Entry("dense"), Entry("61.0 ± 0.5 (3)")), (Entry("emoe"), Entry("62.0 (1)", best=True))),
    caption="percent | n",
)


def test_markdown():
    assert to_markdown(SHEET).splitlines() == [
        "**a_b: 50% & more**",
        "",
        "| method | cola |",
        "| --- | ---: |",
        "| dense | 61.0 ± 0.5 (3) |",
        "| emoe | **62.0 (1)** |",
        "",
        "percent | n",
    ]


def test_csv_reads_back():
    rows = list(csv.reader(to_csv(SHEET).splitlines()))
    assert rows == [["method", "cola"], ["dense", "61.0 ± 0.5 (3)"], ["emoe", "62.0 (1)"]]


def test_latex_escapes_and_marks_the_best():
    text = to_latex(SHEET)
    assert r"\caption{a\_b: 50\% \& more. percent | n}" in text
    assert r"dense & 61.0 $\pm$ 0.5 (3) \\" in text
    assert r"emoe & \textbf{62.0 (1)} \\" in text
    assert text.count("&") == 4  # three rows and the escaped one of the caption


@pytest.mark.parametrize("character", "\\&%$#_{}~^<>")
def test_every_special_character_of_latex_is_escaped(character):
    assert latex(f"a{character}b") not in (f"a{character}b", "ab")


def test_only_sourced_numbers_are_published():
    for table in published_tables().values():
        words = table.confidence.replace(",", " ").split()
        assert {"verified", "secondary"} & set(words), table.id
        assert table.source
        assert all(len(cells) == len(table.columns) for cells in table.rows.values())


def test_a_published_table_shows_the_difference_to_its_first_row():
    sheet = published_sheet(published_tables()["emoe-fig2-lora"])
    texts = [[entry.text for entry in row] for row in sheet.rows]
    assert texts[0] == ["LoRA", "84.35", "4.86", "84.61", "5.61"]
    assert texts[2] == ["EMoE", "85.09 (+0.74)", "4.37 (-0.49)", "85.45 (+0.84)", "3.88 (-1.73)"]
    assert sheet.caption.startswith("verified; ")


def test_rows_of_other_metrics_and_tables_without_a_baseline_show_no_difference():
    tables = published_tables()
    rows = {row[0].text: row for row in published_sheet(tables["emoe-fig7-data"]).rows}
    assert rows["EMoE"][1].text == "84.49 (+0.74)"
    assert rows["listed_delta_array"][1].text == "0.74"
    for row in published_sheet(tables["emoe-domainbed-small"]).rows:
        assert not any("(" in entry.text for entry in row)


def test_unknown_cells_say_so_and_anchors_are_labelled():
    cells = published_sheet(published_tables()["emoe-lora-single-cells"]).rows[1]
    assert [entry.text for entry in cells][2:4] == ["not available", "not available"]
    assert "anchor" in published_sheet(published_tables()["ext-gmoe-domainbed"]).title
