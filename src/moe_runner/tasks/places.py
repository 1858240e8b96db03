"""Where the splits of a task are, in folders or on the Hub; nothing is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from moe_runner import hub
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.task import Task

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HubSplit:
    """A split of a data set on the Hugging Face Hub."""

    hub_id: str
    config: str
    split: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hub {self.hub_id} config {self.config} split {self.split} at {self.revision}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one split comes from, found out without reading it.

    One of `files`, `hub`, `generated` is set, unless the split can't be had: then `problem` says so
    if it is needed, `absent` if a run does without it. (A needed split of the Hub keeps `hub`, so
    that a run has the same fingerprint with and without a connection.)
    """

    files: tuple[Path, ...] = ()  # tables, texts or images
    hub: HubSplit | None = None
    reading: str = ""  # how the files are read, where an earlier version read them otherwise
    generated: str | None = None  # generator, version and seed
    original: HubSplit | None = None  # the Hub's split that the files may be a copy of
    problem: str | None = None  # why it can't be had, and the remedy: one line
    absent: str | None = None  # the same, for a split that may be missing

    @property
    def available(self) -> bool:
        """Whether the split can be read."""
        return self.problem is None and self.absent is None

    @property
    def origin(self) -> str:
        """Name the split in errors: its files, or its place on the Hub."""
        return " + ".join(map(str, self.files)) or str(self.hub or self.generated)


def chosen_ood(
    options: Task, name: str, ood_names: Callable[[str], tuple[str, ...]], default: tuple[str, ...]
) -> dict[str, bool]:
    """Find out which out-of-domain sets the options mean for one task.

    Args:
        options: `ood` is read, and `members`: a name that belongs to another member is no mistake.
        name: the task.
        ood_names: gives all the sets that a task can be evaluated on.
        default: the sets that "all" stands for.

    Returns:
        Set -> whether the user named it (then it must be there), in the order given.

    Raises:
        ConfigError: for a name that none of the members can be evaluated on.
    """
    chosen: dict[str, bool] = {}
    problems = []
    for given in options.ood:
        if given == "all":
            chosen = {**dict.fromkeys(default, False), **chosen}
        elif given in ood_names(name):
            chosen[given] = True
        elif not any(given in ood_names(member) for member in options.members):
            of = f" of task={options.suite}/{name}"
            allowed = ("all", *ood_names(name))
            problems.append(not_an_option(f"task.ood=[{given}]", of, given, allowed))
    if problems:
        raise ConfigError(*problems)
    return chosen


def ood_part(found: Mapping[str, T]) -> dict[str, T]:
    """Take what belongs to out-of-domain sets: set -> the value of "ood/<set>", in order."""
    return {key.removeprefix("ood/"): of for key, of in found.items() if key.startswith("ood/")}


def find_parquet(folder: Path, split: str) -> tuple[Path, ...]:
    """Look for the files of one split, by name.

    Args:
        folder: the folder of a data set.
        split: such as train; a longer name (train_small) is another split.

    Returns:
        `<split>.parquet`, else all of `<split>-<i>-of-<n>.parquet`, else these in the one subfolder
        that has them (the Hub's layout), else `<split>/0000.parquet` and on (that of the Hub's own
        parquet copies); empty if there are none, or if one of them is missing.
    """
    if (folder / f"{split}.parquet").is_file():
        return (folder / f"{split}.parquet",)
    pattern = f"{split}-*-of-*.parquet"
    return (
        hub.complete(folder.glob(pattern))
        or hub.complete(folder.glob(f"*/{pattern}"))
        or hub.numbered(folder / split)
    )


def hub_split(options: Task, hub_id: str, config: str, split: str) -> HubSplit:
    """Name a split on the Hub; `task.hub_id` and `task.revision` may choose another copy of it."""
    return HubSplit(
        hub_id=options.hub_id or hub_id, config=config, split=split, revision=options.revision
    )


def hub_source(place: HubSplit, remedy: str) -> Source:
    """Say whether a split of the Hub can be had.

    Args:
        place: the split.
        remedy: what the user can do otherwise, such as "use task.data_dir=<folder>".

    Returns:
        The source, at the commit that its revision means, where the cache or the Hub tells it; with
        a problem if it is neither cached nor reachable.
    """
    problem = hub.problem(
        "dataset", place.hub_id, place.revision, remedy, config=place.config, split=place.split
    )
    if problem is None:
        commit = hub.dataset_commit(place.hub_id, place.config, place.split, place.revision)
        place = replace(place, revision=commit or place.revision)
    return Source(hub=place, problem=problem)


def split_source(options: Task, name: str, place: HubSplit, *, instead: str) -> Source:
    """Say where a split is: in `task.data_dir` if that is given, else on the Hub.

    Args:
        options: the task's options.
        name: of the folder in `data_dir`.
        place: on the Hub; its split is what is looked for.
        instead: a task that needs no data, for the remedy; "" if there is none.

    Returns:
        The source, with a problem if it can't be had.
    """
    if options.data_dir is None:
        other = f", or task={instead}" if instead else ""
        return hub_source(place, f"use task.data_dir=<folder>{other}")
    other = f", or use task={instead}" if instead else ""
    folder, split = Path(options.data_dir).expanduser(), place.split
    for own in dict.fromkeys((name, place.config)):
        if files := find_parquet(folder / own, split):
            return Source(files=files, original=place)
    state = "lacks a split" if folder.is_dir() else "is not a folder"
    return Source(
        problem=f"task.data_dir={options.data_dir} {state}: looked for {name}/{split}.parquet and "
        f"{name}/{split}-*-of-*.parquet (all parts); put it there{other}"
    )


def optional(source: Source) -> Source:
    """Turn the problem of a split that a run can do without into a remark."""
    if source.problem is None:
        return source
    return replace(source, problem=None, absent=source.problem)


def check(sources: Mapping[str, Source]) -> None:
    """Stop if a needed split can't be had.

    Raises:
        ConfigError: with every problem, one line each.
    """
    if problems := [source.problem for source in sources.values() if source.problem]:
        raise ConfigError(*problems)
