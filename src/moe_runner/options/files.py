"""Read option files.

An option file holds the values of its group. One exception saves repeating a whole file for a
single value: a defaults list that names an option of the same group, whose values the file keeps
but for its own.

    # conf/task/glue/cola.yaml
    defaults:
      - glue
      - _self_
    members: [cola]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_runner.files import read_yaml
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.folders import Folders, group_defaults, option_names
from moe_runner.options.settings import GROUPS, KIND


@dataclass(frozen=True)
class OptionFiles:
    """The groups of the defaults list and the options that they have."""

    folders: Folders
    defaults: Mapping[str, str | None]  # group -> option
    options: Mapping[str, list[str]]  # group -> "glue", "glue/cola", ...

    @classmethod
    def find(cls, folders: Folders) -> OptionFiles:
        """Look for option files; the first folder has `config.yaml`."""
        defaults = group_defaults(folders)
        options = {group: option_names(folders, group) for group in defaults}
        return cls(folders, defaults, options)

    def kinds(self, group: str, choices: Sequence[str | None]) -> list[str]:
        """List the methods, or suites, that options stand for, each once."""
        there = [choice for choice in choices if choice in self.options[group]]
        names = [str(read_option(self.folders, group, name).get(KIND[group])) for name in there]
        return [name for name in dict.fromkeys(names) if name in GROUPS[group]]


@functools.cache
def read_option(folders: Folders, group: str, option: str) -> Mapping[str, Any]:
    """Read an option file.

    Args:
        folders: of `option_folders`.
        group: folder in one of them.
        option: the file's name without its end, "glue/cola".

    Returns:
        Its values, on those of the option that its defaults list names.

    Raises:
        ConfigError: if there is none of the name, or its defaults list is another one.
    """
    file = option_file(folders, group, option)
    tree = read_yaml(file)
    entries = tree.pop("defaults", None)
    if entries is None:
        return tree
    match entries:
        case [str(base), "_self_"]:
            parent = read_yaml(option_file(folders, group, base))
            if "defaults" not in parent:
                return overlaid(parent, tree)
    raise ConfigError(
        f"{file}: defaults={entries} is not allowed; an option file takes one other option of its "
        "group, which has no defaults itself: [<option>, _self_]"
    )


def option_file(folders: Folders, group: str, option: str) -> Path:
    """Find an option file.

    Raises:
        ConfigError: if there is none of the name.
    """
    for folder in folders:
        if (file := folder / group / f"{option}.yaml").is_file():
            return file
    names = option_names(folders, group)
    raise ConfigError(not_an_option(f"{group}={option}", "", option, names))


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put values on others, as Hydra does: mappings are merged, lists replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = overlaid(under, value)
        merged[key] = value
    return merged
