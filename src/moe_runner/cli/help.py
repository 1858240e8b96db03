"""What `--help` lists."""

from __future__ import annotations

import textwrap

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from moe_runner.cli.launching import folders_of
from moe_runner.options.files import OptionFiles

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
