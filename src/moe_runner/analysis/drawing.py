"""The pictures of an analysis. matplotlib is imported when one is drawn; no display is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from moe_runner.analysis.numbers import (
    Ints,
    cosines,
    held,
    joint_counts,
    lift,
    moved,
    neighbours_together,
    shares,
)
from moe_runner.analysis.records import Layer, Subject
from moe_runner.analysis.sheets import MOST_TIES, known_values
from moe_runner.analysis.stored import Picture
from moe_runner.analysis.words import CLASSES
from moe_runner.console import clear
from moe_runner.files import replacing
from moe_runner.report.canvas import COLOURS, WIDTH

MOST_PANELS = 4  # layers of a picture with a panel for each
MOST_BARS = 12  # layers of a picture with bars
MOST_TICKS = 64  # experts whose numbers find room below a panel
LIFT = 3.0  # log2, at the ends of the scale
NEAR = 0.5  # cosine; where all are above, the scale is that of what occurs
LONGEST = 40  # letters of the name of a set
Item = TypeVar("Item")


def draw_subject(subject: Subject, out: Path) -> list[Picture]:
    """Draw what was found of one model.

    Args:
        subject: the model.
        out: folder of the files `<subject>-<kind>.png`.
    """
    return [
        save(figure, subject.title, caption, out / f"{subject.name}-{kind}.png")
        for kind, draw in KINDS.items()
        if (drawn := draw(subject)) is not None
        for figure, caption in [drawn]
    ]


def save(figure: Any, title: str, caption: str, file: Path) -> Picture:
    """Write a figure as PNG, under its title."""
    figure.suptitle(shorten(title, 90), fontsize=8, x=0.01, ha="left")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Picture(file, f"{title}: {caption}")


def new_panels(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """Make a figure with a grid of axes.

    Args:
        rows: of it.
        columns: of it.
        height: of a row, inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.6 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def some(items: Sequence[Item], most: int) -> list[Item]:
    """Take at most so many, spread evenly, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(len(items), most))
    return [items[round(place)] for place in places]


def left_out(items: Sequence[Any], most: int) -> str:
    """Say that a picture does not show all layers."""
    return f" {most} of {len(items)} layers are shown." if len(items) > most else ""


def show(ax: Any, values: np.ndarray, label: str, **scale: Any) -> None:
    """Draw a heat map with its colour scale."""
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **scale)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.01)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6)
    ax.tick_params(labelsize=7)


def number(ax: Any, experts: Sequence[int] | Ints, *, upwards: bool = False) -> None:
    """Write the numbers of the experts below the columns, or beside the rows.

    Of many every second one, unless they are out of order.
    """
    if len(experts) > MOST_TICKS:
        return
    in_order = isinstance(experts, range)
    places = range(0, len(experts), 2 if in_order and len(experts) > MOST_TICKS // 2 else 1)
    ticks = {"ticks": places, "labels": [str(experts[place]) for place in places]}
    size = 7 if len(experts) <= 16 else 5
    if upwards:
        height = ax.get_position().height * ax.figure.get_figheight() * 72
        if height / len(experts) >= size:
            ax.set_yticks(**ticks, fontsize=size)
    else:
        ax.set_xticks(**ticks, fontsize=size, rotation=0 if len(experts) <= 16 else 90)


def draw_load(subject: Subject) -> tuple[Any, str] | None:
    """Draw each expert's share of the choices: at every evaluation, or of the layers at the end."""
    histories = [each for each in subject.over_training if len(each.updates) > 1]
    if not histories:
        sizes = {layer.num_experts for layer in subject.layers}
        if len(sizes) > 1:
            return None
        figure, axes = new_panels(1, 1, 0.8 + 0.3 * len(subject.layers))
        values = np.stack([shares(layer.chosen) for layer in subject.layers])
        show(axes[0, 0], 100 * values, "share of choices, %", vmin=0)
        names = [layer.name for layer in subject.layers]
        axes[0, 0].set_yticks(range(len(names)), names)
        number(axes[0, 0], range(values.shape[1]))
        axes[0, 0].set_xlabel("expert", fontsize=8)
        return figure, "share of the choices of each expert by layer, at the end of tuning."
    shown = some(histories, MOST_PANELS)
    figure, axes = new_panels(len(shown), 1, 1.9)
    for ax, history in zip(axes[:, 0], shown, strict=True):
        total = history.load.sum(1, keepdims=True)
        show(ax, 100 * history.load / np.maximum(total, 1), "share of choices, %", vmin=0)
        ax.set_title(history.name, fontsize=9, loc="left")
        rows = some(range(len(history.updates)), 8)
        ax.set_yticks(rows, [str(history.updates[row]) for row in rows])
        ax.set_ylabel("updates", fontsize=8)
        number(ax, range(history.load.shape[1]))
    axes[-1, 0].set_xlabel("expert", fontsize=8)
    return figure, (
        "share of the choices of each expert at every evaluation of the tuning."
        + left_out(histories, MOST_PANELS)
    )


def draw_classes(subject: Subject) -> tuple[Any, str] | None:
    """Draw which surface classes each expert takes more or less of than all experts do."""
    known = [layer for layer in subject.layers if layer.tokens.identity is not None]
    if not known or not subject.kinds:
        return None
    shown = some(known, MOST_PANELS)
    figure, axes = new_panels(len(shown), 1, 2.6)
    for ax, layer in zip(axes[:, 0], shown, strict=True):
        kind_T = np.array(subject.kinds, dtype=np.int64)[layer.tokens.identity]
        kinds_C, counts_CE = joint_counts(layer.chosen, kind_T)
        lift_CE = lift(counts_CE)
        order = neighbours_together(cosines(lift_CE.T))
        show(
            ax, lift_CE[:, order], "log2 of share /\nshare in all tokens",
            cmap="RdBu_r", vmin=-LIFT, vmax=LIFT,
        )  # fmt: skip
        ax.set_yticks(range(len(kinds_C)), [CLASSES[c] for c in kinds_C], fontsize=6)
        number(ax, order)
        ax.set_title(layer.name, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("expert, alike ones side by side", fontsize=8)
    return figure, (
        "surface classes that each expert takes more (red) or less (blue) of than its share; "
        "classes go by the letters of a token alone." + left_out(known, MOST_PANELS)
    )


def draw_information(subject: Subject) -> tuple[Any, str]:
    """Draw how much of the selection each known thing explains, and what it would by chance."""
    shown = some(subject.layers, MOST_BARS)
    figures = [known_values(subject, layer) for layer in shown]
    names = list(figures[0])
    bars = {name: [100 * each[name].explained for each in figures] for name in names}
    chance = {name: [100 * each[name].explained_by_chance for each in figures] for name in names}
    figure = grouped_bars(shown, bars, "explained, %", chance)
    return figure, (
        "share of the uncertainty, whether a token goes to an expert, that is taken away by "
        "knowing each of these; the black line is what shuffled values explain."
        + left_out(subject.layers, MOST_BARS)
    )


def draw_activation(subject: Subject) -> tuple[Any, str] | None:
    """Draw how much of the dense activation the selected experts hold."""
    split = [layer for layer in subject.layers if layer.energy is not None]
    if not split:
        return None
    shown = some(split, MOST_BARS)
    pairs = [held(layer.energy, layer.chosen) for layer in shown if layer.energy is not None]
    bars: dict[str, Sequence[float]] = {
        "selected": [100 * selected for selected, _ in pairs],
        "best (by activation)": [100 * best for _, best in pairs],
        "any (random choice)": [100 * layer.selected / layer.num_experts for layer in shown],
    }
    groups = [layer.random_groups for layer in shown]
    if any(group is not None for group in groups):
        bars["random groups, same router"] = [
            np.nan if group is None else 100 * group for group in groups
        ]
    figure = grouped_bars(shown, bars, "share of squared activation, %")
    return figure, (
        "share of the squared length of the dense hidden activation that the selected experts hold."
        + left_out(split, MOST_BARS)
    )


def grouped_bars(
    layers: Sequence[Layer],
    bars: Mapping[str, Sequence[float]],
    label: str,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> Any:
    """Draw a group of bars per layer, and marks across them."""
    figure, axes = new_panels(1, 1, 2.8)
    ax, width = axes[0, 0], 0.8 / len(bars)
    for place, (name, values) in enumerate(bars.items()):
        x = np.arange(len(layers)) + (place - (len(bars) - 1) / 2) * width
        ax.bar(x, values, width, color=COLOURS[place % len(COLOURS)], label=name)
        if marks is not None:
            ax.hlines(marks[name], x - width / 2, x + width / 2, color="black", linewidth=1.5)
    ax.set_xticks(range(len(layers)), [layer.name for layer in layers], fontsize=8)
    if len(layers) > 6:
        ax.tick_params(axis="x", rotation=45)
    ax.set_ylabel(label, fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    margin = 0.7 if len(layers) > 2 else 1.2  # a single group is no wall
    ax.set_xlim(-margin, len(layers) - 1 + margin)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def draw_likeness(subject: Subject) -> tuple[Any, str] | None:
    """Draw how alike the experts are: their keys, and their outputs on the texts."""
    several = [layer for layer in subject.layers if layer.num_experts > 1]
    if not several:
        return None
    shown = some(several, MOST_PANELS)
    figure, axes = new_panels(len(shown), 2, 2.7)
    for row, layer in zip(axes, shown, strict=True):
        order = neighbours_together(layer.outputs)
        for ax, name, square in zip(
            row, ("keys", "outputs"), (layer.keys, layer.outputs), strict=True
        ):
            scale: dict[str, Any] = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}
            if square.min() > NEAR:  # copies: what differs is what matters
                scale = {"cmap": "viridis"}
            others = np.where(np.eye(len(order), dtype=bool), np.nan, square[order][:, order])
            ax.set_facecolor("lightgrey")  # of the diagonal, an expert with itself
            show(ax, others, "cosine", **scale)
            ax.set_title(f"{layer.name}: {name}", fontsize=9, loc="left")
            ax.set_xlabel("expert, alike outputs side by side", fontsize=7)
            if len(order) <= 16:
                number(ax, order)
                number(ax, order, upwards=True)
            else:
                ax.set_xticks([])
                ax.set_yticks([])
    return figure, (
        "cosine of every two different experts: of their keys (groups of neurons: of the mean "
        "key) and of their outputs on all tokens." + left_out(several, MOST_PANELS)
    )


def draw_change(subject: Subject) -> tuple[Any, str] | None:
    """Draw where the tokens of each expert went by tuning."""
    before = {layer.name: layer for layer in subject.before}
    known = [
        layer
        for layer in subject.layers
        if layer.name in before and before[layer.name].tied <= MOST_TIES
    ]
    if not known:
        return None
    shown = some(known, MOST_PANELS)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_panels(rows, columns, 3.0 if columns == 2 else 4.2)
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for ax, layer in zip(axes.flat, shown, strict=False):
        share_EE = 100 * moved(before[layer.name].chosen, layer.chosen)
        show(ax, share_EE, "% of the tokens", vmin=0, vmax=100)
        ax.set_title(layer.name, fontsize=9, loc="left")
        ax.set_xlabel("expert after tuning", fontsize=8)
        ax.set_ylabel("expert before", fontsize=8)
    return figure, (
        "of the tokens that went to an expert before tuning (row), how many go to each after it "
        "(column); the diagonal stayed, a blank row had no token." + left_out(known, MOST_PANELS)
    )


def draw_beside(subject: Subject) -> tuple[Any, str] | None:
    """Draw what a HyperExpert adds, and how far its selections lie apart."""
    known = [layer for layer in subject.layers if layer.norms is not None]
    if not known:
        return None
    hyper = [layer for layer in known if layer.embeddings is not None and len(layer.embeddings) > 1]
    if not hyper:
        shown = some(known, MOST_BARS)
        values = [
            100 * layer.norms[1] / max(sum(layer.norms), 1e-30) for layer in shown if layer.norms
        ]
        figure = grouped_bars(shown, {"side experts": values}, "share of length, %")
        return figure, (
            "share of the side experts in the length of the output." + left_out(known, MOST_BARS)
        )
    shown = some(hyper, MOST_PANELS)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_panels(rows, columns, 3.0)
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for ax, layer in zip(axes.flat, shown, strict=False):
        assert layer.embeddings is not None
        assert layer.norms is not None
        assert layer.selections is not None
        apart = 1 - cosines(layer.embeddings)
        show(ax, apart, "cosine distance", vmin=0, cmap="magma")
        share = 100 * layer.norms[1] / max(sum(layer.norms), 1e-30)
        ax.set_title(f"{layer.name}: {share:.1f}% of the length", fontsize=9, loc="left")
        sets = ["+".join(map(str, np.flatnonzero(row))) for row in layer.selections]
        if len(sets) <= 16 and max(map(len, sets)) <= 5:
            ax.set_xticks(range(len(sets)), sets, fontsize=7)
            ax.set_yticks(range(len(sets)), sets, fontsize=7)
        ax.set_xlabel("selection of experts, the most frequent first", fontsize=7)
    return figure, (
        "cosine distance between the embeddings of every two selections that a HyperExpert is made "
        "from; above each, the HyperExpert's share in the length of the output."
        + left_out(hyper, MOST_PANELS)
    )


def draw_sets(
    title: str, compared: Mapping[str, Mapping[str, np.ndarray]], file: Path
) -> Picture | None:
    """Draw the use of the experts by sets of texts or tasks.

    Args:
        title: of it.
        compared: shares of the experts by set and layer.
        file: to write to.

    Returns:
        None if there is nothing to compare.
    """
    layers = list(dict.fromkeys(name for shares_of in compared.values() for name in shares_of))
    if len(compared) < 2:
        return None
    shown = some(layers, MOST_PANELS)
    figure, axes = new_panels(len(shown), 1, 0.9 + 0.22 * len(compared))
    for ax, layer in zip(axes[:, 0], shown, strict=True):
        rows = {name: found[layer] for name, found in compared.items() if layer in found}
        most = max(map(len, rows.values()))
        values = np.full((len(rows), most), np.nan)
        for place, share_E in enumerate(rows.values()):
            values[place, : len(share_E)] = 100 * share_E
        show(ax, values, "share of\nchoices, %", vmin=0)
        ax.set_yticks(range(len(rows)), [shorten(name) for name in rows], fontsize=7)
        number(ax, range(most))
        ax.set_title(layer, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("expert", fontsize=8)
    caption = "share of the choices of each expert (column) on each set (row)."
    return save(figure, title, caption + left_out(layers, MOST_PANELS), file)


def shorten(name: str, most: int = LONGEST) -> str:
    """Cut the middle out of a name of the user's, so that it leaves room for the picture."""
    name = clear(name)
    half = most // 2 - 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


KINDS: Mapping[str, Callable[[Subject], tuple[Any, str] | None]] = {
    "load": draw_load,
    "classes": draw_classes,
    "information": draw_information,
    "likeness": draw_likeness,
    "activation": draw_activation,
    "change": draw_change,
    "beside": draw_beside,
}
