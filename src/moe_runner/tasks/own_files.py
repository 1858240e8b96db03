"""The tables of a user's own data: which file is which split; only the first row is looked at."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_runner import hub
from moe_runner.downloads import fetching
from moe_runner.files import read_json
from moe_runner.options.errors import ConfigError, join, nearest
from moe_runner.options.task import Task
from moe_runner.tasks.places import HubSplit, Source, chosen_ood, hub_source, optional
from moe_runner.tasks.records import SUFFIXES, columns_of, is_clutter, kind_of, refuse_other_types

log = logging.getLogger(__name__)

SPLITS = {  # what its files are called
    "train": ("train", "training"),
    "validation": ("validation", "validate", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
FORMATS = "csv, tsv, jsonl, json or parquet (also .gz)"
NOTES = "dataset_info.json"  # of `datasets`: the splits of a configuration
DEFAULT = "default"  # the configuration of a data set of the Hub that has one only
NO_TABLES = ("dataset_infos.json", NOTES, "dataset_dict.json", "state.json")
CUT = "held out of the rows of train"  # how a validation set is read that has no file of its own
WHOLE = "all splits of the data set"  # a data set of the Hub: which it has, only reading it tells


def own_sources(
    options: Task, name: str, config: str | None, columns: Sequence[str]
) -> dict[str, Source]:
    """Find out where the splits of a user's own data are.

    Args:
        options: of the task; `data_dir` is a table or a folder, else `hub_id` a data set.
        name: of the member.
        config: of the data set on the Hub; None: its default.
        columns: that every table must have.

    Returns:
        "train", "validation" (with `reading=CUT` if it is a part of train), "test" if it is there,
        and the chosen out-of-domain sets; of the Hub, train and validation are its data set. A
        problem names what is missing; a test table that is wrong is left out.

    Raises:
        ConfigError: for an out-of-domain set that is not there.
    """
    found = _splits(options, config, columns)
    if "test" in found:
        found["test"] = optional(found["test"])
    tables = _ood(options, columns)
    for ood in chosen_ood(options, name, lambda _: tuple(tables), tuple(tables)):
        found[f"ood/{ood}"] = tables[ood]
    return found


def _splits(options: Task, config: str | None, columns: Sequence[str]) -> dict[str, Source]:
    if options.data_dir is not None:
        given = f"task.data_dir={options.data_dir}"
        found = find_splits(Path(options.data_dir).expanduser(), given)
        found = {split: _checked(source, columns) for split, source in found.items()}
        found.setdefault("validation", replace(found["train"], reading=CUT))
        return found
    if options.hub_id is None:
        problem = (
            f"task={options.suite} needs task.data_dir=<file or folder> with a table "
            f"({FORMATS}), or task.hub_id=<data set>"
        )
        return {"train": Source(problem=problem)}
    place = HubSplit(
        hub_id=options.hub_id, config=config or DEFAULT, split="train", revision=options.revision
    )
    source = hub_source(place, "use task.data_dir=<file or folder>")
    assert source.hub is not None
    source = replace(source, reading=WHOLE, problem=source.problem or _not_cached(source.hub))
    return {"train": source, "validation": source}


def find_splits(path: Path, given: str) -> dict[str, Source]:
    """Look for the tables of the splits.

    Args:
        path: a table, which is then all there is; or a folder, in which files, or folders of files,
            are named after their split (`SPLITS`), perhaps in parts (train-00000-of-00003), or
            there is one table only.
        given: what the user typed, for messages.

    Returns:
        Split -> its source; "train" is always there, perhaps with a problem. Of tables beside it
        that are no split, a warning tells.
    """
    if path.is_file():
        if kind_of(path):
            return {"train": Source(files=(path,))}
        return {"train": Source(problem=f"{given} is no table; give a file of type {FORMATS}")}
    if not path.is_dir():
        return {"train": Source(problem=f"{given} does not exist; give a table or a folder of one")}
    try:
        tables = _tables(path)
    except OSError as error:  # no access, a loop of links
        return {"train": Source(problem=f"{given} cannot be read: {error.strerror}")}
    if not tables:
        problem = f"{given} holds no table; looked for files of type {FORMATS}"
        return {"train": Source(problem=problem)}
    named: dict[str, dict[str, tuple[Path, ...]]] = {split: {} for split in SPLITS}
    for name, files in tables.items():
        if (known := split_of(name)) is not None:
            named[known][name] = files
    found: dict[str, Source] = {}
    for split, candidates in named.items():
        files = tuple(file for each in candidates.values() for file in each)
        if not files:
            continue
        if (reason := one_table(files)) is None and len(candidates) == 1:
            found[split] = Source(files=files)
        else:
            reason = reason or f"there are several ({', '.join(candidates)})"
            problem = f"{given} has no one table of {split}: {reason}"
            found[split] = Source(problem=problem)
    if "train" in found:
        if unread := [name for name in tables if split_of(name) is None]:
            warn_of_unread(given, ", ".join(unread), "train, validation and test")
        return found
    rest = tuple(file for files in tables.values() for file in files)
    if not found and len(tables) == 1:
        reason = one_table(rest)
        problem = f"{given} has no one table: {reason}"
        return {"train": Source(files=rest) if reason is None else Source(problem=problem)}
    if not found and all(file.name.startswith("part-") for file in rest):
        return {"train": Source(files=rest)}
    names = ", ".join(sorted(tables))
    problem = f"{given} has no train table (it has {names}); name one train, or give its path"
    return {"train": Source(problem=problem), **found}


@functools.cache
def warn_of_unread(given: str, names: str, known: str) -> None:
    """Warn once of tables that are not read.

    Args:
        given: what the user typed.
        names: of the tables.
        known: the splits that are read.
    """
    log.warning("  %s has tables that are not read: %s; only %s are", given, names, known)


def _ood(options: Task, columns: Sequence[str]) -> dict[str, Source]:
    """List the out-of-domain sets in `task.ood_dir`: tables with the columns of the task.

    Args:
        options: of the task.
        columns: that every table must have.

    Returns:
        Set -> its source: a table by its name, of a folder its test table or the only one; empty
        without `ood_dir`.
    """
    if options.ood_dir is None:
        return {}
    path, given = Path(options.ood_dir).expanduser(), f"task.ood_dir={options.ood_dir}"
    if path.is_file() and kind_of(path):
        found = {_split_name(path.name): Source(files=(path,))}
    elif not path.is_dir():
        problem = f"{given} is neither a folder nor a table; give one of type {FORMATS}"
        return {path.name: Source(problem=problem)}
    else:
        found = {}
        files: dict[str, list[Path]] = {}
        for entry in sorted(path.iterdir()):
            if is_clutter(entry.name):
                continue
            if entry.is_file() and kind_of(entry):
                files.setdefault(_split_name(entry.name), []).append(entry)
            elif entry.is_dir():
                own = find_splits(entry, f"{given}/{entry.name}")
                found[entry.name] = own.get("test") or own.get("validation") or own["train"]
        for name, parts in files.items():
            reason = one_table(parts)
            problem = f"{given} has no one table of {name}: {reason}"
            found[name] = Source(files=tuple(parts)) if reason is None else Source(problem=problem)
        if not found:
            problem = f"{given} holds no table; looked for files of type {FORMATS}"
            return {path.name: Source(problem=problem)}
    return {name: _checked(source, columns) for name, source in found.items()}


def with_hub_splits(found: dict[str, Source]) -> dict[str, Source]:
    """Put the splits that a data set of the Hub has in the place of the data set.

    Args:
        found: by `own_sources`; those of files are returned as they are.
    """
    train = found["train"]
    if train.reading != WHOLE:
        return found
    assert train.hub is not None
    return {**found, "validation": replace(train, reading=CUT), **hub_splits(train.hub)}


def _not_cached(place: HubSplit) -> str | None:
    """Say which splits the local cache lacks where the Hub can't tell whether there are any.

    A run would train on other rows under the same id. `datasets` writes all splits at once, and
    notes which; files that came another way tell nothing of those that are not there.

    Args:
        place: the "train" of a data set, at its commit.
    """
    parts = hub.cached_dataset(place.hub_id, place.config, place.split, place.revision)
    if not parts:
        return None  # it is asked of the Hub
    notes = [*parts[0].parent.glob(NOTES)]
    if parts[0].suffix != ".arrow":
        everywhere = hub.datasets_cache().glob(f"*/*/*/{place.revision}/{NOTES}")
        notes = [file for file in everywhere if file.parts[-4] == place.config]
    told = {name for file in notes for name in read_json(file).get("splits") or ()}
    lacking = [
        split
        for split, words in SPLITS.items()
        if (told & set(words) if told else split == "validation")
        and not any(
            hub.cached_dataset(place.hub_id, place.config, word, place.revision) for word in words
        )
    ]
    if not lacking or hub.reachable():
        return None
    instead = "" if told else f", or, if that is all, use task.data_dir={parts[0].parent}"
    return (
        f"the local cache of task.hub_id={place.hub_id} has no {join(lacking)}, and the Hub, which "
        f"may have it, is unreachable; fetch all of it{instead}"
    )


def hub_splits(place: HubSplit) -> dict[str, Source]:
    """List the splits that a data set of the Hub has, under our names for them.

    Args:
        place: its "train"; cached or reachable.

    Returns:
        "train", "validation" and "test", as far as there are.
    """
    if not hub.reachable():
        return {
            split: Source(hub=replace(place, split=word))
            for split, words in SPLITS.items()
            for word in words
            if hub.cached_dataset(place.hub_id, place.config, word, place.revision)
        }
    import datasets

    with fetching("dataset", place.hub_id, place.revision):
        of = {"path": place.hub_id, "revision": place.revision}
        if place.config == DEFAULT:
            configs = datasets.get_dataset_config_names(**of)
            name = DEFAULT if DEFAULT in configs else datasets.get_dataset_default_config_name(**of)
            if name is None:
                raise ConfigError(
                    f"task.hub_id={place.hub_id} has several configurations; give task.config="
                    f"<one of {', '.join(configs)}>"
                )
            place = replace(place, config=name)
        names = datasets.get_dataset_split_names(config_name=place.config, **of)
    return {
        split: Source(hub=replace(place, split=name))
        for split, words in SPLITS.items()
        for name in names
        if name in words
    }


def _tables(folder: Path) -> dict[str, tuple[Path, ...]]:
    """List the tables of a folder, or of the only folder in it: name -> files.

    A table may be a folder itself, of parts, as Spark writes them.
    """
    entries = [
        entry
        for entry in sorted(folder.iterdir())
        if not is_clutter(entry.name) and entry.name not in NO_TABLES
    ]
    found: dict[str, list[Path]] = {}
    for entry in entries:
        if entry.is_file() and kind_of(entry):
            found.setdefault(_split_name(entry.name), []).append(entry)
        elif entry.is_dir() and split_of(entry.name) is not None:
            files = [f for f in sorted(entry.iterdir()) if kind_of(f) and not is_clutter(f.name)]
            found.setdefault(_split_name(entry.name), []).extend(files)
    folders = [entry for entry in entries if entry.is_dir()]
    if not found and len(folders) == 1:
        return _tables(folders[0])
    return {name: tuple(files) for name, files in found.items() if files}


def _split_name(name: str) -> str:
    """Take suffixes and the number of a part off a name: train-00000-of-00003.parquet is train."""
    stem = re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)
    if Path(stem).suffix.lower() in SUFFIXES:
        stem = Path(stem).stem
    return re.sub(r"-\d+-of-\d+$", "", stem)


def split_of(name: str) -> str | None:
    """Say which split a file or folder is named after; None: none."""
    word = _split_name(name).lower()
    return next((split for split, words in SPLITS.items() if word in words), None)


def one_table(files: Sequence[Path]) -> str | None:
    """Say why files are not one table: not one file, nor all parts of one; None if they are.

    Args:
        files: at least one.
    """
    parts = [re.search(r"-(\d+)-of-(\d+)(\.\w+)+$", file.name) for file in files]
    numbers = sorted(int(part[1]) for part in parts if part)
    if numbers:
        count = {int(part[2]) for part in parts if part}
        whole = len(count) == 1 and len(numbers) == len(files) == max(count)
        first = next(file.name for file, part in zip(files, parts, strict=True) if part)
        if whole and numbers in (list(range(len(files))), list(range(1, len(files) + 1))):
            return None
        return f"{first} is one of {max(count)} parts, of which {len(numbers)} are there"
    if len(files) == 1 or hub.numbered(files[0].parent) == tuple(files):
        return None
    if all(file.name.startswith("part-") for file in files):
        return None
    return f"there are several files ({', '.join(file.name for file in files)})"


def _checked(source: Source, columns: Sequence[str]) -> Source:
    """Say what is wrong with the columns of a table, or of parquet with the types of its parts."""
    source = with_columns(source, columns)
    if source.problem is not None or any(kind_of(file) != ".parquet" for file in source.files):
        return source
    try:
        refuse_other_types(source.files)
    except ValueError as error:
        return replace(source, problem=str(error))
    return source


def with_columns(source: Source, columns: Sequence[str]) -> Source:
    """Say what is wrong with the columns of a table, by its first row."""
    if source.problem is not None:
        return source
    file = source.files[0]
    try:
        here = columns_of(file)
    except (ValueError, OSError) as error:
        return replace(source, problem=str(error))
    missing = [column for column in columns if column not in here]
    if not missing:
        return source
    if not here:
        return replace(source, problem=f"{file} has no row; expected {', '.join(columns)}")
    near = {column: nearest(column, here) for column in missing}
    hints = [f"{name} for {column}" for column, name in near.items() if name is not None]
    meant = f"; did you mean {' and '.join(hints)}?" if hints else ""
    problem = f"{file} has the columns {', '.join(here)}; it lacks {', '.join(missing)}"
    return replace(source, problem=f"{problem}{meant}")
