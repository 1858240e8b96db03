"""Text to text: what is read and what is generated are texts; see `tasks.texts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, EvalPrediction, GenerationConfig, Seq2SeqTrainer
from transformers.trainer_utils import PredictionOutput

from moe_runner import metrics
from moe_runner.backbones.loading import load_text_to_text
from moe_runner.backbones.weights import Weights
from moe_runner.runs.run import Run
from moe_runner.tasks.cache import cached_map, tokenizer_content
from moe_runner.tasks.specs import TaskData
from moe_runner.tasks.texts import answer_text, score, source_text
from moe_runner.training.trainer import RunTrainer

ENCODING = 1  # raised when the same settings would give other tokens
READ = ("input_ids", "attention_mask", "labels")  # by the model; other columns are for the scores


class GeneratingTrainer(RunTrainer, Seq2SeqTrainer):
    """Score what the model generates.

    Args:
        form: turns tokens into answers.
        **kwargs: see `RunTrainer`.
    """

    by_length = True

    def __init__(self, *, form: TextToText, **kwargs: Any) -> None:
        super().__init__(compute_metrics=self.compute_task_metrics, **kwargs)
        self.form = form
        self.scored: Dataset = self.eval_dataset

    def evaluate(self, eval_dataset: Dataset | None = None, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and remember on what: the scores need more than the model reads."""
        self.scored = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().evaluate(eval_dataset, **kwargs)

    def predict(self, test_dataset: Dataset, **kwargs: Any) -> Any:
        """Predict, and remember on what."""
        self.scored = test_dataset
        return super().predict(test_dataset, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; of several processes each has as many examples, and what is twice is dropped.

        Seq2SeqTrainer keeps the examples that fill up the last batches.
        """
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def compute_task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the task's metrics and `primary`, fractions in 0-1."""
        given = self.form.texts(self.in_order(prediction.predictions))
        values = self.form.score(given, self.scored, self.metric_names)
        return {**values, "primary": metrics.primary(values)}

    def plain_facts(self, found: PredictionOutput) -> tuple[float | None, bool | None]:
        """See `RunTrainer.plain_facts`; a free text and a mixture have no most frequent answer."""
        given = self.form.texts(np.asarray(found.predictions))
        answer = self.form.plain_answer(self.scored)
        if answer is None:
            return None, len(set(given)) == 1
        values = self.form.score([answer] * len(given), self.scored, self.metric_names)
        return metrics.primary(values), len(set(given)) == 1


class TextToText:
    """See `Form`: texts, answered by a text: the digit of a class, a rounded score, or free."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        self.spec = data.spec
        self.options = run.task.answers(data.spec.free_text)
        self.backbone = load_text_to_text(run.model, weights)
        self.pad = DataCollatorForSeq2Seq(self.backbone.processor, self.backbone.model)

    def collator(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of what the model reads."""
        return dict(self.pad([{name: row[name] for name in READ} for row in rows]))

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Tokenize sources and answers; `references` and `group` are kept for the scores."""
        tokenizer = self.backbone.processor
        longest, source_length = self.options.target_length, self.options.source_length

        def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
            texts = zip(*(rows[column] for column in columns), strict=True)
            sources = [source_text(self.spec, columns, each) for each in texts]
            answers = [answer_text(self.spec, label) for label in rows["label"]]
            encoded = tokenizer(sources, truncation=True, max_length=source_length)
            targets = tokenizer(text_target=answers, truncation=True, max_length=longest)
            return {
                **{name: encoded[name] for name in READ[:2]},
                "labels": targets["input_ids"],
                "references": rows.get("references") or [[answer] for answer in answers],
            }

        key = {
            "form": "text_to_text",
            "tokenizer": tokenizer_content(tokenizer),
            "task": self.spec.name,
            "template": self.spec.template,
            "labels": self.spec.labels,
            "step": self.spec.step,
            "columns": columns,
            "max_length": source_length,
            "longest": longest,
            "version": ENCODING,
        }
        return cached_map(dataset, encode, key, cache, keep=("group",))

    def score(
        self, given: Sequence[str], dataset: Dataset, names: tuple[str, ...]
    ) -> dict[str, float]:
        """Compare generated answers with the right ones.

        Args:
            given: the answers.
            dataset: encoded, in the same order.
            names: of the metrics.

        Returns:
            Metric -> value.
        """
        groups = list(dataset["group"]) if "group" in dataset.column_names else None
        return score(self.spec, given, list(dataset["references"]), groups, names)

    def plain_answer(self, dataset: Dataset) -> str | None:
        """Find the answer of who reads nothing: the most frequent class, or the mean score.

        Args:
            dataset: encoded.

        Returns:
            None where texts are free, or of several tasks.
        """
        if self.spec.free_text or self.spec.parts:
            return None
        right = [texts[0] for texts in dataset["references"]]
        if self.spec.labels:
            return Counter(sorted(right)).most_common(1)[0][0]
        return answer_text(self.spec, fmean(map(float, right)))

    def texts(self, tokens: np.ndarray) -> list[str]:
        """Decode tokens, int (N, length), -100 and padding and special ones left out."""
        tokenizer = self.backbone.processor
        filled = np.where(tokens < 0, tokenizer.pad_token_id, tokens)
        decoded = tokenizer.batch_decode(filled, skip_special_tokens=True)
        return [str(text).strip() for text in decoded]

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that generates and scores answers."""
        return GeneratingTrainer(form=self, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """Generate in evaluations, as the task's options say."""
        config = self.backbone.model.config
        generation = GenerationConfig(
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            **self.options.search,
        )
        return {"predict_with_generate": True, "generation_config": generation}
