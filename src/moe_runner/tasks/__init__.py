"""Tasks, whatever their suite: what a member is, where its data are, and reading them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_runner.options.errors import ConfigError, join
from moe_runner.options.model import Model, families_with_options
from moe_runner.options.task import FormName, Task
from moe_runner.options.training import Recipe
from moe_runner.registry import FAMILIES, SUITES
from moe_runner.runs.identity import content_hash
from moe_runner.tasks.downloaded import downloaded_commit
from moe_runner.tasks.overlap import warn_of_data
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.tables import fraction

ABSENT = "not available"  # the fingerprint of a split that there is not


def suite_of(name: str) -> Suite[Any]:
    """Return a suite of the registry."""
    found: Suite[Any] = SUITES[name]
    return found


def spec(options: Task, name: str) -> TaskSpec:
    """Return what a member task is.

    Args:
        options: the task's options.
        name: of the member.

    Returns:
        The spec.
    """
    return suite_of(options.suite).spec_of(options, name)


def members(options: Task) -> tuple[str, ...]:
    """List the member tasks that are meant.

    Args:
        options: the task's options.

    Returns:
        `options.members`, and what else the suite's options ask for.

    Raises:
        ConfigError: for every name that the suite does not have, one line each.
    """
    found = suite_of(options.suite).members(options)
    problems: list[str] = []
    for name in found:
        try:
            spec(options, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return found


def form(of: TaskSpec, family: str) -> FormName:
    """Say how a backbone does a task; it follows the backbone and is part of a run's identity.

    Args:
        of: the task.
        family: of the backbone.

    Returns:
        The form: T5 and Switch Transformers answer a classification by a text, as in HyperMoE.
    """
    able = FAMILIES[family].forms
    if of.form == "classification" and of.form not in able and "text_to_text" in able:
        return "text_to_text"
    return of.form


def recipe(of: TaskSpec, form: FormName) -> Recipe:
    """Say how a task is trained in a form where the user gives nothing."""
    return of.recipes.get(form, of.recipe)


def form_problem(options: Task, name: str, model: Model) -> str | None:
    """Say why a backbone cannot do a task; None if it can."""
    if form(spec(options, name), model.family) != "text_to_text":
        return None
    if "text_to_text" in FAMILIES[model.family].forms:
        return None
    able = [
        member
        for member in options.members
        if form(spec(options, member), model.family) != "text_to_text"
    ]
    others = families_with_options(["text_to_text"])
    instead = f", or task.members=[{','.join(able)}]" if able else ""
    return (
        f"model={model.name} is of the family {model.family} and task={options.suite}/{name} is "
        f"answered by a text; use a model of the family {join(others)}{instead}"
    )


def sources(options: Task, name: str) -> dict[str, Source]:
    """Find out where every split of a task is, without reading it.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        "train", each validation split, and "ood/<set>" for the chosen sets -> source.

    Raises:
        ConfigError: for an out-of-domain set that no member can be evaluated on.
    """
    found = suite_of(options.suite).sources(options, name)
    own = [split for split in found if not split.startswith("ood/")]
    for key in ("data_dir", "hub_id"):
        given = getattr(options, key)
        if given is not None and all(found[split].generated is not None for split in own):
            problem = (
                f"task.{key}={given} is not read: the data of {options.suite}/{name} are "
                "generated; leave it out, or use a task that reads data (moe-report tasks)"
            )
            return {**found, own[0]: Source(problem=problem)}
    return found


def fingerprint(options: Task, name: str, memo: Path | None = None) -> dict[str, str]:
    """Say in short what the data of a task are, wherever they lie; part of a run's identity.

    Args:
        options: the task's options.
        name: the member task.
        memo: file that remembers content hashes; see `content_hash`.

    Returns:
        The keys of `sources` -> the hash of the files read, or data set, configuration, split and
        revision of the Hub (also of files that were fetched from there and are unchanged), or
        generator, version and seed; "not available" for what is absent.

    Raises:
        ConfigError: for an out-of-domain set that no member can be evaluated on.
    """
    found = sources(options, name)
    return {split: _fingerprint(source, memo) for split, source in found.items()}


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Read, or generate, the data of a task.

    Args:
        options: the task's options.
        name: the member task.
        cache: `paths.cache`: what is read is memory-mapped from there; None: held in memory.

    Returns:
        The data, with `limit` and `eval_limit` applied, then the share of the training examples
        that is used; None for the splits that are absent.

    Raises:
        ConfigError: if a needed split can't be had, or for an unknown out-of-domain set.
        ValueError: if the columns or labels of a file are not what they should be.
    """
    data = suite_of(options.suite).load(options, name, cache)
    data.train = fraction(data.train, options.share, options.data_seed)
    warn_of_data(data)
    return data


def _fingerprint(source: Source, memo: Path | None) -> str:
    if source.absent:
        return ABSENT
    if source.original is not None and (commit := downloaded_commit(source.files, memo)):
        return str(replace(source.original, revision=commit))
    if source.files:
        return f"sha256 {content_hash(source.files, memo)} {source.reading}".rstrip()
    return source.generated or str(source.hub or ABSENT)
