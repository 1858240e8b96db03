"""Compose settings as Hydra would, thousands in a second: every option file is read once.

Option files hold no defaults list and no interpolation, so that a config is `config.yaml`, one file
of each group, and values set in it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_runner.files import read_yaml
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.settings import Settings, parse


def compose_settings(conf: Path, overrides: Mapping[str, Any]) -> Settings:
    """Compose and validate one config.

    Args:
        conf: the folder of `config.yaml`.
        overrides: a group's option ("task": "glue/cola"), or a key's value ("method.top_k": 8).

    Returns:
        The settings.

    Raises:
        ConfigError: with every problem, one line each.
    """
    main, defaults = main_file(conf)
    tree = copy.deepcopy(main)
    for group, default in defaults.items():
        choice = overrides.get(group, default)
        if choice is not None:
            tree[group] = dict(option_file(conf, group, str(choice)))
    for key, value in overrides.items():
        if key in defaults:
            continue
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    output = tree["paths"]["output"]
    tree["paths"]["cache"] = str(tree["paths"]["cache"]).replace("${paths.output}", output)
    return parse(tree)


@functools.cache
def main_file(conf: Path) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Read `config.yaml`: what is in it, without Hydra's own node, and the option of each group."""
    tree = read_yaml(conf / "config.yaml")
    defaults = {
        group: option
        for entry in tree.pop("defaults")
        if isinstance(entry, dict)
        for group, option in entry.items()
        if " " not in group  # override hydra/sweeper
    }
    del tree["hydra"]
    return tree, defaults


@functools.cache
def option_file(conf: Path, group: str, option: str) -> dict[str, Any]:
    """Read an option file.

    Raises:
        ConfigError: if there is none of the name.
    """
    file = conf / group / f"{option}.yaml"
    if not file.is_file():
        names = sorted(
            f.relative_to(conf / group).with_suffix("").as_posix()
            for f in (conf / group).rglob("*.yaml")
        )
        raise ConfigError(not_an_option(f"{group}={option}", "", option, names))
    return read_yaml(file)
