"""Tab completion: Hydra's own, told of the user's folder of option files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moe_runner.cli.reading import read_flags


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
    typed = read_flags(os.environ.get("COMP_LINE", "").split(), [])
    if typed is None or not typed.config_dir or not Path(typed.config_dir).is_dir():
        return list(argv)
    return [*argv, "--config-dir", typed.config_dir]
