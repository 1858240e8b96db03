"""Check the command line before Hydra does: every mistake at once, one line each, without torch.

Hydra stops at the first mistake, and accepts a misspelt key behind a `+`. So the overrides are read
with Hydra's own parser, compared with the option files and the dataclasses, then composed and
validated. Overrides of `hydra.*` and `hydra/*` are left to Hydra.
"""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from moe_runner.files import read_yaml
from moe_runner.options.errors import (
    ConfigError,
    join,
    nearest,
    nearest_keys,
    not_an_option,
    show,
    unknown_key,
)
from moe_runner.options.settings import GROUPS, KIND, Settings, option_keys, parse, refuse_targets
from moe_runner.sweeps.study import ONLY

LIMIT = 64  # combinations of a sweep that are composed here; each job validates itself anyway
WIDTH = 100  # of the lines of options in --help

OPTUNA = "hydra/sweeper=optuna"
BESIDE = ("study", "logger", "trainer.precision")  # of groups: what goes with a study

# flags with which Hydra composes another config than ours, or none
HYDRA_ONLY = (
    "hydra_help",
    "shell_completion",
    "config_name",
    "config_path",
    "experimental_rerun",
)


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


def check_arguments(argv: Sequence[str], conf: Path) -> list[str]:
    """Find every mistake on the command line.

    Args:
        argv: the arguments, without the program's name.
        conf: the folder of `config.yaml`. Each group is in its defaults list.

    Returns:
        One line per problem, in the order of the arguments, then those of values; empty if all is
        well, and for flags such as `--hydra-help` and `--config-name`, which are Hydra's alone.
    """
    problems: list[str] = []
    flags = read_flags(argv, problems)
    if flags is None or any(getattr(flags, name) for name in HYDRA_ONLY):
        return problems
    files = OptionFiles.find([conf, *([Path(flags.config_dir)] if flags.config_dir else [])])
    given = Given()
    overrides = read_overrides(flags.overrides, problems)
    for override in overrides:
        if override.key_or_group in files.options:
            check_group(override, files, given, problems)
    if not any(word.startswith("hydra/sweeper=") for word in flags.overrides):
        problems += [
            f"{override.input_line} is endless: it needs {OPTUNA}, or give some values"
            for override in overrides
            if override.is_interval_sweep()
        ]
    if "study" in given.choices:
        problems += beside_a_study(overrides, files)
    kinds = {
        group: files.kinds(group, given.choices.get(group, [files.defaults[group]]))
        for group in KIND
    }
    for override in overrides:
        if (key := override.key_or_group) in files.options:
            continue
        if key.startswith("study."):
            problems += wrong_only(override, given)
        elif line := wrong_key(override, files, kinds):
            problems.append(line)
        else:
            given.values[key] = list(values_of(override))
    modes = [word for word in flags.overrides if word.startswith("hydra.mode=")]
    modes += ["hydra.mode=MULTIRUN"] if flags.multirun else []
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        problems += check_values(overrides, files, given, modes)
    return list(dict.fromkeys(problems))


def add_only(argv: Sequence[str]) -> list[str]:
    """Write `study.only.method=emoe` as Hydra wants a key that no option file has: with `++`."""
    return [f"++{word}" if word.startswith("study.only.") else word for word in argv]


def complete_search(argv: Sequence[str]) -> list[str]:
    """Let Optuna look for the highest score, and for the same ones again, unless told otherwise.

    Its own defaults are the lowest score and a random seed. Hydra lets no option file of ours stand
    in for that of a plugin.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        The arguments, with direction and seed behind `hydra/sweeper=optuna`, if that is there.
    """
    if OPTUNA not in argv:
        return list(argv)
    keys = {word.lstrip("+").partition("=")[0] for word in argv}
    added = [] if "hydra.sweeper.direction" in keys else ["hydra.sweeper.direction=maximize"]
    if keys.isdisjoint({"hydra.sweeper.sampler.seed", "hydra/sweeper/sampler"}):
        added.append("hydra.sweeper.sampler.seed=0")
    place = argv.index(OPTUNA) + 1
    return [*argv[:place], *added, *argv[place:]]


# ------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class OptionFiles:
    """The groups of the defaults list and the files in their folders."""

    folders: Sequence[Path]
    defaults: Mapping[str, str | None]  # group -> option
    options: Mapping[str, list[str]]  # group -> "glue", "glue/cola", ...

    @classmethod
    def find(cls, folders: Sequence[Path]) -> OptionFiles:
        """Look for option files; the first folder has `config.yaml`."""
        entries = read_yaml(folders[0] / "config.yaml")["defaults"]
        defaults = {
            group: option
            for entry in entries
            if isinstance(entry, dict)
            for group, option in entry.items()
            if " " not in group  # override hydra/launcher, optional ...
        }
        options = {
            group: sorted(
                file.relative_to(folder / group).with_suffix("").as_posix()
                for folder in folders
                for file in (folder / group).rglob("*.yaml")
            )
            for group in defaults
        }
        return cls(folders, defaults, options)

    def kinds(self, group: str, choices: Sequence[str | None]) -> list[str]:
        """List the methods, or suites, that option files stand for, each once."""
        files = [folder / group / f"{choice}.yaml" for choice in choices for folder in self.folders]
        names = [read_yaml(file)[KIND[group]] for file in files if file.is_file()]
        return [name for name in dict.fromkeys(names) if name in GROUPS[group]]


@dataclass
class Given:
    """The overrides that can be composed, each with every value of its sweep."""

    choices: dict[str, list[str]] = field(default_factory=dict)  # group -> options
    values: dict[str, list[Any]] = field(default_factory=dict)  # dotted key -> values
    stand_ins: list[str] = field(default_factory=list)  # "model=gpt2" in place of a wrong choice

    def without(self, overrides: Sequence[Override]) -> Given:
        """Leave out the values of some overrides, and all but the first of the choices."""
        keys = {override.key_or_group for override in overrides}
        values = {key: values for key, values in self.values.items() if key not in keys}
        choices = {group: each[:1] for group, each in self.choices.items()}
        return Given(choices, values, self.stand_ins)


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


# ------------------------------------------------------------------------------- names


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
        if choice not in options and not (choice is None and default is None):
            text = show(choice)
            problems.append(not_an_option(f"{group}={text}", "", text, options))
            choice = nearest(text, options) or default
            given.stand_ins.append(f"{group}={choice}")
        composed.append("null" if choice is None else choice)
    if composed:
        given.choices[group] = composed


def wrong_key(
    override: Override, files: OptionFiles, kinds: Mapping[str, Sequence[str]]
) -> str | None:
    """Compare a key with the options of the chosen methods and suites, and of all other groups.

    Args:
        override: such as `method.top_k=8`.
        files: the groups.
        kinds: the chosen methods and suites; more than one of each in a sweep.

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
            if lacking:
                remedy = f"it belongs to {section}={','.join(owners)}"
                if len(lacking) < len(chosen_kinds):
                    rest = ",".join(lacking)
                    remedy = f"sweep the {section}s that have it, and run {rest} by itself"
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


# ------------------------------------------------------------------------------- values


def check_values(
    overrides: Sequence[Override], files: OptionFiles, given: Given, modes: Sequence[str]
) -> list[str]:
    """Compose the combinations of a sweep (one without a sweep) and validate each.

    Hydra must be initialised.

    Args:
        overrides: all that were read.
        files: the folders to compose from.
        given: what can be composed.
        modes: overrides of `hydra.mode`, which make a sweep allowed; so does an option file.

    Returns:
        One line per problem; those that come from a stand-in for a wrong choice are left out.
    """
    problems: list[str] = []
    seeds = [override.input_line for override in overrides if override.key_or_group == "seed"]
    places = ",".join(f"'file://{folder.resolve()}'" for folder in files.folders[1:])
    hydra = [*modes, f"hydra.searchpath=[{places}]"]
    sweeps = [override for override in overrides if override.is_sweep_override()]
    bases: dict[tuple[str, ...], DictConfig] = {}  # composing takes 0.15 s, setting a value nothing
    for choices, values in combinations(given):
        try:
            if choices not in bases:
                bases[choices] = compose("config", [*choices, *hydra], True)
            if sweeps and bases[choices].hydra.mode != RunMode.MULTIRUN:
                return refuse_sweeps(sweeps) + check_values(
                    [override for override in overrides if override not in sweeps],
                    files,
                    given.without(sweeps),
                    modes,
                )
            cfg = without_hydra(bases[choices])
            for key, value in values.items():
                OmegaConf.update(cfg, key, value, merge=True)
            if seeds and cfg.search.seeds:
                problems.append(
                    f"{seeds[-1]} and search={cfg.search.name} exclude each other; give one of them"
                )
            parse_config(cfg)
        except ConfigError as error:
            problems += error.problems
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(first_line(error))
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


# ------------------------------------------------------------------------------- help


def option_groups() -> str:
    """List every group with its options for `--help`, in wrapped lines.

    Hydra's own list has a line per group, however long, and takes it half a second.
    """
    sources = HydraConfig.get().runtime.config_sources
    files = OptionFiles.find([Path(each.path) for each in sources if each.schema == "file"])
    paragraphs = [
        textwrap.fill(
            f"{group}: {', '.join(options)}",
            WIDTH,
            subsequent_indent=" " * len(f"{group}: "),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for group, options in sorted(files.options.items())
    ]
    return "\n".join(paragraphs)


OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)  # of config.yaml
