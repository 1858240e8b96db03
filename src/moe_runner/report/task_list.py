"""What can be run: every suite with its metric, size, source, licence, and where its data are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from moe_runner import hub
from moe_runner import tasks as suites
from moe_runner.console import wide_console
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.files import read_option
from moe_runner.options.folders import Folders, option_folders, option_names
from moe_runner.options.task import Task
from moe_runner.registry import SUITES
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import TaskSpec

KEYS = ("data_dir", "ood_dir", "config_dir")  # the first two are options of a task
UNKNOWN = "unknown"

Options = Mapping[str, tuple[str, tuple[str, ...]]]  # name of an option file -> suite, members


def tasks(words: Sequence[str]) -> None:
    """List every suite: metric, size, source, licence, and whether it is on this machine.

    moe-report tasks                               all suites
    moe-report tasks glue                          one, and what null means in its `trainer`
    moe-report tasks glue data_dir=/data/glue      with a look into a folder
    moe-report tasks config_dir=my_conf            with the option files of --config-dir

    The local caches of Hugging Face and the given folder are looked at; nothing is downloaded.

    Args:
        words: names of suites, `data_dir=<folder>`, `ood_dir=<folder>` and
            `config_dir=<folder>`.

    Raises:
        ConfigError: for an unknown name or key.
    """
    names: list[str] = []
    problems: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.removeprefix("task.").partition("=")
        if equals and key in KEYS:
            given[key] = value
        elif word in SUITES:
            names.append(word)
        else:
            allowed = [f"{key}=<folder>" for key in KEYS] if equals else [*SUITES]
            problems.append(not_an_option(word, " of moe-report tasks", word, allowed))
    if problems:
        raise ConfigError(*problems)
    files = option_files(option_folders(given.pop("config_dir", None)))
    console = wide_console()
    console.print(build_table(names or list(SUITES), given, files))
    if names:
        console.print(recipe_table(names))
    console.print(
        "missing data come from the Hub where it answers (moe-run does it, or python "
        "scripts/prepare_data.py <task>), or from task.data_dir=<folder>"
    )


def build_table(names: Sequence[str], places: Mapping[str, str], files: Options) -> Table:
    """Lay out the tasks of some suites.

    Args:
        names: keys of `SUITES`.
        places: folders by option name.
        files: of `option_files`.
    """
    table = Table(caption="rows: training / validation, as published", caption_justify="left")
    for column in (
        "whole suite",
        "task=",
        "metric",
        "rows",
        "source",
        "licence",
        "on this machine",
    ):
        table.add_column(column, no_wrap=column in ("whole suite", "task=", "rows", "source"))
    for suite in names:
        own = {option: found for option, (of, found) in files.items() if of == suite}
        single = {option: found for option, found in own.items() if "/" in option} or own
        whole = [option for option in own if option not in single]
        for number, (option, members) in enumerate(single.items()):
            options = SUITES[suite].options(
                suite=suite,
                members=members,
                data_dir=places.get("data_dir"),
                ood_dir=places.get("ood_dir"),
            )
            spec = suites.spec(options, members[0])
            table.add_row(
                ", ".join(whole) if number == 0 else "",
                option,
                metric(spec),
                rows(spec),
                spec.about.source,
                spec.about.licence,
                whereabouts(options, members[0], spec),
            )
        table.add_section()
    return table


def metric(spec: TaskSpec) -> str:
    """Show the metrics of a task; of a mixture, that it has those of its parts."""
    return "mean of its tasks" if spec.parts else " + ".join(spec.metrics)


def recipe_table(names: Sequence[str]) -> Table:
    """Lay out what null means in `trainer` for the tasks of some suites.

    Args:
        names: keys of `SUITES`.
    """
    table = Table(
        title="trainer.<key>=null means", title_justify="left",
        caption="learning_rate -: tuning.learning_rate; both are multiplied by model.lr_scale",
        caption_justify="left",
    )  # fmt: skip
    keys = ("learning_rate", "max_steps", "batch_size", "eval_batch_size", "eval_steps")
    for column in ("task", "epochs", *keys, "weight_decay", "patience"):
        table.add_column(column)
    for suite in names:
        for name, spec in SUITES[suite].specs.items():
            if not spec.listed:
                continue
            own = {f"{name} ({form})": each for form, each in spec.recipes.items()}
            for label, recipe in {name: spec.recipe, **own}.items():
                epochs = ", ".join(f"{tuning} {count}" for tuning, count in recipe.epochs.items())
                values = [getattr(recipe, key) for key in (*keys, "weight_decay", "patience")]
                shown = ["-" if value is None else f"{value:g}" for value in values]
                table.add_row(label, epochs or "-", *shown)
    return table


def option_files(folders: Folders) -> Options:
    """Read the options of tasks."""
    trees = {name: read_option(folders, "task", name) for name in option_names(folders, "task")}
    return {name: (tree["suite"], tuple(tree["members"])) for name, tree in trees.items()}


def rows(spec: TaskSpec) -> str:
    """Show the published sizes of the training and the first validation split."""
    published = spec.about.rows
    sizes = [published.get(split) for split in ("train", *spec.validation[:1])]
    if not any(sizes):
        return UNKNOWN
    return " / ".join(UNKNOWN if size is None else f"{size:,}" for size in sizes)


def whereabouts(options: Task, name: str, spec: TaskSpec) -> str:
    """Say where the data of a task are on this machine, and which splits are not."""
    found = suites.sources(options, name)
    places = {split: place(source) for split, source in found.items()}
    here = list(dict.fromkeys(where for where in places.values() if where))
    missing = [split for split, where in places.items() if where is None]
    if not here:
        return "no"
    return " and ".join(here) + (f"; without {', '.join(missing)}" if missing else "")


def place(source: Source) -> str | None:
    """Say where a split is; None: not on this machine."""
    if source.generated is not None:
        return "generated"
    if source.files:
        return "data_dir"
    where = source.hub
    if where is not None and hub.cached_dataset(
        where.hub_id, where.config, where.split, where.revision
    ):
        return "cache of the Hub"
    return None
