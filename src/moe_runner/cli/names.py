"""Compare the names of options, files and keys with those that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override

from moe_runner.cli.reading import Given, values_of
from moe_runner.options.errors import nearest, not_an_option, show, unknown_key
from moe_runner.options.files import OptionFiles
from moe_runner.options.settings import GROUPS, option_keys
from moe_runner.sweeps.study import ONLY

BESIDE = ("study", "logger", "trainer.precision")  # of groups: what goes with a study


def check_group(override: Override, files: OptionFiles, given: Given, problems: list[str]) -> None:
    """Check the choice of an option file, or all choices of a sweep.

    Args:
        override: such as `task=glue/cola`.
        files: what can be chosen.
        given: the choices are put here, in place of a wrong one the nearest or the default.
        problems: one line per wrong choice is appended.
    """
    group, word = override.key_or_group, override.input_line or ""
    options = files.options[group]
    if override.is_add() or override.is_force_add():
        problems.append(f"{word} is refused: the group is there already; use {word.lstrip('+')}")
    pattern = override.value()
    if isinstance(pattern, Glob):  # Hydra looks into no subfolder
        choices: list[Any] = pattern.filter([option for option in options if "/" not in option])
        if not choices:
            problems.append(f"{word} matches no option; use some of {', '.join(options)}")
    else:
        choices = list(values_of(override))
    composed = []
    for choice in choices:
        default = files.defaults[group]
        if choice is None and default is None:
            problems.append(f"{word} is so without it; leave it out")
        elif choice not in options:
            text = show(choice)
            problems.append(not_an_option(f"{group}={text}", "", text, options))
            choice = nearest(text, options) or default
            given.stand_ins.append(f"{group}={choice}")
        if choice is not None:
            composed.append(choice)
    if composed:
        given.choices[group] = composed


def wrong_key(
    override: Override, files: OptionFiles, kinds: Mapping[str, Sequence[str]], *, fits: bool = True
) -> str | None:
    """Compare a key with the options of the chosen methods and suites, and of all other groups.

    Args:
        override: such as `method.top_k=8`.
        files: the groups.
        kinds: the chosen methods and suites; more than one of each in a sweep.
        fits: whether the sweeper gives an option to those that have it, see `fitting`.

    Returns:
        One line if the key is wrong, else None.
    """
    key, word = override.key_or_group, override.input_line or ""
    section, _, name = key.rpartition(".")
    value = word.partition("=")[2]
    group, slash, folder = key.partition("/")
    if slash and group in files.options:  # task/glue=cola
        option = f"{folder}/{value}"
        return not_an_option(word, "", option, files.options[group], f"{group}=")
    if section in files.options and name in ("name", "suite"):
        return f"{word} is refused; choose with {section}={value}"
    if key != "paths":  # paths={output: ...} is checked with the values
        if key not in option_keys():
            chosen = f"={','.join(kinds[section])}" if section in kinds else ""
            is_section = section in {*GROUPS, "paths"}
            keys = [*([] if is_section else files.options), *option_keys(kinds)]
            return unknown_key(word, key, f" of {section}{chosen}" if is_section else "", keys)
        if section in kinds:
            chosen_kinds = kinds[section]
            owners = [kind for kind in GROUPS[section] if key in option_keys({section: [kind]})]
            lacking = [kind for kind in chosen_kinds if kind not in owners]
            if lacking and (len(lacking) == len(chosen_kinds) or not fits):
                remedy = f"it belongs to {section}={','.join(owners)}"
                return f"{word} is not an option of {section}={','.join(lacking)}; {remedy}"
    if override.is_add():
        return f"{word} is refused: the option is there already; use {word[1:]}"
    return None


def beside_a_study(overrides: Sequence[Override], files: OptionFiles) -> list[str]:
    """Refuse what a study's grid says itself, and sweeps: the study is the sweep."""
    problems = []
    for override in overrides:
        key, word = override.key_or_group, override.input_line or ""
        section = key.partition(".")[0]
        if key == "study" and override.is_sweep_override():
            names = word.partition("=")[2]
            problems.append(f"{word} is refused; use study=all study.only.study=[{names}]")
        elif {key, section}.isdisjoint(BESIDE) and (
            section in files.options or key in ("seed", "evaluate")
        ):
            problems.append(
                f"{word} does not go with a study, whose grid says it; "
                "run the command without study=, or write a study file"
            )
        elif override.is_sweep_override() and section != "study":
            problems.append(f"{word} gives several values; beside a study give one")
    return problems


def wrong_only(override: Override, given: Given) -> list[str]:
    """Check a key of `study.only`; its values are checked with the study's runs.

    Args:
        override: such as `study.only.method=emoe`.
        given: the choices, among them the study.

    Returns:
        One line if something is wrong, else none.
    """
    key, word = override.key_or_group, override.input_line or ""
    keys = [f"study.only.{axis}" for axis in ONLY]
    if key not in keys:
        return [unknown_key(word, key, " of a study", keys)]
    if override.is_add() or override.is_force_add():
        return [f"{word} is refused: the option is there already; use {word.lstrip('+')}"]
    if "study" not in given.choices:
        return [f"{word} restricts a study, and there is none; add study=<name>"]
    if override.is_sweep_override():
        name, _, values = word.partition("=")
        return [f"{word} gives several values; write them as a list: {name}=[{values}]"]
    return []
