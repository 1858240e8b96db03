"""A laid-out table, whatever it is about, and its forms: terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe_runner.console import clear

NOT_AVAILABLE = "not available"  # what a cell without a number says
FIGURES = tuple("0123456789+-±")  # what a figure begins with
WORDS = 24  # characters that a column of words gets at least, before numbers go to another block


@dataclass(frozen=True)
class Entry:
    """One cell: its text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of text.

    Args:
        title: above it.
        header: one name per column; the first column holds the names of the rows.
        rows: as long as the header each.
        caption: below it.
        words: so many columns hold words, at the left; the others numbers.
        name: of its own file and its LaTeX label, after that of the study; "" for the main one.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    caption: str
    words: int = 1
    name: str = ""


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Print a table, in blocks of columns where it does not fit side by side."""
    for block in blocks(sheet, console.width):
        console.print(to_rich(block, console.width))


def blocks(sheet: Sheet, width: int) -> list[Sheet]:
    """Split a table whose numbers do not fit into blocks of columns, each with the row names.

    Args:
        sheet: any; words may be folded, numbers may not.
        width: characters.

    Returns:
        The table itself if it fits or has no columns of numbers.
    """
    needed = [least_width(sheet, i) for i in range(len(sheet.header))]
    head = sum(needed[: sheet.words]) + 3 * sheet.words + 1
    if head + sum(n + 3 for n in needed[sheet.words :]) <= width:
        return [sheet]
    groups: list[list[int]] = []
    used = 0
    for i in range(sheet.words, len(sheet.header)):
        if not groups or used + needed[i] + 3 > width:
            groups.append([])
            used = head
        groups[-1].append(i)
        used += needed[i] + 3
    if len(groups) < 2:
        return [sheet]
    found = []
    for number, group in enumerate(groups):
        columns = [*range(sheet.words), *group]
        last = number == len(groups) - 1
        found.append(
            replace(
                sheet,
                title=f"{sheet.title} ({number + 1} of {len(groups)})",
                header=tuple(sheet.header[i] for i in columns),
                rows=tuple(tuple(row[i] for i in columns) for row in sheet.rows),
                caption=sheet.caption if last else "",
            )
        )
    return found


def least_width(sheet: Sheet, column: int) -> int:
    """Measure how narrow a column may be: words fold at spaces, figures do not."""
    texts = [clear(row[column].text) for row in sheet.rows]
    widths = [longest_word(sheet.header[column])]
    widths += [cell_len(t) if t[:1] in FIGURES else longest_word(t) for t in texts]
    if column < sheet.words:
        whole = max(map(cell_len, (clear(sheet.header[column]), *texts)))
        return max(min(whole, WORDS // sheet.words), min(max(widths), WORDS))
    return max(widths)


def longest_word(text: str) -> int:
    """Measure the longest word of a text, in columns of a terminal."""
    return max((cell_len(word) for word in clear(text).split()), default=0)


def widths_of(sheet: Sheet, width: int) -> list[int]:
    """Share out the width of a terminal: what figures need first, then words, then headers."""
    found = [least_width(sheet, i) for i in range(len(sheet.header))]
    spare = width - 1 - sum(least + 3 for least in found)
    for i, name in enumerate(sheet.header):
        whole = max(cell_len(clear(text)) for text in (name, *(row[i].text for row in sheet.rows)))
        more = max(0, min(whole - found[i], spare))
        found[i] += more
        spare -= more
    return found


def to_rich(sheet: Sheet, width: int | None = None) -> Table:
    """Lay out for the terminal, where a narrow one folds words; the best of a column is bold.

    Args:
        sheet: the table.
        width: of the terminal, in which no figure is folded; None: the terminal decides.
    """
    widths = [None] * len(sheet.header) if width is None else widths_of(sheet, width)
    table = Table(
        title=Text(clear(sheet.title)),
        title_justify="left",
        caption=Text(clear(sheet.caption)),
        caption_justify="left",
    )
    for number, name in enumerate(sheet.header):
        table.add_column(
            Text(clear(name)),
            justify="left" if number < sheet.words else "right",
            overflow="fold",
            width=widths[number],
        )
    for row in sheet.rows:
        table.add_row(*(Text(clear(e.text), style="bold" if e.best else "") for e in row))
    return table


def to_markdown(sheet: Sheet) -> str:
    """Write as GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [
        line([f"**{markdown(e.text)}**" if e.best else markdown(e.text) for e in row])
        for row in sheet.rows
    ]
    rule = line([*["---"] * sheet.words, *["---:"] * (len(sheet.header) - sheet.words)])
    header = line([markdown(name) for name in sheet.header])
    title, caption = markdown(sheet.title), markdown(sheet.caption)
    return "\n".join([f"**{title}**", "", header, rule, *body, "", caption, ""])


def markdown(text: str) -> str:
    """Escape what Markdown reads as HTML or a link; marks of emphasis do no harm."""
    return clear(text).replace("<", "&lt;").replace("](", "]\\(")


def to_csv(sheet: Sheet) -> str:
    """Write as comma-separated values; title and caption are left out."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(no_formula, sheet.header))
    writer.writerows([[no_formula(entry.text) for entry in row] for row in sheet.rows])
    return stream.getvalue()


def no_formula(text: str) -> str:
    """Keep a spreadsheet from computing a name of the user's: a quote stands before it.

    Our own figures with a sign (-25.0 ± 1.5 (3)) have nothing that computes behind it.
    """
    text = clear(text)
    is_figure = re.fullmatch(r"[+-][\d.][\w\s.,±()%]*", text)
    return f"'{text}" if text.startswith(("=", "@", "+", "-")) and not is_figure else text


def to_latex(sheet: Sheet, label: str = "") -> str:
    r"""Write as a LaTeX table (package booktabs).

    Args:
        sheet: the table.
        label: for \\ref; letters, digits and hyphens are kept of it. "": none.
    """

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = [
        line([rf"\textbf{{{latex(e.text)}}}" if e.best else latex(e.text) for e in row])
        for row in sheet.rows
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(sheet.title)}. {latex(sheet.caption)}}}",
            *([rf"\label{{tab:{plain_label(label)}}}"] if label else []),
            rf"\begin{{tabular}}{{{'l' * sheet.words}{'r' * (len(sheet.header) - sheet.words)}}}",
            r"\toprule",
            line([latex(name) for name in sheet.header]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def plain_label(text: str) -> str:
    """Keep of a text what a label of LaTeX may have."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "table"


LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Escape what LaTeX reads as a command."""
    return re.sub(r"[\\±↑↓†‡~^<>&%$#_{}]", lambda match: LATEX[match[0]], clear(text))
