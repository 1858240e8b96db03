"""The whole config as validated settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from moe_runner.files import expanded
from moe_runner.options.auto import AUTO, with_facts_of_config
from moe_runner.options.build import MISSING, build, convert_value, field_names, range_problems
from moe_runner.options.checks import value_problems
from moe_runner.options.errors import ConfigError, show, unknown_key
from moe_runner.options.fields import Count, Seed
from moe_runner.options.method import Method
from moe_runner.options.model import Model, with_own_sizes
from moe_runner.options.protocol import Protocol
from moe_runner.options.task import GENERATED, Task
from moe_runner.options.training import Search, Trainer, Tuning
from moe_runner.registry import METHODS, SUITES


@dataclass(frozen=True, kw_only=True)
class Logger:
    """Where a copy of the metrics goes."""

    name: Literal["none", "wandb"]
    project: str = "moe-runner"
    mode: Literal["offline", "online"] = "offline"
    group: str | None = None  # of Weights & Biases; a study sets its name


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Folders that are written to, and those of local data and models."""

    output: str = "outputs"
    cache: str = "outputs/cache"
    data: str | None = None  # see `in_data_folder`
    models: str | None = None  # <name>: the folder of model=<name>


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole validated config."""

    method: Method
    model: Model
    tuning: Tuning
    task: Task
    protocol: Protocol
    search: Search
    trainer: Trainer
    logger: Logger
    paths: Paths
    seed: Seed = 0
    device: str = "auto"
    threads: Count | None = None
    keep_model: Literal["none", "best"] = "none"
    evaluate: str | None = None
    export: Literal["none", "dense", "moe", "hf"] = "none"
    profile: Literal["mini", "small", "paper"] = "mini"
    dry_run: bool = False
    rerun: bool = False
    quiet: bool = False
    debug: bool = False


GROUPS: dict[str, Any] = {
    "method": METHODS,  # a group with a dataclass per kind of option, see `options_class`
    "model": Model,
    "tuning": Tuning,
    "task": SUITES,
    "protocol": Protocol,
    "search": Search,
    "trainer": Trainer,
    "logger": Logger,
}


KIND = {"method": "name", "task": "suite"}  # the key that chooses among a group's dataclasses


def options_class(group: str, kind: str = "") -> type | None:
    """Find the dataclass of a group's options.

    Args:
        group: a key of `GROUPS`.
        kind: name of the method or suite, for a group of `KIND`.

    Returns:
        The dataclass; None if there is no such kind.
    """
    found = GROUPS[group]
    if group in KIND:
        found = found.get(kind)
    return found.options if group == "task" and found is not None else found


def option_keys(kinds: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """List every dotted key that a user may set.

    Args:
        kinds: the chosen methods and suites, whose options differ: {"method": ["emoe"]}; a group
            that is not there stands for all of its kinds.

    Returns:
        The global keys, then "group.option", each once.
    """
    sections: list[tuple[str, type]] = []
    for group, cls in GROUPS.items():
        if group in KIND:
            names = (kinds or {}).get(group, cls)
            sections += [(group, found) for name in names if (found := options_class(group, name))]
        else:
            sections.append((group, cls))
    keys = [name for name in field_names(Settings) if name not in {*GROUPS, "paths"}]
    for section, cls in (*sections, ("paths", Paths)):
        keys += [f"{section}.{name}" for name in field_names(cls)]
    return list(dict.fromkeys(keys))


def parse(tree: Mapping[str, Any]) -> Settings:
    """Turn the composed config into validated settings.

    Args:
        tree: the whole config as plain Python containers, without Hydra's own node.

    Returns:
        The settings.

    Raises:
        ConfigError: with every problem of keys, types and values, one line each.
    """
    problems: list[str] = []
    parts: dict[str, Any] = {}
    sections = {**GROUPS, "paths": Paths}
    refuse_targets(tree, "", problems)
    for section, cls in sections.items():
        node = tree.get(section)
        if section in KIND and isinstance(node, Mapping):
            cls = options_class(section, str(node.get(KIND[section])))
        if not isinstance(node, Mapping) or cls is None:
            given = f"{section}={show(node)}"
            problems.append(f"{given} is not valid; moe-run --help lists the options")
            continue
        if section == "model" and node.get("name") == AUTO:
            node = with_facts_of_config(node, problems)
            if node is None:
                continue
        kind = str(node[KIND[section]]) if section in KIND else ""
        keys = option_keys({section: [kind]} if kind else None)
        parts[section] = build(cls, node, section, problems, kind=kind, keys=keys)
    hints = get_type_hints(Settings, include_extras=True)
    for key, value in tree.items():
        if key in sections:
            continue
        given = f"{key}={show(value)}"
        if key not in hints:
            keys = [*sections, *option_keys()]
            problems.append(unknown_key(given, key, "", keys))
        elif value == MISSING:
            problems.append(f"{key} is missing; give {key}=<value>")
        else:
            try:
                parts[key] = convert_value(value, hints[key])
            except TypeError as error:
                problems.append(f"{given} is not valid; use {error}")
            else:
                problems += range_problems(key, parts[key], hints[key])
    if (model := parts.get("model")) is not None:
        unknown = model.family_problems()
        problems += unknown
        model = in_model_folder(model, getattr(parts.get("paths"), "models", None))
        parts["model"] = None if unknown else with_own_sizes(model, problems)
    problems += value_problems(parts)
    if problems:
        raise ConfigError(*problems)
    task, paths = parts["task"], parts["paths"]
    return Settings(**(parts | {"task": in_data_folder(task, paths.data)}))


def in_model_folder(model: Model, models: str | None) -> Model:
    """Let a backbone come from `paths.models`, the folder of all local models, if it is there.

    Args:
        model: with a `path` of its own, or bundled, it stays what it is.
        models: the folder; its subfolder of the option's name is the `path`.
    """
    place = None if models is None else expanded(models) / model.name
    if place is None or model.path is not None or model.bundled or not place.is_dir():
        return model
    return replace(model, path=str(place))


def in_data_folder(task: Task, data: str | None) -> Task:
    """Let a task read `paths.data`, the folder of all local data, where it has some of its own.

    Args:
        task: with `data_dir` or `ood_dir` of its own, these stay; with a `hub_id` it stays there.
        data: the folder: `<suite>`, or of a task that is one member `<member>` (not of GLUE, whose
            tasks lie in its folder), is its `data_dir`, as scripts/prepare_data.py lays it out;
            `<suite>/ood` or `ood` is its `ood_dir`. Generated data have none.

    Returns:
        The task; a suite of which nothing is in the folder comes from the Hub. The user's own
        data are where the task says, and so are its out-of-domain sets.
    """
    if data is None or task.hub_id is not None or task.own_data:
        return task
    root = Path(data).expanduser()
    names = [task.suite, *(task.members if task.has_folders and len(task.members) == 1 else ())]
    if any(name.endswith(GENERATED) for name in (task.suite, *task.members)):
        names = []
    own = next((root / name for name in names if (root / name).is_dir()), None)
    ood = next(
        (place for place in (root / task.suite / "ood", root / "ood") if place.is_dir()), None
    )
    return replace(
        task,
        data_dir=task.data_dir or (str(own) if own else None),
        ood_dir=task.ood_dir or (str(ood) if ood else None),
    )


def refuse_targets(tree: Mapping[str, Any], where: str, problems: list[str]) -> None:
    """Refuse `_target_` anywhere: components are looked up by name, no config names code to run."""
    for key, value in tree.items():
        if key == "_target_":
            problems.append(
                f"{where}_target_={show(value)} is refused; components are chosen by name"
            )
        elif isinstance(value, Mapping):
            refuse_targets(value, f"{where}{key}.", problems)
