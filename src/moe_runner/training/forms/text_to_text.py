"""Text to text: the task's name and its columns are read, the answer is generated.

A class is answered by the digit of its label, a score by a number rounded to 0.2.

Source: HyperMoE's experiments with Switch Transformers (PROTOCOL.md II.2), after T5,
arXiv:1910.10683.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, EvalPrediction, GenerationConfig, Seq2SeqTrainer

from moe_runner.backbones.loading import load_text_to_text
from moe_runner.backbones.weights import Weights
from moe_runner.config import TextTask
from moe_runner.runs.run import Run
from moe_runner.tasks import metrics
from moe_runner.tasks.base import TaskData
from moe_runner.tasks.cache import cached_map, tokenizer_content
from moe_runner.training.trainer import RunTrainer

LABEL_TOKENS = 8  # most tokens of a generated label
STEP = 0.2  # scores are rounded to multiples of it


class GeneratingTrainer(RunTrainer, Seq2SeqTrainer):
    """Score what the model generates.

    Args:
        form: turns tokens into answers.
        **kwargs: see `RunTrainer`.
    """

    def __init__(self, *, form: TextToText, **kwargs: Any) -> None:
        super().__init__(compute_metrics=self.compute_task_metrics, **kwargs)
        self.form = form

    def compute_task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the task's metrics and `primary`."""
        values = self.form.score(prediction.predictions, prediction.label_ids, self.metric_names)
        return {**values, "primary": metrics.primary(values)}


class TextToText:
    """See `Form`: one or two texts; the answer is the digit of a class, or a rounded score."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        assert isinstance(run.task, TextTask)
        self.name, self.num_labels = data.spec.name, len(data.spec.labels)
        self.max_length = run.task.max_length
        self.backbone = load_text_to_text(run.model, weights)
        self.collator = DataCollatorForSeq2Seq(self.backbone.processor, self.backbone.model)

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Tokenize "<task> <column>: <text> ..." and the answer."""
        tokenizer = self.backbone.processor

        def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
            texts = zip(*(rows[column] for column in columns), strict=True)
            sources = [source_text(self.name, columns, each) for each in texts]
            answers = [self.answer(label) for label in rows["label"]]
            encoded = tokenizer(sources, truncation=True, max_length=self.max_length)
            return {**encoded, "labels": tokenizer(text_target=answers)["input_ids"]}

        key = {
            "form": "text_to_text",
            "tokenizer": tokenizer_content(tokenizer),
            "task": self.name,
            "columns": columns,
            "max_length": self.max_length,
            "step": STEP,
        }
        return cached_map(dataset, encode, key, cache)

    def answer(self, label: float) -> str:
        """Write a label as the text that is to be generated."""
        return str(label) if self.num_labels else f"{round(label / STEP) * STEP:.1f}"

    def score(
        self, predicted: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
    ) -> dict[str, float]:
        """Compare generated answers with the right ones.

        An answer that is no label counts as a wrong class; one that is no number as the score 0.

        Args:
            predicted: tokens, int (N, length), filled up with -100 or padding.
            labels: the same of the right answers.
            names: of the metrics.

        Returns:
            Metric -> value.
        """
        given, right = self.texts(predicted), self.texts(labels)
        if not self.num_labels:
            scores = [number(text, 0.0) for text in given]
            return metrics.compare(np.array(scores), np.array([float(t) for t in right]), names)
        classes = np.array([int(text) for text in right])
        digits = {str(label): label for label in range(self.num_labels)}
        chosen = [
            digits.get(text.strip(), (true + 1) % self.num_labels)
            for text, true in zip(given, classes, strict=True)
        ]
        return metrics.compare(np.array(chosen), classes, names)

    def texts(self, tokens: np.ndarray) -> list[str]:
        """Decode tokens, padding and special ones left out."""
        tokenizer = self.backbone.processor
        filled = np.where(tokens < 0, tokenizer.pad_token_id, tokens)
        return [str(text) for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that generates and scores answers."""
        return GeneratingTrainer(form=self, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """Generate greedily in evaluations."""
        model = self.backbone.model
        assert model.generation_config is not None
        generation = GenerationConfig(
            max_new_tokens=LABEL_TOKENS,
            pad_token_id=model.config.pad_token_id,
            eos_token_id=model.config.eos_token_id,
            decoder_start_token_id=model.config.decoder_start_token_id,
        )
        return {"predict_with_generate": True, "generation_config": generation}


def source_text(task: str, columns: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """Write what the model reads: "mrpc sentence1: ... sentence2: ..."."""
    parts = [f"{column}: {text}" for column, text in zip(columns, texts, strict=True)]
    return " ".join([task, *parts])


def number(text: str, otherwise: float) -> float:
    """Read a number, or take another where there is none."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if np.isfinite(value) else otherwise
