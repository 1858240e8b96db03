"""Read the words of the command line with Hydra's own parsers."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from moe_runner.options.errors import join, nearest_keys
from moe_runner.options.settings import option_keys, refuse_targets

LIMIT = 64  # combinations of a sweep that are composed here; each job validates itself anyway


@dataclass
class Given:
    """The overrides that can be composed, each with every value of its sweep."""

    choices: dict[str, list[str]] = field(default_factory=dict)  # group -> options
    values: dict[str, list[Any]] = field(default_factory=dict)  # dotted key -> values
    stand_ins: list[str] = field(default_factory=list)  # "model=gpt2" in place of a wrong choice
    is_whole: bool = True  # no values come from elsewhere: hydra.sweeper.params

    def without(self, overrides: Sequence[Override]) -> Given:
        """Leave out the values of some overrides, and all but the first of the choices."""
        keys = {override.key_or_group for override in overrides}
        values = {key: values for key, values in self.values.items() if key not in keys}
        choices = {group: each[:1] for group, each in self.choices.items()}
        return Given(choices, values, self.stand_ins, self.is_whole)


def refuse(message: str) -> NoReturn:
    """Raise what argparse says of the arguments."""
    raise argparse.ArgumentError(None, message)


def read_flags(argv: Sequence[str], problems: list[str]) -> argparse.Namespace | None:
    """Separate Hydra's flags from the overrides.

    Args:
        argv: the arguments.
        problems: unknown and misplaced arguments are appended.

    Returns:
        Hydra's flags, with all `overrides`; None if a flag is used wrongly.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    parser.error = refuse  # type: ignore[method-assign]  # else it ends the process: --=null
    try:
        flags, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        problems.append(f"{error}; see moe-run --hydra-help")
        return None
    for word in unknown:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            near = [f"{key}=<value>" for key in nearest_keys(name, option_keys())]
            hint = f"did you mean {join(near)}?" if near else "see moe-run --hydra-help"
            problems.append(f"{word} is not a flag; {hint}")
        else:
            problems.append(f"{word} comes after a flag that follows other options; put flags last")
            flags.overrides.append(word)
    return flags


def read_overrides(words: Sequence[str], problems: list[str]) -> list[Override]:
    """Parse `key=value` words and refuse what no config of ours allows.

    Args:
        words: the arguments that are no flags.
        problems: one line per word that can't be read or is refused is appended.

    Returns:
        The other overrides, Hydra's own left out.
    """
    parser = OverridesParser.create()
    overrides = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            problems.append(
                f"{word} cannot be read; use key=value, and quote special characters: \"key='a b'\""
                if "=" in word
                else f"{word} has no value; use key=value"
            )
            continue
        key = override.key_or_group
        if override.is_hydra_override():
            continue
        if override.is_delete():
            problems.append(f"{word} is refused: no option can be deleted; give another value")
        elif override.package is not None:
            problems.append(f"{word} is refused: an option cannot be moved; use {key}=<value>")
        elif "_target_" in key.split("."):
            problems.append(f"{word} is refused; components are chosen by name")
        elif isinstance(value := override.value(), dict) and (found := refused(key, value)):
            problems += found
        else:
            overrides.append(override)
    return overrides


def refused(key: str, value: Mapping[str, Any]) -> list[str]:
    """Find `_target_` in a value such as `{_target_: os.system}`."""
    problems: list[str] = []
    refuse_targets(value, f"{key}.", problems)
    return problems


def values_of(override: Override) -> Iterator[Any]:
    """Give every value of an override, as Hydra gives it to a job; none of an endless sweep."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_discrete_sweep() and not isinstance(override.value(), Glob):
        parser, key = OverridesParser.create(), override.key_or_group
        for text in itertools.islice(override.sweep_string_iterator(), LIMIT):
            yield parser.parse_override(f"{key}={text}").value()
