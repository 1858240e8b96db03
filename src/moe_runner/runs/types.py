"""Compare what was read from a file with the types that a dataclass says."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
SHOWN = 40  # letters of a wrong value


def mismatch(value: Any, hint: Any, where: str) -> str | None:
    """Say where a value, or something in it, is not of the type it should be.

    Args:
        value: of whatever type.
        hint: `Any`, str, int, float, bool, None, a dataclass, a NamedTuple; Literal, unions,
            Mapping[str, ...] and tuple[..., ...] of such. An int is a float too, if it is not
            larger than any of them; a bool is neither.
        where: its name, for the answer: "learning_curve[3].step".

    Returns:
        "best_epoch is 'x', not a number"; None if all is well.
    """
    if checker(hint)(value):  # nearly always: words are only made for what is wrong
        return None
    origin = get_origin(hint)
    if hint is Any:
        return None
    if origin in (Union, UnionType):
        found = [mismatch(value, each, where) for each in get_args(hint)]
        return None if None in found else found[0]
    if origin is Literal:
        allowed = get_args(hint)
        right = isinstance(value, str) and value in allowed
        return None if right else wrong(value, where, f"one of {', '.join(map(str, allowed))}")
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return wrong(value, where, "an object")
        of = get_args(hint)[1]
        return first(mismatch(item, of, f"{where}.{key}") for key, item in value.items())
    if origin is tuple:
        if not isinstance(value, tuple):
            return wrong(value, where, "a list")
        of = get_args(hint)[0]
        return first(mismatch(item, of, f"{where}[{i}]") for i, item in enumerate(value))
    if hint in (None, NoneType):
        return None if value is None else wrong(value, where, "null")
    if hint in NAMES:
        kinds = (int, float) if hint is float else hint
        right = isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)
        return None if right and fits(value) else wrong(value, where, NAMES[hint])
    if not isinstance(value, hint):
        return wrong(value, where, f"a {hint.__name__}")
    prefix = f"{where}." if where else ""
    return first(
        mismatch(getattr(value, name), of, f"{prefix}{name}") for name, of in hints(hint).items()
    )


@functools.cache
def checker(hint: Any) -> Callable[[Any], bool]:
    """Make what tells whether a value is of a type; `mismatch` says what is wrong with it."""
    origin, of = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin in (Union, UnionType):
        parts = [checker(each) for each in of]
        return lambda value: any(part(value) for part in parts)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in of
    if origin is not None and issubclass(origin, Mapping):
        item = checker(of[1])
        return lambda value: isinstance(value, Mapping) and all(map(item, value.values()))
    if origin is tuple:
        item = checker(of[0])
        return lambda value: isinstance(value, tuple) and all(map(item, value))
    if hint in (None, NoneType):
        return lambda value: value is None
    if hint is float:
        return lambda value: (
            type(value) is float
            or (isinstance(value, int | float) and not isinstance(value, bool) and fits(value))
        )
    if hint in NAMES:
        return lambda value: (
            isinstance(value, hint) and isinstance(value, bool) == (hint is bool) and fits(value)
        )
    fields = [(name, checker(each)) for name, each in hints(hint).items()]
    return lambda value: (
        isinstance(value, hint) and all(right(getattr(value, name)) for name, right in fields)
    )


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """List the fields of a dataclass or NamedTuple with their types."""
    known = get_type_hints(cls)
    if dataclasses.is_dataclass(cls):
        return {field.name: known[field.name] for field in dataclasses.fields(cls)}
    return known


def fits(value: Any) -> bool:
    """Tell whether a number, if it is one, is no larger than a float can be; inf and NaN are."""
    try:
        math.isnan(value) if isinstance(value, int) else None
    except OverflowError:
        return False
    return True


def first(problems: Any) -> str | None:
    """Return the first problem, if there is one."""
    return next((problem for problem in problems if problem is not None), None)


def wrong(value: Any, where: str, what: str) -> str:
    """Word a mismatch, with the beginning of the value."""
    try:
        shown = repr(value)
    except ValueError:  # a number of thousands of digits
        shown = f"a huge {type(value).__name__}"
    return f"{where} is {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}...'}, not {what}"
