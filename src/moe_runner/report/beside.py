"""The published figures: beside ours, pair by pair, and as they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moe_runner.metrics import scaled
from moe_runner.report.published import Published, PublishedTable
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet
from moe_runner.report.study_table import StudyTable
from moe_runner.sweeps.study import Pairing, Profile

BASELINES = ("Dense", "LoRA", "LoRA (no MoE)", "standard tuning", "standard")  # rows so named
HEADER = (
    "row",
    "published column",
    "our column",
    "ours",
    "our difference",
    "published",
    "published difference",
)
ABSENT = "not in this profile"


@dataclass(frozen=True)
class Figure:
    """One of our numbers.

    Args:
        value: percent, perplexity or rank; None without enough runs.
        text: as it is shown.
    """

    value: float | None
    text: str


def beside_sheet(
    table: StudyTable, published: PublishedTable, pairing: Pairing, profile: Profile
) -> Sheet:
    """Lay out each published figure beside ours, both with the difference to their baseline.

    Args:
        table: ours.
        published: theirs.
        pairing: which of our rows and columns are which of theirs; the first row is the baseline.
        profile: of the study.
    """
    rows = []
    for key, theirs in matched(pairing.columns, lambda key: is_in(table, key)):
        place = published.columns.index(theirs)
        baseline: tuple[Figure, Published] | None = None
        for own, row in matched(pairing.rows, table.rows.__contains__):
            figure = own_figure(table, own, key)
            cell = published.rows[row][place]
            std = published.std[row][place] if row in published.std else None
            differences = ("", "")
            if baseline is not None:
                differences = (
                    difference(figure.value, baseline[0].value),
                    difference(cell, baseline[1]),
                )
            baseline = baseline or (figure, cell)
            words = (figure.text, differences[0], number(cell, std), differences[1])
            name = row if own is None else table.row_names[own]
            ours = ABSENT if key is None else table.column_names[key]
            rows.append(tuple(map(Entry, (name, theirs, ours, *words))))
    return Sheet(
        title=f"beside the paper: {published.where}; {published.metric}",
        header=HEADER,
        rows=tuple(rows),
        caption="; ".join([comparable(profile), origin(published)]),
        words=3,
        name=f"beside-{published.id}",
    )


def matched(pairs: Mapping[str, str], has: Callable[[str], bool]) -> list[tuple[str | None, str]]:
    """Pair what of ours is there with the published names; a published name alone with None."""
    found: list[tuple[str | None, str]] = []
    for theirs in dict.fromkeys(pairs.values()):
        ours = [own for own, name in pairs.items() if name == theirs and has(own)]
        found += [(own, theirs) for own in ours] or [(None, theirs)]
    return found


def columns_of(table: StudyTable, key: str) -> list[str]:
    """List our columns that a key of a pairing means: `all`, or those that begin with its words."""
    words = key.partition(" > ")[0].removesuffix(" rank")
    if words == "all":
        return list(table.columns)
    return [name for name in table.columns if name == words or name.startswith(f"{words} ")]


def is_in(table: StudyTable, key: str) -> bool:
    """Tell whether there are columns, and the out-of-domain set, that a key of a pairing means."""
    columns, ood = columns_of(table, key), key.partition(" > ")[2]
    cells = [each.cell for (_, column), each in table.cells.items() if column in columns]
    known = [cell for cell in cells if cell is not None]
    return bool(columns) and (not (ood and known) or any(ood in cell.ood for cell in known))


def own_figure(table: StudyTable, row: str | None, key: str | None) -> Figure:
    """Read one of our numbers.

    Args:
        table: ours.
        row: its label.
        key: of the columns: see `Pairing`.
    """
    if row is None or key is None:
        return Figure(None, "")
    columns = columns_of(table, key)
    if key.endswith(" rank"):
        rank = table.ranks(columns).get(row)
        return Figure(rank, "missing" if rank is None else f"{rank:.2f}")
    cells = table.known(row, columns)
    if cells is None:
        return Figure(None, "missing")
    here = [table.cells[row, name] for name in columns]
    done, planned = sum(each.done for each in here), sum(each.planned for each in here)
    n = str(min(cell.n for cell in cells))
    n += f", {done} of {planned} runs" if done < planned else ""
    ood = key.partition(" > ")[2]
    if ood:
        values = [cell.ood.get(ood) for cell in cells]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return Figure(None, NOT_AVAILABLE)
        value = scaled(statistics.fmean(known), cells[0].set_metrics.get(ood, ()))
        return Figure(value, f"{value:.2f} ({n})")
    value = scaled(
        statistics.fmean(cell.mean for cell in cells), [n for cell in cells for n in cell.metrics]
    )
    std = scaled(cells[0].std, cells[0].metrics) if len(cells) == 1 and cells[0].n > 1 else None
    return Figure(value, f"{number(value, std)} ({n})")


def comparable(profile: Profile) -> str:
    """Say whether our numbers can be held against the published ones."""
    if profile == "mini":
        return (
            "profile=mini: tiny backbones, embedded data, few updates, so that neither the numbers "
            "nor the differences compare with the published ones"
        )
    if profile == "small":
        return (
            "profile=small: smaller pretrained models and less data than published, so that the "
            "sign of a difference compares, its size and the numbers do not"
        )
    return "the difference is to the first row, ours to ours and published to published"


def published_sheet(published: PublishedTable) -> Sheet:
    """Lay out a published table with the difference to its baseline, source and confidence."""
    external = " (an anchor, not a target)" if published.paper == "external" else ""
    baseline = next((name for name in BASELINES if name in published.rows), None)
    unknown = (None,) * len(published.columns)
    rows = []
    for name, cells in published.rows.items():
        compared = baseline is not None and name != baseline and "delta" not in name
        first = published.rows[baseline] if compared and baseline is not None else unknown
        std = published.std.get(name, unknown)
        words = []
        for cell, spread, base in zip(cells, std, first, strict=True):
            change = difference(cell, base)
            words.append(number(cell, spread) + (f" ({change})" if change else ""))
        rows.append((Entry(name), *(Entry(word) for word in words)))
    return Sheet(
        title=f"published{external}: {published.where}; {published.metric}",
        header=("", *published.columns),
        rows=tuple(rows),
        caption=origin(published),
        name=f"published-{published.id}",
    )


def number(cell: Published, std: Published = None) -> str:
    """Write a figure, with its standard deviation if there is one."""
    if cell is None:
        return NOT_AVAILABLE
    spread = f" ± {std:.2f}" if isinstance(std, float) else ""
    return (f"{cell:.2f}" if isinstance(cell, float) else str(cell)) + spread


def difference(cell: Published, base: Published) -> str:
    """Write what a figure has more than its baseline; nothing unless both are numbers."""
    if isinstance(cell, int | float) and isinstance(base, int | float):
        return f"{cell - base:+.2f}"
    return ""


def origin(published: PublishedTable) -> str:
    """Tell confidence, source and what to know of a published table."""
    return "; ".join([published.confidence, published.source, *published.notes])
