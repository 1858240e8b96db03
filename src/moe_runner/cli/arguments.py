"""Check the command line before Hydra does: every mistake at once, one line each, without torch.

Hydra stops at the first mistake, and accepts a misspelt key behind a `+`. So the overrides are read
with Hydra's own parser, compared with the option files and the dataclasses, then composed and
validated. Overrides of `hydra.*` and `hydra/*` are left to Hydra.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from moe_runner.cli.completion import complete_folder
from moe_runner.cli.names import beside_a_study, check_group, wrong_key, wrong_only
from moe_runner.cli.reading import Given, read_flags, read_overrides, values_of
from moe_runner.cli.values import check_values
from moe_runner.files import expanded, read_yaml, unusable
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import OptionFiles, option_file
from moe_runner.options.folders import option_folders
from moe_runner.options.settings import KIND

HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
SWEPT_BY_FILE = "hydra.sweeper.params"
OPTUNA = "hydra/sweeper=optuna"

PLACE = re.compile(r"\+*(paths\.\w+|task\.(data|ood)_dir|model\.path|hydra\.(run|sweep)\.dir)")
AT_HOME = re.compile(r"""(["']?)(~[^"',\\\[\]{}]*)\1""")  # in quotes or without
NUMBER_LIKE = re.compile(r"\d[\d_]*(?:e\d+)?", re.IGNORECASE)
NESTED = re.compile(r"""["'\\\[\]{}()]""")  # what has it is no plain list, a,b

# flags with which Hydra composes another config than ours, or none
HYDRA_ONLY = (
    "hydra_help",
    "shell_completion",
    "config_name",
    "config_path",
    "experimental_rerun",
)


def check_arguments(argv: Sequence[str]) -> list[str]:
    """Find every mistake on the command line.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        One line per problem, in the order of the arguments, then those of values; empty if all is
        well, and for flags such as `--hydra-help` and `--config-name`, which are Hydra's alone.
    """
    problems: list[str] = []
    flags = read_flags(argv, problems)
    if flags is None:
        return problems
    try:
        folders = option_folders(flags.config_dir)
    except ConfigError as error:
        return [*problems, *error.problems]
    if any(getattr(flags, name) for name in HYDRA_ONLY):
        return problems
    files = OptionFiles.find(folders)
    given = Given()
    overrides = read_overrides(flags.overrides, problems)
    for override in overrides:
        if override.key_or_group in files.options:
            check_group(override, files, given, problems)
    ours = not any(word.startswith("hydra/sweeper=") for word in flags.overrides)
    if ours:
        problems += [
            f"{override.input_line} is endless: it needs {OPTUNA}, or give some values"
            for override in overrides
            if override.is_interval_sweep()
        ]
    if "study" in given.choices:
        problems += beside_a_study(overrides, files)
    if unreadable := file_problems(files, given):
        return [*problems, *unreadable]
    try:
        kinds = {
            group: files.kinds(group, given.choices.get(group, [files.defaults[group]]))
            for group in KIND
        }
    except ConfigError as error:
        return [*problems, *error.problems]
    for override in overrides:
        if (key := override.key_or_group) in files.options:
            continue
        if key == "profile" and "study" not in given.choices:
            given_as = override.input_line
            problems.append(f"{given_as} is of a study; add study=<name>, or leave it out")
            continue
        if key.startswith("study."):
            problems += wrong_only(override, given)
        elif line := wrong_key(override, files, kinds, fits=ours):
            problems.append(line)
        else:
            given.values[key] = list(values_of(override))
    given.is_whole = not any(word.startswith(SWEPT_BY_FILE) for word in flags.overrides)
    modes = [word for word in flags.overrides if word.startswith("hydra.mode=")]
    modes += ["hydra.mode=MULTIRUN"] if flags.multirun else []
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        problems += check_values(overrides, folders, given, modes)
    problems += [
        f"{key}={place}: {reason}"
        for key, place in typed_places(flags.overrides).items()
        if key in HYDRA_FOLDERS and (reason := unusable(place)) is not None
    ]
    return list(dict.fromkeys(problems))


def as_meant(argv: Sequence[str]) -> list[str]:
    """Quote what Hydra would refuse, or read as another value than the one that was typed.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        The arguments, with the home folder in place of `~` at the start of a place, which shells
        replace at the start of a word only, and an id that looks like a number (12e4...) as a text.
    """
    return [quoted(word) for word in argv]


def quoted(word: str) -> str:
    """See `as_meant`; of the values of a sweep, a,b, each is looked at."""
    key, equals, value = word.partition("=")
    values = [value] if NESTED.search(value) else value.split(",")
    if key == "evaluate":
        values = [f"'{each}'" if NUMBER_LIKE.fullmatch(each) else each for each in values]
    elif PLACE.fullmatch(key):
        values = [at_home(each) for each in values]
    return key + equals + ",".join(values)


def at_home(value: str) -> str:
    """Replace a `~` at the start of a place."""
    if found := AT_HOME.fullmatch(value):
        place = str(expanded(found[2])).replace("'", r"\'")
        return f"'{place}'"
    return value


def file_problems(files: OptionFiles, given: Given) -> list[str]:
    """Say which of the chosen option files are not YAML, or no mapping: Hydra shows its frames."""
    problems: list[str] = []
    for group, choices in given.choices.items():
        for choice in choices:
            if choice in files.options[group]:
                try:
                    read_yaml(option_file(files.folders, group, choice))
                except ConfigError as error:
                    problems += error.problems
    return problems


def for_hydra(argv: Sequence[str]) -> list[str]:
    """Write checked arguments as Hydra wants them.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        The arguments.
    """
    return own_folder(add_of_kinds(add_only(complete_search(complete_folder(argv)))))


def typed_places(words: Sequence[str]) -> dict[str, Path]:
    """Read the folders that are typed for Hydra's log and for all output, without their quotes.

    Args:
        words: arguments.

    Returns:
        Key -> folder; those that refer to other options are left out.
    """
    parser = OverridesParser.create()
    found = {}
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key in (*HYDRA_FOLDERS, "paths.output") and "$" not in word:
            with suppress(HydraException):
                found[key] = Path(str(parser.parse_override(word).value()))
    return found


def own_folder(argv: Sequence[str]) -> list[str]:
    """Give Hydra a folder that is thrown away where nothing is run, or `paths.output` is closed.

    It makes its folder in any case, for its log.

    Args:
        argv: the arguments, without the program's name.
    """
    given = dict(word.lstrip("+").partition("=")[::2] for word in argv)
    output = typed_places(argv).get("paths.output", Path("outputs"))
    dry = given.get("dry_run", "").lower() in ("true", "yes", "on", "y")
    if not given.keys().isdisjoint(HYDRA_FOLDERS):
        return list(argv)
    if not dry and unusable(output / "hydra") is None:
        return list(argv)
    folder = tempfile.mkdtemp(prefix="moe-run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = [not word.startswith("-") and "=" in word for word in argv]
    place = words.index(True) if True in words else len(argv)  # beside the others: argparse
    return [*argv[:place], *(f"{key}={folder}" for key in HYDRA_FOLDERS), *argv[place:]]


def add_only(argv: Sequence[str]) -> list[str]:
    """Write `study.only.method=emoe` as Hydra wants a key that no option file has: with `++`."""
    return [f"++{word}" if word.startswith("study.only.") else word for word in argv]


def add_of_kinds(argv: Sequence[str]) -> list[str]:
    """Write options of swept methods and suites with `++`: those of the default lack some of them.

    Hydra puts what is not swept into the config of the default before it makes the jobs.
    """
    if not {"-m", "--multirun"} & set(argv):
        return list(argv)
    heads = tuple(f"{group}." for group in KIND)
    return [f"++{word}" if word.startswith(heads) else word for word in argv]


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
