"""The words for a task: what a member is, how it is scored, and the examples of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moe_runner.options.task import FormName
from moe_runner.options.training import Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class About:
    """What `moe-report tasks` says about a task's data."""

    source: str = "unknown"  # Hub id, "generated", or the option that gives them
    licence: str = "unknown"
    rows: Mapping[str, int] = field(default_factory=dict)  # split -> published number of examples
    row_tokens: float | None = None  # mean tokens of a row, where rows are glued and cut to blocks


GENERATED = About(source="generated", licence="MIT")  # by this project


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What one member task is; no data."""

    name: str
    form: FormName = "classification"  # how a backbone meets it, see training/forms
    columns: tuple[str, ...]  # what the model reads: one or two text columns
    labels: tuple[str, ...] = ()  # class names in label order; () for a regression or free text
    free_text: bool = False  # the answer is a text, not a class or a score
    step: float = 0.2  # scores that are written as a text are rounded to multiples of it; T5
    template: str | None = None  # of what is read in text_to_text; None: "<name> <column>: ..."
    parts: Mapping[str, TaskSpec] = field(default_factory=dict)  # of a mixture; see `TaskData`
    metrics: tuple[str, ...]  # the primary number is their mean
    validation: tuple[str, ...]  # splits; the first one selects the best epoch
    ood: tuple[str, ...] = ()  # the out-of-domain sets that `task.ood=[all]` means
    recipe: Recipe
    about: About = About()
    recipes: Mapping[FormName, Recipe] = field(default_factory=dict)  # of forms with their own
    listed: bool = True  # False: no line of its own among the recipes


@dataclass(frozen=True, kw_only=True)
class OODSpec:
    """How the examples of an out-of-domain set look when loaded, and how they are scored.

    The labels are those of the in-domain task.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]


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
