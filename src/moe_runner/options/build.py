"""From a tree of plain values to a frozen dataclass, or a list of all that is wrong with it."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from moe_runner.options.errors import join, show, unknown_key
from moe_runner.options.fields import Range

T = TypeVar("T")

MISSING = "???"  # what a config says where the user must give a value


def field_names(cls: type) -> list[str]:
    """List the option names of a dataclass, without what the user chooses by the group."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("name", "suite")]


def build(
    cls: type[T],
    tree: Mapping[str, Any],
    where: str,
    problems: list[str],
    *,
    kind: str = "",
    keys: Sequence[str] = (),
) -> T | None:
    """Turn a mapping into a frozen dataclass and say all that is wrong with it.

    Args:
        cls: the dataclass.
        tree: keys and plain values.
        where: the tree's place in the config, for messages ("method").
        problems: every problem found is appended, one line each.
        kind: what chose the dataclass, for messages ("emoe").
        keys: dotted keys that an unknown one may have meant; empty: those of the dataclass.

    Returns:
        The dataclass, or None if a key or a type is wrong.
    """
    wrong: list[str] = []
    hints = get_type_hints(cls, include_extras=True)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key, given = f"{where}.{name}", f"{where}.{name}={show(value)}"
        if name not in names:
            of = f" of {where}={kind}" if kind else f" of {where}"
            meant = keys or [f"{where}.{each}" for each in field_names(cls)]
            wrong.append(unknown_key(given, key, of, meant))
        elif value == MISSING:
            wrong.append(f"{key} is missing; give {key}=<value>")
        else:
            try:
                values[name] = convert_value(value, hints[name])
            except TypeError as error:
                wrong.append(f"{given} is not valid; use {error}")
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        absent = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if absent and f.name not in tree:
            wrong.append(f"{where}.{f.name} is missing; give {where}.{f.name}=<value>")
    problems += wrong
    for name, value in values.items():
        problems += range_problems(f"{where}.{name}", value, hints[name])
    return None if wrong else cls(**values)


def convert_value(value: Any, hint: Any) -> Any:
    """Check a plain value against a type hint; lists become tuples, whole numbers fit a float.

    Args:
        value: what the config holds.
        hint: int, float, bool, str, None, Literal, tuple[X, ...], Mapping[str, X], a union, or
            one of these with a range, which is not looked at: see `range_problems`.

    Returns:
        The value in the hint's type.

    Raises:
        TypeError: with the text of what is allowed.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return convert_value(value, get_args(hint)[0])
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return convert_value(value, option)
            except TypeError:
                continue
        raise TypeError(describe(hint))
    if origin is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        raise TypeError(describe(hint))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(describe(hint))
        try:
            return tuple(convert_value(item, get_args(hint)[0]) for item in value)
        except TypeError:
            raise TypeError(describe(hint)) from None
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise TypeError(describe(hint))
        return {str(key): convert_value(item, get_args(hint)[1]) for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise TypeError(describe(hint))
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is type(None) and value is None:
        return None
    raise TypeError(describe(hint))


def range_problems(key: str, value: Any, hint: Any) -> list[str]:
    """Find what is twice in a list, and numbers of an option that are outside their range.

    Args:
        key: of the option, for messages.
        value: of the hint's type.
        hint: the field's, with its `Range`s.

    Returns:
        One line per number that is wrong.
    """
    given = f"{key}={show(value)}"
    if isinstance(value, tuple):
        if twice := [item for item in value if value.count(item) > 1][:1]:
            return [f"{given} has {show(twice[0])} twice; leave one out"]
        found = [(show(item), outside(item, hint)) for item in value]
        return [f"{given} has {item}, which {text}" for item, texts in found for text in texts]
    return [f"{given} {text}" for text in outside(value, hint)]


def outside(value: Any, hint: Any) -> list[str]:
    """Say which range of a hint a value is outside of, if it is a number; the first is enough."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if get_origin(hint) is Annotated:
        ranges = [each for each in get_args(hint)[1:] if isinstance(each, Range)]
        return [each.otherwise for each in ranges if not each.holds(value)][:1]
    return [text for inner in get_args(hint) for text in outside(value, inner)][:1]


def describe(hint: Any) -> str:
    """Say in words which values a type hint allows."""
    if get_origin(hint) is Annotated:
        return describe(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return join([describe(option) for option in get_args(hint)])
    if get_origin(hint) is Literal:
        return join([str(option) for option in get_args(hint)])
    if get_origin(hint) is tuple:
        items = {int: "whole numbers [1,2]", float: "numbers [0.1,0.2]", str: "names [a,b]"}
        element = get_args(hint)[0]
        return f"a list of {items[get_args(element)[0] if get_origin(element) else element]}"
    if get_origin(hint) is Mapping:
        return "a mapping {name: value}"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text (in quotes if it looks like a number)",
        type(None): "null",
    }[hint]
