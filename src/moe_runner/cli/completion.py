"""Tab completion: Hydra's own, told of the user's folder, and what it leaves out of the options.

Hydra completes the files of a group, but not those in its folders (task=glue_mini/cola), nor the
second of several (method=dense,emoe).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.plugins.completion_plugin import CompletionPlugin

from moe_runner.cli.reading import read_flags
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import OptionFiles
from moe_runner.options.folders import option_folders

QUERY = "query="
JOINTS = {"fish": "\n"}  # between the words for a shell; else a space


def complete_folder(argv: Sequence[str]) -> list[str]:
    """Hand on the `--config-dir` of the line that is being typed.

    Hydra's completion takes the options and keys of that line, but not its flags.

    Args:
        argv: the arguments, without the program's name; with `-sc query=<shell>` the line is in
            COMP_LINE.

    Returns:
        The arguments, with the folder behind them if it is there.
    """
    asking = read_flags(argv, [])
    if asking is None or not asking.shell_completion:
        return list(argv)
    if (folder := typed_folder()) is None:
        return list(argv)
    return [*argv, "--config-dir", str(folder)]


def typed_folder() -> Path | None:
    """Find the `--config-dir` of the line that is being typed, if it is there."""
    typed = read_flags(os.environ.get("COMP_LINE", "").split(), [])
    if typed is None or not typed.config_dir or not Path(typed.config_dir).is_dir():
        return None
    return Path(typed.config_dir)


def completed(argv: Sequence[str]) -> str | None:
    """Complete the choice of an option, for a shell that asks.

    Args:
        argv: the arguments, without the program's name; see `complete_folder`.

    Returns:
        The words that the last one may become; None if something else is asked for, or another
        kind of word is typed, which Hydra completes.
    """
    asking = read_flags(argv, [])
    if asking is None or not asking.shell_completion:
        return None
    query = next((word for word in asking.overrides if word.startswith(QUERY)), None)
    if query is None:
        return None
    line = CompletionPlugin.strip_python_or_app_name(os.environ.get("COMP_LINE", ""))
    words = line.split(" ")
    try:
        folders = option_folders(typed_folder())
    except ConfigError:
        return None
    found = choices(words[-1], OptionFiles.find(folders).options)
    return None if found is None else JOINTS.get(query.removeprefix(QUERY), " ").join(found)


def choices(word: str, options: Mapping[str, list[str]]) -> list[str] | None:
    """List what a word may become that chooses an option.

    Args:
        word: "task=glue_mini/", "method=dense,em".
        options: by group.

    Returns:
        Whole words; those in a folder only if the folder is typed, or its name is complete. None if
        the word chooses no option.
    """
    group, sign, value = word.partition("=")
    if not sign or group not in options:
        return None
    before, comma, last = value.rpartition(",")
    names = [name for name in options[group] if name not in before.split(",")]
    found = [name for name in names if name.startswith(last)]
    if "/" not in last:
        within = [name for name in found if name.startswith(f"{last}/")]
        found = [name for name in found if "/" not in name]
        found += within if found == [last] else []
    return [f"{group}={before}{comma}{name}" for name in found]
