"""What the suites share: the words for a task, and reading texts with labels.

Heavy imports (datasets, pyarrow) stay inside the functions that read data: the command line plans
runs with the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from moe_runner import hub
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.task import Task
from moe_runner.options.training import Schedule
from moe_runner.runs.identity import content_hash

if TYPE_CHECKING:
    from datasets import Dataset

SCORE_RANGE = (0.0, 5.0)  # of a regression's labels; STS-B is the only one
ROWS = 4096  # that are read and checked together
T = TypeVar("T")


FormName = Literal[
    "classification", "text_to_text", "language_modelling", "instruct", "domain_generalisation"
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training of a task where the user gives nothing: what null means in `trainer`."""

    epochs: Mapping[str, int] = field(default_factory=dict)  # by tuning: {"full": 10, "lora": 20}
    max_steps: int | None = None  # updates; wins over the epochs
    learning_rate: float | None = None  # None: tuning.learning_rate * model.lr_scale
    batch_size: int = 32
    eval_batch_size: int = 64
    eval_steps: int | None = None  # None: an evaluation per epoch
    weight_decay: float = 0.0
    schedule: Schedule = "linear"  # of the learning rate
    warmup_ratio: float = 0.0  # of the updates
    batch_multiple: int = 1  # a batch takes as many examples of each of so many sources
    patience: int = 0  # evaluations without a better primary metric before training stops; 0: never
    max_length: int = 128  # tokens of a text that is classified


@dataclass(frozen=True, kw_only=True)
class About:
    """What `moe-report tasks` says about a task's data."""

    source: str = "unknown"  # Hub id, "generated", or the option that gives them
    licence: str = "unknown"
    rows: Mapping[str, int] = field(default_factory=dict)  # split -> published number of examples


GENERATED = About(source="generated", licence="MIT")  # by this project


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What one member task is; no data."""

    name: str
    form: FormName = "classification"  # how a backbone meets it, see training/forms
    columns: tuple[str, ...]  # what the model reads: one or two text columns
    labels: tuple[str, ...] = ()  # class names in label order; () for a regression or free text
    free_text: bool = False  # the answer is a text, not a class or a score
    template: str | None = None  # of what is read in text_to_text; None: "<name> <column>: ..."
    parts: Mapping[str, TaskSpec] = field(default_factory=dict)  # of a mixture; see `group`
    metrics: tuple[str, ...]  # the primary number is their mean
    validation: tuple[str, ...]  # splits; the first one selects the best epoch
    ood: tuple[str, ...] = ()  # the out-of-domain sets that `task.ood=[all]` means
    recipe: Recipe
    about: About = About()
    recipes: Mapping[FormName, Recipe] = field(default_factory=dict)  # of forms with their own


@dataclass(frozen=True, kw_only=True)
class OODSpec:
    """How the examples of an out-of-domain set look when loaded, and how they are scored.

    The labels are those of the in-domain task.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]


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

    files: tuple[Path, ...] = ()  # parquet files
    hub: HubSplit | None = None
    generated: str | None = None  # generator, version and seed
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


@dataclass(kw_only=True)
class TaskData:
    """The examples of a task, independent of any tokenizer.

    Every data set has the columns of its spec and, where the task has answers, `label`: ClassLabel,
    float32 for a regression, string for a generated text. Evaluation sets may also have
    `references`, all the right answers of a question (list of strings), and `group`, which examples
    are scored together (string). None: not available.
    """

    spec: TaskSpec
    train: Dataset
    validation: dict[str, Dataset | None]
    ood: dict[str, Dataset | None] = field(default_factory=dict)
    ood_specs: dict[str, OODSpec] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  # examples left out, by where they were

    def for_run(self, seed: int) -> TaskData:
        """Do what depends on the run's seed, such as a split; most tasks have nothing to do.

        Args:
            seed: of the run.

        Returns:
            The data of the run.
        """
        return self


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
        The source, with a problem if it is neither cached nor reachable.
    """
    problem = hub.problem(
        "dataset", place.hub_id, place.revision, remedy, config=place.config, split=place.split
    )
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
            return Source(files=files)
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


def read(
    source: Source,
    columns: Sequence[tuple[str, ...]],
    labels: tuple[str, ...],
    limit: int | None = None,
    cache: Path | None = None,
) -> Dataset | None:
    """Read one split.

    Args:
        source: where it is.
        columns: the names of the text columns, and other names they may have in the files (text
            for sentence): the first ones found are taken, and named as the first entry says.
        labels: class names; () for a regression.
        limit: keep a random subset of so many examples, the same every time, in order.
        cache: `paths.cache`: the examples are memory-mapped from there; None: held in memory.

    Returns:
        The examples: the text columns and `label`; rows of label -1 (no gold label) are left out.
        None if the split is not available.

    Raises:
        ValueError: if the columns or the labels are not what they should be; names the file.
    """
    if not source.available:
        return None
    data = read_tables(
        source,
        lambda table, origin: _checked(table, origin, columns, labels),
        _features(columns[0], labels),
        {"columns": columns, "labels": labels},
        cache,
    )
    if not len(data):
        raise ValueError(f"{source.origin} has no labelled row; expected at least one")
    return limited(data, limit)


def read_tables(
    source: Source,
    convert: Callable[[Any, str], Any],
    features: Any,
    key: Mapping[str, Any],
    cache: Path | None,
) -> Dataset:
    """Read the parquet files of a split, or its copy of the Hub, a part at a time.

    Args:
        source: available, and not generated.
        convert: (pyarrow table of some rows, name of their origin) -> table of the schema of
            `features`.
        features: of the result.
        key: what `convert` depends on, as plain values.
        cache: `paths.cache`; None: the result is held in memory.

    Returns:
        The data set, memory-mapped if there is a cache.

    Raises:
        ValueError: if a file is not parquet, and what `convert` raises.
    """
    from moe_runner.tasks.cache import cached_batches

    files, tables = _open(source)
    if cache is not None and files:
        key = {"files": content_hash(files, cache / "hashes.json"), **key}
    else:
        cache = None  # nothing says what is read: a data set that is in memory already
    return cached_batches(
        lambda: (convert(table, source.origin) for table in tables()), features, key, cache
    )


def read_table(source: Source) -> tuple[Any, str]:
    """Read one split as it is, into memory.

    Args:
        source: where it is; available.

    Returns:
        A pyarrow table, and what names it in errors.
    """
    import pyarrow as pa  # heavy, so here

    _, tables = _open(source)
    return pa.concat_tables(tables(), promote_options="permissive"), source.origin


def tidy(
    table: Any,
    origin: str,
    columns: Sequence[tuple[str, ...]],
    labels: tuple[str, ...],
    limit: int | None = None,
) -> Dataset:
    """Check a table and turn it into a data set; see `read`.

    Args:
        table: a pyarrow table.
        origin: names the table in errors: a file, or what stands for it.
        columns: as for `read`.
        labels: as for `read`.
        limit: as for `read`.

    Returns:
        The data set.

    Raises:
        ValueError: as for `read`.
    """
    from datasets import Dataset

    table = _checked(table, origin, columns, labels)
    if not len(table):
        raise ValueError(f"{origin} has no labelled row; expected at least one")
    return limited(Dataset(table), limit)


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Keep a random subset of so many examples, the same every time, in order; None: all."""
    chosen = subset(len(dataset), limit)
    return dataset if chosen is None else dataset.select(chosen)


def subset(size: int, limit: int | None) -> list[int] | None:
    """Choose a random subset of so many of `size` places, the same every time, in order.

    Returns:
        The places; None: all of them.
    """
    if limit is None or limit >= size:
        return None
    return sorted(random.Random(0).sample(range(size), limit))


def fraction(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Keep a random share of the examples, in order; the labels are not balanced.

    A smaller share of the same seed is a part of a larger one, so that their difference is the
    number of examples alone.

    Args:
        dataset: at least one example.
        share: above 0, to 1.
        seed: another seed draws others.

    Returns:
        `share` of the examples, rounded, but at least one.
    """
    if share == 1.0:
        return dataset
    order = random.Random(f"fraction/{seed}").sample(range(len(dataset)), len(dataset))
    return dataset.select(sorted(order[: max(1, round(share * len(dataset)))]))


def _features(columns: tuple[str, ...], labels: tuple[str, ...]) -> Any:
    from datasets import ClassLabel, Features, Value

    label = ClassLabel(names=list(labels)) if labels else Value("float32")
    return Features({**dict.fromkeys(columns, Value("string")), "label": label})


def _checked(
    table: Any, origin: str, columns: Sequence[tuple[str, ...]], labels: tuple[str, ...]
) -> Any:
    """Take the columns of a table under their first names, and check the values; see `read`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    here = table.column_names
    names = next((n for n in columns if {*n, "label"} <= set(here)), None)
    if names is None:
        expected = ", ".join((*columns[0], "label"))
        raise ValueError(f"{origin} has the columns {', '.join(here)}; expected {expected}")
    text = {
        new: _column(table, old, pa.string(), origin)
        for new, old in zip(columns[0], names, strict=True)
    }
    label = _column(table, "label", pa.int64() if labels else pa.float32(), origin)
    table = pa.table({**text, "label": label})
    if labels:
        table = table.filter(pc.not_equal(table["label"], -1))
    least, most = (0, len(labels) - 1) if labels else SCORE_RANGE
    inside = pc.and_(pc.greater_equal(table["label"], least), pc.less_equal(table["label"], most))
    if len(table) and not pc.all(inside).as_py():
        outside = table["label"].filter(pc.invert(inside))[0].as_py()
        names_of_labels = f" ({', '.join(labels)})" if labels else ""
        raise ValueError(
            f"{origin} has the label {outside}; expected {least} to {most}{names_of_labels}"
        )
    return table.cast(_features(columns[0], labels).arrow_schema)


def some_rows(table: Any, limit: int | None) -> Any:
    """Keep a random subset of so many rows of a table, the same every time, in order."""
    chosen = subset(len(table), limit)
    return table if chosen is None else table.take(chosen)


def _column(table: Any, name: str, kind: Any, origin: str) -> Any:
    """Take a column as pyarrow type `kind`; a ValueError says where its values don't fit."""
    import pyarrow as pa

    column = table[name]
    if column.null_count:
        raise ValueError(f"{origin} has {column.null_count} empty values in the column {name}")
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    try:
        if is_text == pa.types.is_string(kind):  # else a number would be spelled, a text parsed
            return column.cast(kind)
    except pa.ArrowInvalid:  # such as 0.5 for a class
        pass
    raise ValueError(
        f"{origin} has values of type {column.type} in the column {name} that are no {kind}"
    )


def _parquet_tables(files: Sequence[Path]) -> Iterator[Any]:
    """Yield the rows of parquet files, some at a time, as pyarrow tables.

    Raises:
        ValueError: if a file is not parquet; names it.
    """
    # Heavy, so here; pyarrow instead of load_dataset("parquet"), which copies all to its cache.
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{file} cannot be read as parquet: {reason}") from error


def _open(source: Source) -> tuple[tuple[Path, ...], Callable[[], Iterable[Any]]]:
    """Open parquet files, or a split of the Hub, from the cache where it is there.

    Returns:
        The files on this machine, and a function that gives their rows as pyarrow tables.
    """
    place, files = source.hub, source.files
    if place is None:
        return files, lambda: _parquet_tables(files)
    files = hub.cached_dataset(place.hub_id, place.config, place.split, place.revision)
    if files and files[0].suffix == ".parquet":
        return files, lambda: _parquet_tables(files)
    from datasets import Dataset, concatenate_datasets, load_dataset

    if files:
        data = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    else:
        data = load_dataset(place.hub_id, place.config, split=place.split, revision=place.revision)
        files = tuple(Path(entry["filename"]) for entry in data.cache_files)
    return files, lambda: data.with_format("arrow").iter(ROWS)
