"""Names of the user's are text everywhere: no markup, no HTML, no LaTeX, no formula, one line."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from rich.console import Console

from moe_runner.console import clear, wide_console
from moe_runner.report.page import Section, Verdicts, write_page
from moe_runner.report.sheet import Entry, Sheet, to_csv, to_latex, to_markdown, to_rich

NAMES = (
    "[red]x[/red]", "[/]", "<script>alert(1)</script>", "a|b", "\\input{x}", "$x^2$", "50%_#&~",
    '=cmd()', "@SUM(A1)", "+x", "-x", "+1+cmd|' /C calc'!A0", '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE runs; --", "{{ 7 * 7 }}{% raw %}", "</script></style></table>", "&lt;b&gt;",
    "[click](javascript:alert(1))", "long" * 75, "caf\u00e9 \u6a21\u578b",
)  # fmt: skip
UNSEEN = {  # -> as it is shown
    "two\nlines": "two\\nlines", "a\tb\rc": "a\\tb\\rc", "\x1b[31mred": "\\x1b[31mred",
    "a\u202eb\u2066c": "a\\u202eb\\u2066c", "a\u2028b": "a\\u2028b", "\0": "\\x00",
    "zero\u200bwidth": "zero\\u200bwidth", "half\ud800": "half\\ud800", "\t=cmd()": "\\t=cmd()",
    "\n=cmd()": "\\n=cmd()",
}  # fmt: skip


def sheet(name: str) -> Sheet:
    return Sheet(
        title=name, header=("system", name), caption=name,
        rows=((Entry(name), Entry("-25.0", best=True)),),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_a_name_as_it_is(name, capsys):
    console = Console(width=1000, file=io.StringIO(), markup=False)
    console.print(to_rich(sheet(name)))
    assert console.file.getvalue().count(name) == 4
    if len(name) < 100:  # or it is folded
        wide_console().print(name)
        assert capsys.readouterr().out.strip() == name


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_computes_nothing(name):
    rows = list(csv.reader(io.StringIO(to_csv(sheet(name)))))
    assert rows[1] == [f"'{name}" if name[0] in "=@+-" else name, "-25.0"]


@pytest.mark.parametrize("text", ["-25.0", "+1.5", "-20.5 ± 1.2 (3)", "-.5", "-3 (5), 2 missing"])
def test_figures_of_ours_stay_numbers(text):
    table = Sheet(title="", header=("a",), rows=((Entry(text),),), caption="")
    assert list(csv.reader(io.StringIO(to_csv(table))))[1] == [text]


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_command_of_a_name(name):
    text = to_latex(sheet(name))
    assert "\\input{" not in text
    row = next(line for line in text.splitlines() if "-25.0" in line)
    assert row.count(" & ") == 1
    for sign in "%#&":
        assert text.count(sign) - text.count(f"\\{sign}") == (2 if sign == "&" else 0)
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


@pytest.mark.parametrize("name", NAMES)
def test_markdown_has_no_html_no_link_and_no_column_of_a_name(name):
    text = to_markdown(sheet(name))
    assert "<" not in text
    assert "](" not in text
    row = next(line for line in text.splitlines() if "-25.0" in line)
    assert row.replace("\\|", "").count("|") == 3


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_spelt_out_in_one_line(name):
    shown = UNSEEN[name]
    assert clear(name) == shown
    console = Console(width=200, file=io.StringIO(), markup=False)
    console.print(to_rich(sheet(name)))
    assert console.file.getvalue().count(shown) == 4
    assert next(csv.reader(io.StringIO(to_csv(sheet(name))))) == ["system", shown]
    for write in (to_markdown, to_latex, to_csv):
        usual, text = write(sheet("plain")), write(sheet(name))
        assert text.count("\n") == usual.count("\n")
        assert all(char == "\n" or char.isprintable() for char in text)


class Seen(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(f"{tag} {sorted(name for name, _ in attrs)}")

    def handle_data(self, data):
        self.text += data


def page(name: str, folder) -> Seen:
    """A page on which everything that can be the user's has a name."""
    axes = {key: name for key in ("method", "model", "tuning", "protocol", "suite", "task")}
    run = SimpleNamespace(
        id="0" * 16, axes=lambda: {**axes, "learning_rate": 1.0, "seed": 0},
        settings=lambda: {"task.columns": name},
    )  # fmt: skip
    study = SimpleNamespace(name="mine", title=name, published=(), beside=())
    jobs = [SimpleNamespace(run=run, problems=(name,))]
    plan = SimpleNamespace(study=study, jobs=jobs, gaps=[name], profile="mini")
    store = SimpleNamespace(status=lambda _: SimpleNamespace(state="pending"))
    verdicts = [Verdicts(study, sheet(name), name)]
    write_page(folder / "index.html", [Section(plan, [sheet(name)], [])], verdicts, {}, store)
    return Seen((folder / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*NAMES, *UNSEEN])
def test_the_page_has_no_tag_and_no_attribute_of_a_name(name, tmp_path):
    found = page(name, tmp_path)
    assert found.tags == page("plain", tmp_path).tags
    assert found.text.count(clear(name)) >= 18
