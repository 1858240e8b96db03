"""Read from a module's code what it computes between its projections.

The modules of a block say that there is a feed-forward network, but not in which order they are
called, which half of a fused projection is the gate, or where a functional dropout sits. The code
does: `forward` (or a helper of it) is interpreted on symbols, one statement after the other, and
conditions that only concern the module's own settings are decided.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from moe_runner.backbones.interpreter import (
    Activated,
    Dropped,
    Half,
    Interpreter,
    Product,
    Projected,
    Symbol,
    code_of,
    in_sequence,
    methods_of,
)


@dataclass(frozen=True)
class Reading:
    """A feed-forward network in a module's code.

    Args:
        key: name of the first projection (gated: the gate).
        value: name of the second.
        activation: between them.
        up: name of the up projection.
        fused: the first projection holds the gate's rows, then the up projection's.
        act: module or attribute of the activation; "" for a function named in the code.
        drop: the dropout of the neurons.
        dropped_again: the output passes the same dropout module.
        whole: the code is `forward`, takes the network's input alone and returns its output.
        touched: the code reads attributes of a projection, such as its weight.
    """

    key: str
    value: str
    activation: Callable[[Tensor], Tensor]
    up: str | None = None
    fused: bool = False
    act: str = ""
    drop: Dropped | None = None
    dropped_again: bool = False
    whole: bool = False
    touched: bool = False


@dataclass(frozen=True)
class Refusal:
    """What looks like a feed-forward network and cannot be converted.

    Args:
        reason: what its code does besides.
    """

    reason: str


def read_code(owner: nn.Module) -> list[Reading | Refusal]:
    """Find the feed-forward networks whose projections are children of a module.

    Args:
        owner: any module; of a `Sequential` the children are called one after the other.

    Returns:
        What is found, in the order of the code; nothing if no function calls two projections with
        an elementwise function somewhere between.
    """
    if isinstance(owner, nn.Sequential):
        return readings(owner, in_sequence(owner), whole_forward=True)
    found: list[Reading | Refusal] = []
    for name in methods_of(type(owner)):
        run = Interpreter(owner)
        run.function(name)
        found += readings(owner, run, whole_forward=name == "forward")
    return found


def reads_through(owner: nn.Module) -> tuple[str, Activated] | None:
    """Read the first part of a split network: one projection, then the activation, returned.

    Returns:
        The projection's name and the activation; None if `forward` does anything else.
    """
    run = Interpreter(owner)
    run.function("forward")
    match run.returned:
        case [Activated(parts=(Projected() as first,)) as last] if not first.parts[0].name:
            return first.name, last
    return None


def projects_its_argument(owner: nn.Module) -> str | None:
    """Name the projection that a module's `forward` puts its first argument through."""
    run = Interpreter(owner)
    run.function("forward")
    for projected in run.projected:
        if projected.parts[0] is run.first:
            return projected.name
    return None


def readings(owner: nn.Module, run: Interpreter, *, whole_forward: bool) -> list[Reading | Refusal]:
    """Match the inputs of the projections with the forms of a feed-forward network."""
    found: list[Reading | Refusal] = []
    for last in run.projected:
        inner = last.parts[0]
        drop = inner if isinstance(inner, Dropped) else None
        if drop is not None:
            inner = drop.parts[0]
        read: Reading | None = None
        match inner:
            case Activated(parts=(Projected() as first,)):
                read = Reading(first.name, last.name, inner.function, act=inner.name)
            case Product(parts=(a, b)):
                act, other = (a, b) if isinstance(a, Activated) else (b, a)
                read = gated(act, other, last.name)
        if read is None:
            if reason := why_not(last):
                found.append(Refusal(reason))
            continue
        outer = [d for d in run.dropped if d.parts[0] is last]
        again = drop is not None and drop.module and any(d.name == drop.name for d in outer)
        first = next(p for p in run.projected if p.name == read.key)
        whole = whole_forward and run.alone and run.returned == [last]
        found.append(
            replace(
                read,
                drop=drop,
                dropped_again=again,
                whole=whole and first.parts[0] is run.first,
                touched=bool(run.touched & {read.key, last.name}),
            )
        )
    return found


def gated(act: Symbol, other: Symbol, value: str) -> Reading | None:
    """Match a product: the gate through the activation, times the up projection."""
    match act, other:
        case Activated(parts=(Projected() as gate,)), Projected():
            if gate.parts[0] is other.parts[0]:
                return Reading(gate.name, value, act.function, up=other.name, act=act.name)
        case Activated(parts=(Half(parts=(whole,), index=0),)), Half(parts=(same,), index=1):
            if whole is same and isinstance(whole, Projected):
                return Reading(whole.name, value, act.function, fused=True, act=act.name)
    return None


def why_not(last: Projected) -> str | None:
    """Say what stands between two projections that no form has; None if it is no such network."""
    between, seen, others = list(last.parts), set(), []
    while between:
        symbol = between.pop()
        if symbol in seen:
            continue
        seen.add(symbol)
        if type(symbol) is Symbol and symbol.name and symbol.name not in others:
            others.append(symbol.name)
        if not isinstance(symbol, Projected):
            between += symbol.parts
    if not all(any(isinstance(s, kind) for s in seen) for kind in (Activated, Projected)):
        return None
    if not others:
        return "combines its projections in another way than a feed-forward network"
    return f"computes {', '.join(others)} between its projections"


def count_uses(owner: nn.Module) -> Counter[str]:
    """Count how often the functions of a module's class name each attribute of `self`."""
    kind = type(owner)
    codes = [code_of(inspect.unwrap(getattr(kind, name))) for name in methods_of(kind)]
    nodes = [node for code in codes if code is not None for node in ast.walk(code)]
    return Counter(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
