"""The tables of an analysis. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from moe_runner.analysis.numbers import (
    Information,
    between,
    change,
    cosines,
    distinctive,
    entropy,
    evenness,
    held,
    information,
    joint_counts,
    shares,
)
from moe_runner.analysis.records import Layer, Subject
from moe_runner.analysis.words import CLASSES, join_tokens
from moe_runner.report.sheet import Entry, Sheet

UNKNOWN = "n/a"
TOP_TOKENS = 5
TOP_EXPERTS = 8  # of a layer, in the short table
MOST_TIES = 0.5  # of the tokens; beyond, a selection says nothing
HEURISTIC = "Classes go by the letters of a token alone: a heuristic, no grammar."


def subject_sheets(subject: Subject) -> dict[str, Sheet]:
    """Lay out what was found of one model, by the name that files have."""
    found = {"layers": layer_sheet(subject), "information": information_sheet(subject)}
    if any(layer.energy is not None for layer in subject.layers):
        found["activation"] = activation_sheet(subject)
    if any(layer.norms is not None for layer in subject.layers):
        found["beside"] = beside_sheet(subject)
    found["experts"] = expert_sheet(subject)
    return found


def sheet(
    title: str, header: str, rows: Sequence[Sequence[str]], caption: str, words: int = 1
) -> Sheet:
    """Make a table of texts; names of the columns are separated by |; `words` see `Sheet`."""
    return Sheet(
        title=title,
        header=tuple(header.split("|")),
        rows=tuple(tuple(Entry(text) for text in row) for row in rows),
        caption=caption,
        words=words,
    )


def percent(fraction: float | None) -> str:
    """Write a fraction in percent; n/a where there is none."""
    return UNKNOWN if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def layer_sheet(subject: Subject) -> Sheet:
    """Sum up each layer: load, change by tuning, likeness of the experts."""
    before = {layer.name: layer for layer in subject.before}
    rows, tied = [], False
    for layer in subject.layers:
        changed: tuple[float | None, float | None] = (None, None)
        if layer.name in before:
            changed = change(before[layer.name].chosen, layer.chosen)
            tied |= before[layer.name].tied > MOST_TIES
        share_E = shares(layer.chosen)
        rows.append(
            [
                layer.name,
                f"{layer.selected} of {layer.num_experts}",
                f"{evenness(share_E):.3f}",
                percent(share_E.max()),
                *map(percent, changed),
                *(mean(between(square)) for square in (layer.keys, layer.outputs)),
            ]
        )
    lines = [
        "even: entropy of the load by its maximum, 1 is even. most: share of the busiest expert, "
        "%. changed: choices that tuning changed, %; chance: if they had only their loads in "
        "common. keys, outputs: mean cosine between two experts."
    ]
    if any(not layer.split for layer in subject.layers):
        lines.append(
            "Experts are whole networks: their keys are compared neuron by neuron, as copies of "
            "one network can be."
        )
    if tied:
        lines.append(
            "Before tuning most choices were between equal scores (the router starts at zero): "
            "what changed says nothing."
        )
    header = "layer|selected|even|most|changed|chance|keys|outputs"
    tokens = len(subject.layers[0].chosen)
    title = f"{subject.title}: layers, on {tokens:,} tokens of {next(iter(subject.sets))}"
    return sheet(title, header, rows, " ".join(lines))


def mean(values: np.ndarray) -> str:
    """Write an average; n/a of nothing (a single expert)."""
    return f"{values.mean():.3f}" if len(values) else UNKNOWN


def known_values(subject: Subject, layer: Layer) -> dict[str, Information]:
    """Measure what is known of the tokens that tells of their experts, by its name."""
    tokens, found = layer.tokens, {}
    if tokens.identity is not None:
        found["token"] = information(layer.chosen, tokens.identity)
        if subject.kinds:
            kind_T = np.array(subject.kinds, dtype=np.int64)[tokens.identity]
            found["class"] = information(layer.chosen, kind_T)
    found["position"] = information(layer.chosen, tokens.position)
    if tokens.label is not None:
        found["label"] = information(layer.chosen, tokens.label, tokens.example)
    return found


def information_sheet(subject: Subject) -> Sheet:
    """Tell what of a token decides on its experts."""
    rows = []
    for layer in subject.layers:
        for name, of in known_values(subject, layer).items():
            rows.append(
                [
                    layer.name,
                    name,
                    f"{of.nmi:.3f}",
                    f"{of.nmi_by_chance:.3f}",
                    percent(of.explained),
                    percent(of.explained_by_chance),
                ]
            )
    missing = [
        f"no {name}"
        for name, absent in (
            ("tokens (pictures)", subject.layers[0].tokens.identity is None),
            ("label (none, or no class)", subject.layers[0].tokens.label is None),
        )
        if absent
    ]
    lines = [
        "nmi: normalised mutual information of choice and value, below 1 if several experts are "
        "selected. explained: share of the uncertainty, whether a token goes to an expert, that "
        "the value takes away, %. chance: the same with shuffled values.",
        *([HEURISTIC] if subject.kinds else []),
    ]
    if missing:
        lines.append(f"Not there: {', '.join(missing)}.")
    return sheet(
        f"{subject.title}: what tells the expert",
        "layer|known|nmi|chance|explained|chance",
        rows,
        " ".join(lines),
        words=2,
    )


def activation_sheet(subject: Subject) -> Sheet:
    """Tell how much of the dense activation the selected experts hold."""
    before = {layer.name: layer for layer in subject.before}
    rows = []
    for layer in subject.layers:
        if layer.energy is None:
            continue
        selected, best = held(layer.energy, layer.chosen)
        earlier = before.get(layer.name)
        was = None
        if earlier is not None and earlier.energy is not None:
            was = held(earlier.energy, earlier.chosen)[0]
        rows.append(
            [
                layer.name,
                f"{layer.selected} of {layer.num_experts}",
                percent(selected),
                percent(was),
                percent(layer.selected / layer.num_experts),
                percent(layer.random_groups),
                percent(best),
            ]
        )
    return sheet(
        f"{subject.title}: share of the dense activation, %",
        "layer|experts|selected|before|any|random groups|best",
        rows,
        "Squared length of the hidden activation, mean over the tokens. before: of tuning. any: "
        "that many experts drawn at random. random groups: neurons grouped at random, the same "
        "router. best: the experts that hold most of it.",
    )


def beside_sheet(subject: Subject) -> Sheet:
    """Tell what stands beside the experts, and how far selections lie apart."""
    rows = []
    for layer in subject.layers:
        if layer.norms is None:
            continue
        own, other = layer.norms
        distances = [UNKNOWN, UNKNOWN]
        if layer.embeddings is not None and len(layer.embeddings) > 1:
            apart = 1 - between(cosines(layer.embeddings))
            distances = [f"{apart.mean():.3f}", f"{apart.max():.3f}"]
        total = own + other
        rows.append(
            [
                layer.name,
                layer.beside,
                f"{own:.3g}",
                f"{other:.3g}",
                percent(other / total if total else None),
                UNKNOWN if layer.selections is None else str(len(layer.selections)),
                *distances,
            ]
        )
    return sheet(
        f"{subject.title}: beside the experts",
        "layer|what|experts|beside|share|sets|apart|most",
        rows,
        "experts, beside: mean length of their output per token; share: of the second in the sum "
        "of both, %. sets: selections that occur (at most 32 are compared); apart, most: mean and "
        "largest cosine distance of their embeddings.",
        words=2,
    )


def expert_sheet(subject: Subject, most: int | None = TOP_EXPERTS) -> Sheet:
    """Tell what each expert takes.

    Args:
        subject: the model.
        most: experts of a layer, those with most tokens; None: all.
    """
    rows = []
    for layer in subject.layers:
        share_E = shares(layer.chosen)
        order = np.argsort(-share_E, kind="stable")[:most]
        identity = layer.tokens.identity
        if identity is None:
            rows += [
                [layer.name, str(e), percent(share_E[e]), UNKNOWN, UNKNOWN, UNKNOWN] for e in order
            ]
            continue
        values_V, counts_VE = joint_counts(layer.chosen, identity)
        kind_T = np.array(subject.kinds, dtype=np.int64)[identity]
        kinds_C, counts_CE = joint_counts(layer.chosen, kind_T)
        of_all = float(entropy(counts_VE.sum(1)))
        for e in order:
            tokens = [
                subject.vocabulary[values_V[v]] for v in distinctive(counts_VE, e, TOP_TOKENS)
            ]
            kind = [CLASSES[kinds_C[c]] for c in distinctive(counts_CE, e, 1)]
            spread = float(entropy(counts_VE[:, e])) / of_all if of_all and share_E[e] else None
            rows.append(
                [
                    layer.name,
                    str(e),
                    percent(share_E[e]),
                    UNKNOWN if spread is None else f"{spread:.2f}",
                    kind[0] if kind else UNKNOWN,
                    join_tokens(tokens) or UNKNOWN,
                ]
            )
    caption = "share: of the layer's choices, %."
    if subject.kinds:
        caption += (
            " entropy: of its tokens, by that of all tokens; 0 is a single token. class, tokens: "
            f"what it takes most beyond its share. {HEURISTIC}"
        )
    if most is not None and any(layer.num_experts > most for layer in subject.layers):
        caption += f" The {most} busiest of each layer; all are in the csv file."
    return sheet(
        f"{subject.title}: experts", "layer|expert|share|entropy|class|tokens", rows, caption
    )


def compared_sets(subjects: Sequence[Subject]) -> dict[str, dict[str, np.ndarray]]:
    """Collect each set's shares of the experts, by set and layer, for a comparison.

    Args:
        subjects: of several the main sets are taken; of one all of its sets.
    """
    found: dict[str, list[Layer]] = {}
    if len(subjects) == 1:
        found = dict(subjects[0].sets)
    else:
        titles = distinct([subject.title for subject in subjects])
        for subject, title in zip(subjects, titles, strict=True):
            unique = titles.count(title) == 1
            found[title if unique else f"{title} ({subject.name[:8]})"] = subject.layers
    return {
        name: {layer.name: shares(layer.chosen) for layer in layers}
        for name, layers in found.items()
    }


def distinct(titles: Sequence[str]) -> list[str]:
    """Leave out the words that all titles have at the same place."""
    words = [title.split() for title in titles]
    longest = max(map(len, words))
    words = [[*each, *[""] * (longest - len(each))] for each in words]
    differ = [len(set(column)) > 1 for column in zip(*words, strict=True)]
    kept = [" ".join(w for w, d in zip(each, differ, strict=True) if d and w) for each in words]
    return [short or title for short, title in zip(kept, titles, strict=True)]


def sets_sheet(title: str, compared: Mapping[str, Mapping[str, np.ndarray]]) -> Sheet:
    """Compare the use of the experts between sets of texts or tasks."""
    names = list(compared)
    first = compared[names[0]]
    rows = []
    for name in names:
        for layer, share_E in compared[name].items():
            same = layer in first and len(first[layer]) == len(share_E)
            likeness = cosines(np.stack([share_E, first[layer]]))[0, 1] if same else math.nan
            busiest = np.argsort(-share_E, kind="stable")[:TOP_TOKENS]
            rows.append(
                [
                    name,
                    layer,
                    UNKNOWN if math.isnan(likeness) else f"{likeness:.3f}",
                    " ".join(map(str, busiest)),
                ]
            )
    return sheet(
        title,
        "set|layer|cosine|busiest experts",
        rows,
        f"cosine: of the experts' shares with those of {names[0]}, 1 is the same use. Experts of "
        "two runs have the same number only where both split the same weights in the same way; "
        "copies are numbered anew by every tuning.",
        words=2,
    )
