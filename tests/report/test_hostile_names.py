"""Names of the user's are text everywhere: no markup, no HTML, no LaTeX, no formula."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from moe_runner.console import wide_console
from moe_runner.report.sheet import Entry, Sheet, to_csv, to_latex, to_markdown, to_rich

NAMES = (
    "[red]x[/red]", "[/]", "<script>alert(1)</script>", "a|b", "\\input{x}", "$x^2$", "50%_#&~",
    '=cmd()', "@SUM(A1)", "+x", "-x",
)  # fmt: skip


def sheet(name: str) -> Sheet:
    return Sheet(
        title=name, header=("system", name), caption=name,
        rows=((Entry(name), Entry("-25.0", best=True)),),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_a_name_as_it_is(name, capsys):
    console = Console(width=120, file=io.StringIO(), markup=False)
    console.print(to_rich(sheet(name)))
    assert console.file.getvalue().count(name) == 4
    wide_console().print(name)
    assert capsys.readouterr().out.strip() == name


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_computes_nothing(name):
    rows = list(csv.reader(io.StringIO(to_csv(sheet(name)))))
    assert rows[1] == [f"'{name}" if name[0] in "=@+-" else name, "-25.0"]


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_command_of_a_name(name):
    text = to_latex(sheet(name))
    assert "\\input{" not in text
    row = next(line for line in text.splitlines() if "-25.0" in line)
    assert row.count(" & ") == 1
    for sign in "%#&":
        assert text.count(sign) - text.count(f"\\{sign}") == (2 if sign == "&" else 0)


def test_a_bar_in_a_name_is_no_column():
    row = next(line for line in to_markdown(sheet("a|b")).splitlines() if "-25.0" in line)
    assert row.replace("\\|", "").count("|") == 3
