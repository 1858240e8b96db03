"""Rows and columns in words: what differs between them, and nothing else. Words are made here only.

A label ("emoe num_experts=64 top_k=16") is what pairings and `study.only` name, and never changes;
its words ("emoe, top-k 16 of 64") are what people read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_runner.metrics import lower_is_better
from moe_runner.options.errors import show
from moe_runner.runs.run import Run, digest_of

AXES: Mapping[str, str] = {
    "learning_rate": "learning rate {}", "seed": "seed {}", "protocol": "{} protocol",
}  # fmt: skip
VALUES: Mapping[str, Mapping[str, str]] = {  # by option, then by value as it is typed
    "select": {
        "top": "top-k experts", "bottom": "bottom-k experts", "not_top": "not-top-k experts",
    },
    "clustering": {"constrained_kmeans": "clustered", "random": "random groups"},
    "gate_on": {
        "gate": "average-key gate", "up": "average-up gate", "up_abs": "gate on |up|",
        "inter": "gate on activations", "inter_abs": "gate on |activations|",
    },
    "convert_at": {
        "train": "MoE in training only", "eval": "MoE in evaluation only", "both": "MoE throughout",
    },
    "shared": {"true": "one shared adapter", "false": "an adapter per expert"},
    "inside": {"true": "HyperExpert weighted", "false": "HyperExpert not weighted"},
    "aggregate": {"sum": "sum of unselected", "mean": "mean of unselected"},
    "hypernet_lr_scale": {"auto": "hypernetwork's rate automatic"},
}  # fmt: skip
TEXTS: Mapping[str, str] = {  # of any other value
    "num_experts": "{} experts", "top_k": "top-k {}", "learning_rate": "learning rate {}",
    "hypernet_lr_scale": "hypernetwork's rate x {}",
}  # fmt: skip
ONE_ANSWER = "‡"  # marks a number of constant predictions
HASHES = ("weights", "task.data")  # their first digits say that they differ, no more is known


@dataclass(frozen=True)
class Names:
    """Labels in words.

    Args:
        words: by label.
        shared: what all of them have in common, left out of each; "" if that is nothing.
    """

    words: Mapping[str, str]
    shared: str

    def __getitem__(self, label: str) -> str:
        return self.words.get(label, label)


def label(run: Run, keys: Sequence[str]) -> str:
    """Name what a run is in some keys: axes (method, model, task), or options of a group."""
    parts = []
    for key, value in values_of(run, keys).items():
        name = key if key == "weights" else key.partition(".")[2]
        parts.append(f"{name}={show(value)}" if name else str(value))
    return " ".join(parts)


def values_of(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Read some keys of a run; what it does not have, or is null (the usual), is left out."""
    axes = run.axes()
    if run.form == "domain_generalisation":
        axes["task"] = axes["task"].partition("/")[0]  # the data set
    found = {}
    for key in keys:
        group, _, name = key.partition(".")
        if key in HASHES:
            value = run.settings()["weights"] if key == "weights" else digest_of(run.data)
        else:
            value = getattr(getattr(run, group), name, None) if name else axes[key]
        if value is not None:
            found[key] = value
    return found


def names_of(runs: Mapping[str, Run], keys: Sequence[str]) -> Names:
    """Put labels into words.

    Args:
        runs: by label, one that has it.
        keys: of `label`.
    """
    values = {name: values_of(run, keys) for name, run in runs.items()}
    experts = {name: getattr(run.method, "num_experts", None) for name, run in runs.items()}
    alike = [key for key in keys if len(values) > 1 and one_value(key, list(values.values()))]
    differing = {
        name: spoken({k: v for k, v in of.items() if k not in alike}, experts[name])
        for name, of in values.items()
    }
    if len(set(differing.values())) < len(values) or "" in differing.values():
        alike = []  # what is left does not tell them apart: everything is said
        differing = {name: spoken(of, experts[name]) for name, of in values.items()}
    common = {key: of[key] for key in alike for of in values.values() if key in of}
    return Names(differing, spoken(common, None))


def one_value(key: str, values: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a key has one value; an option may be lacking where the method has none."""
    known = [show(of[key]) for of in values if key in of]
    return len(set(known)) == 1 and ("." in key or len(known) == len(values))


def spoken(values: Mapping[str, Any], num_experts: int | None) -> str:
    """Say values in words, axes first: "emoe, top-k 16 of 64".

    Args:
        values: by axis or option.
        num_experts: of the method, said beside top_k.
    """
    options = {key: value for key, value in values.items() if "." in key or key in HASHES}
    axes = [AXES.get(k, "{}").format(shown(v)) for k, v in values.items() if k not in options]
    if "method.top_k" in options:
        of_all = options.pop("method.num_experts", num_experts)
        num_experts = of_all if isinstance(of_all, int) else None
    words = [said(key, value, num_experts) for key, value in options.items()]
    return ", ".join([part for part in (" ".join(axes), *words) if part])


def said(key: str, value: Any, num_experts: int | None = None) -> str:
    """Say one option and its value in words.

    Args:
        key: "method.top_k".
        value: of it.
        num_experts: there are, if that is known.
    """
    if key in HASHES:
        digits = show(value).rpartition(" ")[2]  # of the Hub's: the commit
        return f"{key.rpartition('.')[2]} {digits[:6]}"
    name, text = key.rpartition(".")[2], show(value)
    special: Callable[[Any], str] | None = SPECIAL.get(name)
    if special is not None and value is not None:
        return special(value)
    if name == "top_k" and num_experts:
        return f"top-k {text} of {num_experts}"
    if text in VALUES.get(name, {}):
        return VALUES[name][text]
    plain = name.replace("_", " ")
    if isinstance(value, bool):
        return plain if value else f"no {plain}"
    return TEXTS.get(name, f"{plain} {{}}").format(text)


def shown(value: Any) -> str:
    """Write the value of an axis."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def layers(value: Any) -> str:
    """Say which layers are converted: all, last:2, last-even:1, or their numbers."""
    if not isinstance(value, str):
        numbers = ", ".join(map(str, value))
        return f"layer{'s' if len(value) != 1 else ''} {numbers}"
    kind, _, count = value.partition(":")
    if kind not in ("last", "last-even") or not count.isdigit():
        return "all layers" if value == "all" else f"layers {value}"
    even = " even" if kind == "last-even" else ""
    return f"last{even} layer" if count == "1" else f"last {count}{even} layers"


def share(value: float) -> str:
    """Say how much of the training set is used."""
    return f"{100 * value:g}% of the data"


SPECIAL: Mapping[str, Callable[[Any], str]] = {"layers": layers, "train_fraction": share}


def direction(metrics: Sequence[str]) -> str:
    """Show whether more (up) or less (down) of a score is better."""
    return "↓" if lower_is_better(metrics) else "↑"


def majority_name(metrics: Sequence[Sequence[str]]) -> str:
    """Name the row of who answers without reading."""
    kinds = {"mean" if {"pearson", "spearman"} & set(of) else "majority class" for of in metrics}
    return " or ".join(sorted(kinds))
