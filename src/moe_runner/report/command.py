"""The command `moe-report`: a subcommand is a function in `COMMANDS`. No torch, no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from moe_runner.analysis.command import analyze
from moe_runner.console import spell_plainly, until_the_reader_leaves
from moe_runner.files import one_line
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.report.run_commands import compare, page, runs, show_run
from moe_runner.report.store_commands import clean, status, tables
from moe_runner.report.task_list import tasks
from moe_runner.runs.objects import StoreError

COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {  # its docstring is its help
    "tasks": tasks,
    "tables": tables,
    "runs": runs,
    "show": show_run,
    "compare": compare,
    "page": page,
    "analyze": analyze,
    "status": status,
    "clean": clean,
}


def main() -> None:
    """Run a subcommand; 2 for a mistake on the command line."""
    spell_plainly()
    with until_the_reader_leaves():
        sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a subcommand.

    Args:
        words: its name, then its arguments; none, or --help: list the subcommands.

    Returns:
        The exit code: 2 for a mistake of the user, else 0.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # a report says what is here: ask nobody
    first = words[0] if words else "--help"
    try:
        if first in ("--help", "-h"):
            print(usage())
        elif first == "--version":
            print(f"moe-runner {version('moe-runner')}")
        elif first not in COMMANDS:
            raise ConfigError(not_an_option(first, " of moe-report", first, list(COMMANDS)))
        elif {"--help", "-h"} & set(words[1:]):
            print(summary(first, whole=True))
        else:
            COMMANDS[first](words[1:])
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise  # see `until_the_reader_leaves`
    except OSError as error:
        print(one_line(error), file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    """List the subcommands."""
    lines = [f"  moe-report {name:<12} {summary(name)}" for name in COMMANDS]
    hint = "moe-report <command> --help says more."
    return "\n".join(["Show what can be run and what was found.", "", *lines, "", hint])


def summary(name: str, *, whole: bool = False) -> str:
    """Take the help of a subcommand from its docstring, up to its arguments; or the first line."""
    lines = (COMMANDS[name].__doc__ or "").partition("\n    Args:")[0].rstrip().splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines) if whole else lines[0]


if __name__ == "__main__":
    main()
