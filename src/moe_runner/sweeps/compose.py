"""Compose settings as Hydra would, thousands in a second: every option file is read once.

Option files hold no interpolation, and of defaults lists only what `options.files` allows, so that
a config is `config.yaml`, one file of each group, and values set in it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from moe_runner.files import read_yaml
from moe_runner.options.errors import ConfigError, show
from moe_runner.options.files import read_option
from moe_runner.options.folders import Folders, group_defaults
from moe_runner.options.settings import Settings, parse


def compose_settings(folders: Folders, overrides: Mapping[str, Any]) -> Settings:
    """Compose and validate one config.

    Args:
        folders: of option files; the first has `config.yaml`.
        overrides: a group's option ("task": "glue/cola"), or a key's value ("method.top_k": 8).

    Returns:
        The settings.

    Raises:
        ConfigError: with every problem, one line each.
    """
    main, defaults = main_file(folders)
    tree = copy.deepcopy(main)
    for group, default in defaults.items():
        choice = overrides.get(group, default)
        if choice is not None:
            tree[group] = dict(read_option(folders, group, str(choice)))
    for key, value in overrides.items():
        if key in defaults:
            continue
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}={show(value)} is not an option: {section} is a value")
        node[last] = value
    output = tree["paths"]["output"]
    tree["paths"]["cache"] = str(tree["paths"]["cache"]).replace("${paths.output}", output)
    return parse(tree)


@functools.cache
def main_file(folders: Folders) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Read `config.yaml`: what is in it, without Hydra's own node, and the option of each group."""
    tree = read_yaml(folders[0] / "config.yaml")
    del tree["hydra"], tree["defaults"]
    return tree, group_defaults(folders)
