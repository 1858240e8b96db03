"""What `--help` and `--version` print."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.metadata import version

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from moe_runner.cli.launching import folders_of
from moe_runner.cli.reading import read_flags, read_overrides, values_of
from moe_runner.options.files import OptionFiles, option_file
from moe_runner.options.folders import option_folders

WIDTH = 100  # of the lines of options


def option_groups() -> str:
    """List every group with its options for `--help`, in wrapped lines.

    Hydra's own list has a line per group, however long, and takes it half a second.
    """
    files = OptionFiles.find(folders_of(HydraConfig.get()))
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


def register_help() -> None:
    """Let the template of `config.yaml` ask for the groups."""
    OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)


def versions() -> str:
    """Name the versions of what runs: ours, and of the packages that numbers depend on most."""
    names = ("torch", "transformers", "hydra-core")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"moe-runner {version('moe-runner')} ({packages})"


def chosen_files(argv: Sequence[str]) -> str | None:
    """Show the option files that a call of `--help` names: `method=emoe --help`.

    Of a member of a suite, task=glue/cola, the suite's file comes first.

    Args:
        argv: checked arguments, without the program's name.

    Returns:
        Their text; None for another call.
    """
    flags = read_flags(argv, [])
    if flags is None or not flags.help:
        return None
    folders = option_folders(flags.config_dir)
    groups = OptionFiles.find(folders).options
    files = [
        option_file(folders, override.key_or_group, name)
        for override in read_overrides(flags.overrides, [])
        if override.key_or_group in groups
        for choice in map(str, values_of(override))
        for name in dict.fromkeys((choice.partition("/")[0], choice))
        if name in groups[override.key_or_group]
    ]
    return "\n".join(file.read_text(encoding="utf-8") for file in files) or None
