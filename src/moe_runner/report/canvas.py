"""What all plots share: figures, panels, colours, legends. matplotlib draws without a display."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from moe_runner.metrics import RAW, lower_is_better, named

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")  # Paul Tol
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, HEIGHT = 8.0, 4.0  # inches
LETTERS = 13  # of a title, per inch
ACROSS = 3  # panels side by side
LEAST = 0.5  # of what an axis spans: a tenth of a percent fills no picture
LONG = 14  # characters of an axis's name, before its direction comes in a line of its own
LINE, LINES = 0.18, 3  # inches of a line of a legend, and how many a figure has room for anyway
MOST_PANELS = 12  # of one picture; that others are left out is said


def panels(
    title: str, names: Sequence[str], height: float, across: int = ACROSS, **options: Any
) -> tuple[Any, list[Any]]:
    """Make a figure with a panel for each name.

    Args:
        title: of the figure.
        names: of the panels, at most `MOST_PANELS` are made.
        height: of a panel, inches.
        across: panels side by side.
        **options: of `subplots`.

    Returns:
        The figure, and its panels in the order of the names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = names[:MOST_PANELS]
    columns = min(2 if len(shown) == 4 else across, len(shown), across)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH, 0.9 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    left_out = f" (the first {len(shown)} of {len(names)})" if len(names) > len(shown) else ""
    figure.suptitle(plain(wrapped(f"{title}{left_out}")), fontsize=10, x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax, name in zip(grid, shown, strict=False):
        ax.set_title(plain(name), fontsize=8, loc="left")
        ax.tick_params(labelsize=7)
        ax.locator_params(nbins=5) if ax.name == "rectilinear" else None
        for side in ("top", "right"):
            if side in ax.spines:
                ax.spines[side].set_visible(False)
    for ax in grid[len(shown) :]:
        ax.set_visible(False)
    return figure, list(grid[: len(shown)])


def wrapped(title: str) -> str:
    """Break the lines of a figure's title that are wider than the figure."""
    across = int(WIDTH * LETTERS)
    return "\n".join(textwrap.fill(line, across) for line in title.splitlines())


def plain(text: str) -> str:
    """Keep matplotlib from reading mathematics in a name."""
    return text.replace("$", r"\$")


def unit(metrics: Sequence[str]) -> str:
    """Name a metric with its unit."""
    names = tuple(dict.fromkeys(metrics))
    return f"{named(names) or 'score'}{'' if set(names) & set(RAW) else ', %'}"


def measured(metrics: Sequence[str]) -> str:
    """Name a metric with its unit and direction, for an axis."""
    name, better = unit(metrics), "lower" if lower_is_better(metrics) else "higher"
    return f"{name}{chr(10) if len(name) > LONG else ' '}({better} is better)"


def widen(ax: Any, axis: str) -> None:
    """Give an axis on which all is one value a range of one unit to both sides."""
    low, high = getattr(ax, f"get_{axis}lim")()
    if high - low < LEAST:
        middle = (low + high) / 2
        getattr(ax, f"set_{axis}lim")(middle - LEAST, middle + LEAST)


def colour(number: int) -> str:
    """Give the colour of a row."""
    return COLOURS[number % len(COLOURS)]


def fill(number: int) -> str:
    """Tell rows of one colour apart: beyond as many as there are colours, markers are hollow."""
    return "full" if number % (2 * len(COLOURS)) < len(COLOURS) else "none"


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend below all panels, where it covers nothing and takes no width."""
    if handles:
        longest = max(len(handle.get_label()) for handle in handles)
        across = max(1, min(len(handles), 110 // (longest + 8)))
        width, height = figure.get_size_inches()
        lines = math.ceil(len(handles) / across)
        figure.set_size_inches(width, height + LINE * max(0, lines - LINES))
        figure.legend(
            handles=handles, fontsize=8, loc="outside lower left", ncols=across, frameon=False
        )


def swatch(name: str, **style: Any) -> Any:
    """Make an entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=plain(name), **style)
