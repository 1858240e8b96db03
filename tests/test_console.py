"""What is shown to people fits, is whole, and is spelt so that the terminal knows it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.table import Table

from moe_runner.console import PLAIN, Wide, duration, fitted_lines
from moe_runner.runs.log import Fitted

PARTS = ["[7/48]", "emoe rte seed 1", "", "accuracy 66.4", "12 s", "5.0 min left"]


def test_parts_share_lines_as_long_as_there_is_room():
    assert fitted_lines(PARTS, None) == [
        "[7/48]  emoe rte seed 1  accuracy 66.4  12 s  5.0 min left"
    ]
    assert fitted_lines(PARTS, 80) == fitted_lines(PARTS, None)
    assert fitted_lines(PARTS, 40) == [
        "[7/48]  emoe rte seed 1  accuracy 66.4",
        "  12 s  5.0 min left",
    ]


@pytest.mark.parametrize("width", [5, 12, 40, 80])
def test_nothing_is_lost_and_no_line_is_too_long(width):
    parts = [*PARTS, "a" * 100, "some words that are long together, more than a line of the narrow"]
    lines = fitted_lines(parts, width)
    assert max(map(len, lines)) <= width
    assert "".join("".join(lines).split()) == "".join("".join(parts).split())


LINES = "  new, not pretrained: bert.pooler.dense.bias, classifier.weight\n  [1/2]\n  " + "a" * 50


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_of_the_log_goes_on_where_a_terminal_is_narrow(terminal, monkeypatch):
    stream = SimpleNamespace(isatty=lambda: terminal, fileno=lambda: 2)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    found = Fitted("%(message)s").format(logging.makeLogRecord({"msg": LINES}))
    if not terminal:
        assert found == LINES
        return
    assert found.splitlines() == [
        "  new, not pretrained:",
        "    bert.pooler.dense.bias,",
        "    classifier.weight",
        "  [1/2]",
        "  " + "a" * 50,  # a path can still be copied
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (89, "89 s"), (90, "1.5 min"), (1500, "25 min"),
     (5399, "1.5 h"), (7560, "2.1 h"), (432_000, "5.0 d")],
)  # fmt: skip
def test_times_have_two_figures(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("width", [24, 80])
def test_a_table_without_room_is_printed_cell_by_cell(width):
    table = Table(title="the title", caption="the caption")
    for name in ("method", "accuracy of the task", ""):
        table.add_column(name, no_wrap=True)
    table.add_row("emoe", "66.4 ± 0.5", "*")
    table.add_row("dense", "", "")
    stream = io.StringIO()
    Wide(file=stream, width=width, force_terminal=True, color_system=None).print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "66.4 ± 0.5" in text
    if width == 24:
        assert [line.strip() for line in text.splitlines()] == [
            "the title", "method: emoe", "accuracy of the task:", "66.4 ± 0.5", "*", "",
            "method: dense", "", "the caption",
        ]  # fmt: skip
    else:
        assert "┃ method ┃" in text


def test_a_terminal_that_knows_only_ascii_gets_plain_signs(tmp_path):
    code = (
        "from moe_runner.console import spell_plainly, wide_console; spell_plainly();"
        "from rich.table import Table; t = Table(title='a → b'); t.add_column('x ± y');"
        "t.add_row('1 \\u00d7 2 \\u2013 3 …'); wide_console().print(t); print('52 ± 1 ü')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii"}
        | {"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "52 +- 1 ?" in text
    assert "1 x 2 - 3 ..." in text
    assert "| x +- y" in text


@pytest.mark.parametrize("sign", "±→\u00d7↑↓†‡≥≤")
def test_no_sign_of_ours_becomes_a_question_mark(sign):
    assert PLAIN[sign].isascii()
