"""Compose the values that are given, and validate them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, InterpolationResolutionError, OmegaConfBaseException

from moe_runner.cli.fitting import belongs
from moe_runner.cli.idle import idle_words
from moe_runner.cli.reading import LIMIT, Given
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import Folders
from moe_runner.options.settings import KIND, Settings, parse

NOTHING = (None, False)  # values that ask for nothing; 0 is equal to False


def parse_config(cfg: DictConfig) -> Settings:
    """Validate a composed config.

    Args:
        cfg: what Hydra composed, with or without its own node.

    Returns:
        The settings.

    Raises:
        ConfigError: with every problem, one line each.
    """
    try:
        tree = OmegaConf.to_container(without_hydra(cfg), resolve=True)
    except InterpolationResolutionError as error:
        raise ConfigError(
            f"{error.full_key} refers to something that is not there: {first_line(error)}"
        ) from None
    assert isinstance(tree, dict)
    return parse({str(key): value for key, value in tree.items()})


def check_values(
    overrides: Sequence[Override], folders: Folders, given: Given, modes: Sequence[str]
) -> list[str]:
    """Compose the combinations of a sweep (one without a sweep) and validate each.

    Hydra must be initialised.

    Args:
        overrides: all that were read.
        folders: of option files, of which Hydra is initialised with the first.
        given: what can be composed.
        modes: overrides of `hydra.mode`, which make a sweep allowed; so does an option file.

    Returns:
        One line per problem; those that come from a stand-in for a wrong choice are left out.
    """
    problems: list[str] = []
    seeds = [override.input_line for override in overrides if override.key_or_group == "seed"]
    places = ",".join(f"'file://{folder.resolve()}'" for folder in folders[1:])
    hydra = [*modes, f"hydra.searchpath=[{places}]"]
    sweeps = [override for override in overrides if override.is_sweep_override()]
    idle: list[tuple[dict[str, Any], dict[str, str]]] = []  # of each: what is typed, what is idle
    bases: dict[tuple[str, ...], DictConfig] = {}  # composing takes 0.15 s, setting a value nothing
    for choices, values in combinations(given):
        try:
            if choices not in bases:
                bases[choices] = compose("config", [*choices, *hydra], True)
            if sweeps and bases[choices].hydra.mode != RunMode.MULTIRUN:
                return refuse_sweeps(sweeps) + check_values(
                    [override for override in overrides if override not in sweeps],
                    folders,
                    given.without(sweeps),
                    modes,
                )
            cfg = without_hydra(bases[choices])
            kinds = {group: str(cfg[group][name]) for group, name in KIND.items()}
            own = {key: value for key, value in values.items() if belongs(key, kinds)}
            for key, value in own.items():
                try:
                    OmegaConf.update(cfg, key, value, merge=True)
                except ConfigTypeError:  # a mapping for a list: parse_config says what it can be
                    OmegaConf.update(cfg, key, value, merge=False)
            if seeds and cfg.search.seeds:
                problems.append(
                    f"{seeds[-1]} and search={cfg.search.name} exclude each other; give one of them"
                )
            chosen = dict(choice.split("=", 1) for choice in choices)
            typed = {key: value for key, value in (chosen | own).items() if value not in NOTHING}
            idle.append((typed, idle_words(parse_config(cfg), typed)))
        except ConfigError as error:
            problems += error.problems
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(first_line(error))
    if given.is_whole and len(idle) < LIMIT and "study" not in given.choices:
        lines = {key: line for _, found in idle for key, line in found.items()}
        problems += [  # else another combination needs the value
            line
            for key, line in lines.items()
            if all(key in found or key not in typed for typed, found in idle)
        ]
    return [line for line in problems if not any(name in line for name in given.stand_ins)]


def refuse_sweeps(sweeps: Sequence[Override]) -> list[str]:
    """Word the error for several values without `-m`."""
    return [
        f"{override.input_line} gives several values; "
        "add -m to run each of them, or write [a,b] for one list"
        for override in sweeps
    ]


def combinations(given: Given) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Give the combinations of a sweep, up to `LIMIT`, groups varying fastest.

    Args:
        given: every value of every override.

    Yields:
        The choices as Hydra's overrides, and dotted key -> value.
    """
    values = {key: each for key, each in given.values.items() if each}
    choices = [[f"{group}={option}" for option in each] for group, each in given.choices.items()]
    for combination in itertools.islice(itertools.product(*values.values(), *choices), LIMIT):
        yield combination[len(values) :], dict(zip(values, combination, strict=False))


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Copy a config, Hydra's own node and a study's left out; keys can be added to the copy."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "study")])
    OmegaConf.set_struct(copy, False)
    return copy


def first_line(error: Exception) -> str:
    """Shorten the text of Hydra's and OmegaConf's errors, which have details below."""
    return str(error).partition("\n")[0]
