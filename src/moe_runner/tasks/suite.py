"""What a suite of tasks is to the rest of the runner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.task import Task
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import TaskData, TaskSpec

Options = TypeVar("Options", bound=Task)


class Suite(Protocol[Options]):
    """Member tasks that share options, and how their data are found and read.

    A suite is the `SUITE` of a module `tasks/suites/<name>`, or what an entry point `<name>` of the
    group `moe_runner.suites` names. Its class has this one as its base, for `members`, and the
    annotation `SUITE: Suite[...]` makes mypy check it. Importing it imports no torch, datasets or
    pyarrow: plans are made with it.
    """

    @property
    def options(self) -> type[Options]:
        """The dataclass of `task.<key>`."""
        ...

    @property
    def specs(self) -> Mapping[str, TaskSpec]:
        """The member tasks by name, as far as they are known without data."""
        ...

    def spec_of(self, options: Options, name: str) -> TaskSpec:
        """Say what a member task is; no data is read, so labels may be missing in it.

        Args:
            options: of the task.
            name: of the member.

        Raises:
            ConfigError: if there is no such member.
        """
        if name not in self.specs:
            given, of = f"task.members=[{name}]", f" of task={options.suite}"
            raise ConfigError(not_an_option(given, of, name, list(self.specs)))
        return self.specs[name]

    def members(self, options: Options) -> tuple[str, ...]:
        """List the member tasks that options mean.

        Args:
            options: of the task; validated, but for the names of members.

        Returns:
            `options.members`, unless options say more.
        """
        return options.members

    def sources(self, options: Options, name: str) -> dict[str, Source]:
        """Find out where every split of a member task is, without reading it; see `tasks.sources`.

        Args:
            options: of the task.
            name: of the member.

        Returns:
            "train", each validation split, and "ood/<set>" for the chosen sets -> source. What a
            run needs has a problem if it can't be had, the rest is absent.

        Raises:
            ConfigError: for an out-of-domain set that no member can be evaluated on.
        """
        ...

    def load(self, options: Options, name: str, cache: Path | None = None) -> TaskData:
        """Read, or generate, the data of a member task; see `tasks.load`.

        Args:
            options: of the task; `limit` and `eval_limit` are applied here.
            name: of the member.
            cache: `paths.cache`: what is read is memory-mapped from there; None: held in memory.

        Returns:
            The data; None for the splits that are absent.

        Raises:
            ConfigError: if a needed split can't be had, or for an unknown out-of-domain set.
            ValueError: if the columns or labels of a file are not what they should be.
        """
        ...
