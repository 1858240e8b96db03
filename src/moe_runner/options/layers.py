"""Which layers of a stack are meant by a rule."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_runner.options.errors import show
from moe_runner.options.model import Model
from moe_runner.registry import FAMILIES


def layer_problems(key: str, rule: str | Sequence[int], model: Model) -> list[str]:
    """Check a layer rule against the number of layers; a Switch has its own count of FFN sites."""
    family = FAMILIES[model.family]
    if family.sparse_every:
        return []
    try:
        chosen = select_layers(rule, model.num_layers)
    except ValueError as error:
        return [f"{key}={error} (model={model.name} has {model.num_layers} layers)"]
    if family.shares_layers and len(chosen) < model.num_layers:
        return [
            f"{key}={show(rule)} names {len(chosen)} of {model.num_layers} layers of "
            f"model={model.name}, which share one FFN; use {key}=all"
        ]
    return []


def select_layers(rule: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Choose which layers of a stack are converted.

    Args:
        rule: a list of 0-based indices, or `all`, `last:n` (the last n), `last-even:n` (the last n
            with an even 0-based index: the EMoE paper's choice; for 12 layers and n = 2: 8, 10).
        num_layers: layers of the stack.

    Returns:
        Ascending 0-based indices.

    Raises:
        ValueError: for an unknown rule or an index that does not exist; names the value.
    """
    if isinstance(rule, str):
        match = re.fullmatch(r"(last|last-even):([1-9]\d*)", rule)
        if rule != "all" and match is None:
            raise ValueError(f"{rule} is not a rule; use [8,10], all, last:<n> or last-even:<n>")
        kind, count = ("last", num_layers) if match is None else (match[1], int(match[2]))
        candidates = range(0, num_layers, 2 if kind == "last-even" else 1)
        if count > len(candidates):
            most = f"{kind}:{len(candidates)}"
            raise ValueError(f"{rule} asks for more layers than there are; use at most {most}")
        return tuple(candidates[len(candidates) - count :])
    chosen = sorted(set(rule))
    outside = [index for index in chosen if not 0 <= index < num_layers]
    if outside or not chosen:
        raise ValueError(f"{show(rule)} names layers that do not exist; use 0 to {num_layers - 1}")
    return tuple(chosen)
