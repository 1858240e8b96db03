"""Where the option files are: this project's, those of installed packages, the user's own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from moe_runner.files import read_yaml
from moe_runner.options.errors import ConfigError
from moe_runner.registry import GROUPS

PACKAGED = Path(__file__).parents[1] / "conf"  # in the wheel; in a checkout it is at the top level
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"

Folders = tuple[Path, ...]


def option_folders(config_dir: str | Path | None = None) -> Folders:
    """List the folders of option files: the one list for everything that looks for options.

    Args:
        config_dir: the user's own, of `--config-dir`.

    Returns:
        This project's, which has `config.yaml`, those of installed packages, the user's.

    Raises:
        ConfigError: if there is no such folder, or an option has a file in two of them.
    """
    folders = [CONF.resolve(), *package_folders()]
    if config_dir is not None:
        own = Path(config_dir)
        if not own.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder; give one that is there")
        folders.append(own.resolve())
    found = tuple(dict.fromkeys(folders))
    if problems := double_options(found):
        raise ConfigError(*problems)
    return found


def package_folders() -> Iterator[Path]:
    """Give the folder `conf` of every package that announces a method, a family or a suite.

    It is beside the modules of the package that the entry point names; nothing is imported.
    """
    every = entry_points()  # once: it looks at every installed package
    points = [point for group in GROUPS for point in every.select(group=group)]
    for package in dict.fromkeys(point.module.partition(".")[0] for point in points):
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if (folder := Path(place) / "conf").is_dir():
                yield folder.resolve()


def group_defaults(folders: Folders) -> dict[str, str | None]:
    """Read the groups of the defaults list of `config.yaml`, with the option of each."""
    return dict(_defaults(folders[0] / "config.yaml"))


@functools.cache
def _defaults(file: Path) -> dict[str, str | None]:
    return {
        group: option
        for entry in read_yaml(file)["defaults"]
        if isinstance(entry, dict)
        for group, option in entry.items()
        if " " not in group  # override hydra/sweeper
    }


def option_names(folders: Sequence[Path], group: str) -> list[str]:
    """List the options of a group: "glue", "glue/cola", ..."""
    return sorted(
        file.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
    )


def double_options(folders: Folders) -> list[str]:
    """Find the options that have a file in two folders, of which Hydra would read the first.

    Returns:
        One line per option, with both files.
    """
    problems = []
    groups = [*group_defaults(folders), "hydra/launcher", "hydra/sweeper"]
    seen: dict[str, Path] = {}
    for folder in folders:
        files = {
            f"{group}={name}": folder / group / f"{name}.yaml"
            for group in groups
            for name in option_names([folder], group)
        }
        if (main := folder / "config.yaml").is_file():
            files["config.yaml"] = main
        for name, file in files.items():
            if seen.setdefault(name, file) != file:
                problems.append(f"{name} is there twice: {seen[name]} and {file}; rename one file")
    return problems
