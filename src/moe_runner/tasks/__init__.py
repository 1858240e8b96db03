"""Task suites: a name in `SUITES`, a module with TASKS, ood_names, sources and load."""

from pathlib import Path
from types import ModuleType

from moe_runner.config import Task
from moe_runner.tasks import glue, glue_mini, instruct, instruct_mini
from moe_runner.tasks.base import FormName, HubSplit, OODSpec, Source, TaskData, TaskSpec

__all__ = [
    "SUITES",
    "HubSplit",
    "OODSpec",
    "Source",
    "TaskData",
    "TaskSpec",
    "fingerprint",
    "form",
    "load",
    "sources",
    "spec",
]

SUITES: dict[str, ModuleType] = {
    "glue": glue,
    "glue_mini": glue_mini,
    "instruct": instruct,
    "instruct_mini": instruct_mini,
}


def spec(suite: str, name: str) -> TaskSpec:
    """Return what a member task is.

    Args:
        suite: a key of `SUITES`.
        name: a key of the suite's TASKS.

    Returns:
        The spec.
    """
    return SUITES[suite].TASKS[name]


def form(of: TaskSpec, family: str) -> FormName:
    """Say how a backbone does a task; it follows the backbone and is part of a run's identity.

    Args:
        of: the task.
        family: of the backbone.

    Returns:
        The form: T5 and Switch Transformers answer a classification by a text, as in HyperMoE.
    """
    if of.form == "classification" and family in ("t5", "switch"):
        return "text_to_text"
    return of.form


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
    return SUITES[options.suite].sources(options, name)


def fingerprint(options: Task, name: str, memo: Path | None = None) -> dict[str, str]:
    """Say in short what the data of a task are, wherever they lie; part of a run's identity.

    Args:
        options: the task's options.
        name: the member task.
        memo: file that remembers content hashes; see `content_hash`.

    Returns:
        The keys of `sources` -> the hash of the files read, or data set, configuration, split and
        revision of the Hub, or generator, version and seed; "not available" for what is absent.

    Raises:
        ConfigError: for an out-of-domain set that no member can be evaluated on.
    """
    found = sources(options, name)
    return {split: _fingerprint(source, memo) for split, source in found.items()}


def load(options: Task, name: str) -> TaskData:
    """Read, or generate, the data of a task.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        The data, with `limit` and `eval_limit` applied; None for the splits that are absent.

    Raises:
        ConfigError: if a needed split can't be had, or for an unknown out-of-domain set.
        ValueError: if the columns or labels of a file are not what they should be.
    """
    return SUITES[options.suite].load(options, name)


def _fingerprint(source: Source, memo: Path | None) -> str:
    from moe_runner.runs.identity import content_hash

    if source.absent:
        return "not available"
    if source.files:
        return f"sha256 {content_hash(source.files, memo)}"
    return source.generated or str(source.hub or "not available")
