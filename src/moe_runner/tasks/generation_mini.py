"""Generated texts that are answered by texts: what the mini forms of `GenerationTask` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import GenerationTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.cache import cached_table
from moe_runner.tasks.free_text import no_ood, texts
from moe_runner.tasks.mini.texts import SIZES, VERSION
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

if TYPE_CHECKING:
    from datasets import Dataset

RECIPE = Recipe(  # ours
    epochs={"full": 4, "lora": 8, "lora_block": 8},
    learning_rate=1e-4,
    batch_size=32,
    eval_batch_size=50,
)
ABOUT = About(source="generated", licence="MIT", rows=SIZES)


@dataclass(frozen=True)
class GeneratedTexts(Suite[GenerationTask]):
    """One task whose splits are generated from a seed; no files.

    Args:
        spec: of the task.
        generate: (split, seed=) -> columns.
        answers: the column of the answers.
    """

    spec: TaskSpec
    generate: Callable[..., Mapping[str, list]]
    answers: str

    options = GenerationTask

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """See `Suite`."""
        return {self.spec.name: self.spec}

    def sources(self, options: GenerationTask, name: str) -> dict[str, Source]:
        """See `Suite`: what is generated, from which version and seed."""
        no_ood(options, name)
        source = Source(generated=f"{name} v{VERSION} seed {options.data_seed}")
        return dict.fromkeys(["train", "validation"], source)

    def load(self, options: GenerationTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; the data are the same for the same version and `data_seed`."""
        no_ood(options, name)
        columns = {column: column for column in self.spec.columns}

        def made(split: str, limit: int | None) -> Dataset:
            key = [name, VERSION, split, options.data_seed]
            make = partial(self.generate, split, seed=options.data_seed)
            table = cached_table(make, key, cache)
            return texts(table, f"{name}/{split}", columns, self.answers, limit)

        return TaskData(
            spec=self.spec,
            train=made("train", options.limit),
            validation={"validation": made("validation", options.eval_limit)},
        )
