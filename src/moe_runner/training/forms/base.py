"""What every form of a task offers to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset

from moe_runner.backbones.loading import Backbone
from moe_runner.backbones.weights import Weights
from moe_runner.runs.run import Run
from moe_runner.tasks.specs import TaskData
from moe_runner.training.trainer import RunTrainer

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Form(Protocol):
    """How a backbone does a kind of task; making one loads the backbone.

    The new parameters of a head come from torch's global generator: seed before.

    Args:
        run: its model, task and trainer are read.
        data: of the task.
        weights: where the backbone is.

    Raises:
        ConfigError: if the weights can't be had, or do not go with the task.
    """

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None: ...

    @property
    def backbone(self) -> Backbone:
        """The model with what prepares its input."""
        ...

    @property
    def collator(self) -> Collator:
        """What makes a batch of encoded examples."""
        ...

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make the Trainer that scores this form; see `RunTrainer`."""
        ...

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Turn examples into what the model takes, by `tasks.cache.cached_map`.

        Args:
            dataset: the columns, and `label` where the task has answers.
            columns: what is read; those of the task or of an out-of-domain set.
            cache: `paths.cache`: the result is kept there, and found again by its content.

        Returns:
            The model's arguments, one example a row.
        """
        ...

    def arguments(self) -> dict[str, Any]:
        """Give what the Trainer's arguments need beside those of every run."""
        ...
