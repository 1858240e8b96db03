"""Text classification and regression, with a new head on the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, EvalPrediction
from transformers.trainer_utils import PredictionOutput

from moe_runner import metrics
from moe_runner.backbones.loading import load_classifier
from moe_runner.backbones.weights import Weights
from moe_runner.runs.run import Run
from moe_runner.tasks.cache import cached_map, tokenizer_content
from moe_runner.tasks.specs import TaskData
from moe_runner.training.trainer import RunTrainer


class ClassificationTrainer(RunTrainer):
    """Score logits, or the one output of a regression."""

    by_length = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            compute_metrics=self.compute_task_metrics,
            preprocess_logits_for_metrics=first_output,
            **kwargs,
        )

    def compute_task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the task's metrics and `primary`, fractions in 0-1."""
        predicted, labels = map(self.in_order, (prediction.predictions, prediction.label_ids))
        values = metrics.compute(predicted, labels, self.metric_names)
        return {**values, "primary": metrics.primary(values)}

    def plain_facts(self, found: PredictionOutput) -> tuple[float | None, bool | None]:
        """See `RunTrainer.plain_facts`."""
        answers = metrics.decode(found.predictions)
        labels = np.asarray(found.label_ids)
        return metrics.of_one_answer(labels, self.metric_names), metrics.constant(answers)


class Classification:
    """See `Form`: one or two texts, a class or a score."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        self.max_length = run.task.tokens(run.model)
        self.backbone = load_classifier(run.model, weights, data.spec.labels)
        self.tokenizer = self.backbone.processor
        self.collator = DataCollatorWithPadding(self.tokenizer)

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Tokenize one or two columns; the longer of a pair is cut first. Padding comes later."""
        key = {
            "form": "classification",
            "tokenizer": tokenizer_content(self.tokenizer),
            "columns": columns,
            "max_length": self.max_length,
        }
        return cached_map(
            dataset,
            lambda rows: self.tokenizer(
                *(rows[c] for c in columns), truncation=True, max_length=self.max_length
            ),
            key,
            cache,
            keep=("label",),
        )

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that scores logits."""
        return ClassificationTrainer(**kwargs)

    def arguments(self) -> dict[str, Any]:
        """Nothing beside what every run has."""
        return {}


def first_output(logits: Any, labels: Tensor) -> Tensor:
    """Take the logits of a model that returns more (GPT-2's states): (N, classes)."""
    return logits[0] if isinstance(logits, tuple) else logits
