"""Instruction tuning: a prompt is read, the loss is on the response alone; MMLU by the harness."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput

from moe_runner.backbones.loading import load_causal
from moe_runner.backbones.weights import Weights
from moe_runner.options.errors import ConfigError
from moe_runner.runs.run import Run
from moe_runner.tasks import mmlu
from moe_runner.tasks.cache import cached_map, tokenizer_content
from moe_runner.tasks.instructions import InstructData, prompt
from moe_runner.tasks.specs import TaskData
from moe_runner.training.trainer import RunTrainer

log = logging.getLogger(__name__)

IGNORED = -100  # label of a token that is not predicted


class InstructTrainer(RunTrainer):
    """Score by the perplexity per response token, and MMLU by its accuracy.

    Args:
        form: has the tokenizer, and the number of solved examples of MMLU.
        **kwargs: see `RunTrainer`.
    """

    def __init__(self, *, form: Instruct, **kwargs: Any) -> None:
        super().__init__(compute_metrics=self.compute_task_metrics, **kwargs)
        self.form = form
        # Responses differ in length: the loss of an update is the mean over all of its response
        # tokens, those of other micro-batches and processes too.
        self.model_accepts_loss_kwargs = True

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[None, Tensor, Tensor]:
        """Sum the log-likelihoods of the response tokens of each example.

        Returns:
            None (no mean of means), negative log-likelihoods float64 (B,), tokens int64 (B,).
        """
        inputs = self._prepare_inputs(inputs)
        labels_BL = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits_BLV = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        return None, *response_losses(logits_BLV, labels_BL)

    def compute_task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the mean loss over all response tokens, and its exp, the perplexity."""
        loss = float(prediction.predictions.sum() / prediction.label_ids.sum())
        perplexity = math.exp(min(loss, 700.0))
        return {"loss": loss, "perplexity": perplexity, "primary": perplexity}

    def predict(
        self, test_dataset: Dataset, *args: Any, metric_key_prefix: str = "test", **kwargs: Any
    ) -> PredictionOutput:
        """Score a data set; the questions of MMLU by lm-evaluation-harness."""
        if "choices" not in test_dataset.column_names:
            kwargs["metric_key_prefix"] = metric_key_prefix
            return super().predict(test_dataset, *args, **kwargs)
        from moe_runner.training.harness import evaluate  # lm_eval: seconds, and an extra

        found = evaluate(
            self.model,
            self.form.backbone.processor,
            test_dataset,
            shots=self.form.shots,
            batch_size=self.args.eval_batch_size,
            precision=torch.bfloat16 if self.args.bf16 else None,
            after_batch=self.tell_batch,
        )
        self.callback_handler.on_predict(self.args, self.state, self.control, found)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return PredictionOutput(predictions=None, label_ids=None, metrics=metrics)

    def tell_batch(self, batches: int) -> None:
        """Tell the callbacks of a batch that the harness has evaluated, as the Trainer does."""
        handler = self.callback_handler
        if handler.eval_dataloader != range(batches):
            handler.eval_dataloader = range(batches)
        handler.on_prediction_step(self.args, self.state, self.control)


def response_losses(logits_BLV: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the negative log-likelihoods of the labelled tokens of each example.

    Args:
        logits_BLV: float (B, L, V); those at a position predict the next one.
        labels_BL: int64 (B, L), `IGNORED` where nothing is predicted.

    Returns:
        float64 (B,) and the number of tokens, int64 (B,).
    """
    sums, counts = [], []
    for logits_LV, labels_L in zip(logits_BLV[:, :-1], labels_BL[:, 1:], strict=True):
        wanted = labels_L != IGNORED  # of the prompt's positions no softmax is needed
        losses = functional.cross_entropy(
            logits_LV[wanted].float(), labels_L[wanted], reduction="none"
        )
        sums.append(losses.double().sum())
        counts.append(wanted.sum())
    return torch.stack(sums), torch.stack(counts)


class Instruct:
    """See `Form`: an instruction with its input, and the response."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        assert isinstance(data, InstructData)
        self.template, self.max_length = data.options.template, data.options.max_length
        self.shots = data.options.shots
        self.backbone = load_causal(run.model, weights)
        if self.backbone.processor.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of model={run.model.name} has no end token, so that no response "
                "would end; add eos_token to its tokenizer_config.json"
            )
        self.collator = DataCollatorForSeq2Seq(self.backbone.processor, label_pad_token_id=IGNORED)

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Tokenize prompt, response and end token; what is over `max_length` is cut off.

        Records whose prompt leaves no room for a response are left out, with a warning. MMLU stays
        as it is: the harness tokenizes it.

        Raises:
            ValueError: if no record is left.
        """
        if columns == mmlu.COLUMNS:
            return dataset
        tokenizer, template, max_length = self.backbone.processor, self.template, self.max_length

        def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
            records = [
                dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)
            ]
            found = [encode_record(each, tokenizer, template, max_length) for each in records]
            return {name: [each[name] for each in found] for name in found[0]}

        key = {
            "form": "instruct",
            "tokenizer": tokenizer_content(tokenizer),
            "template": template,
            "max_length": max_length,
        }
        encoded = cached_map(dataset, encode, key, cache)
        fits = [i for i, length in enumerate(encoded["prompt_tokens"]) if length < self.max_length]
        left_out = len(encoded) - len(fits)
        if not fits:
            raise ValueError(
                f"the prompts of all {left_out} records fill task.max_length={self.max_length}; "
                "use a larger one, or task.template=plain"
            )
        if left_out:
            log.warning(
                "  %d of %d records are left out: their prompt fills task.max_length=%d",
                left_out,
                len(encoded),
                self.max_length,
            )
        return encoded.select(fits).remove_columns("prompt_tokens")

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that scores responses."""
        return InstructTrainer(form=self, **kwargs)

    def arguments(self) -> dict[str, Any]:
        """Nothing beside what every run has."""
        return {}


def encode_record(
    row: dict[str, str], tokenizer: PreTrainedTokenizerBase, template: str, max_length: int
) -> dict[str, Any]:
    """Tokenize one record.

    Args:
        row: instruction, input and output.
        tokenizer: with an end token, which the response ends in.
        template: see `tasks.instructions.TEMPLATES`.
        max_length: tokens that are kept, from the start.

    Returns:
        The model's arguments, `labels` being `IGNORED` over the prompt, and `prompt_tokens`.
    """
    before = tokenizer(prompt(template, row["instruction"], row["input"]))["input_ids"]
    end = tokenizer.eos_token_id
    if before and before[-1] == end:  # a tokenizer that ends every text
        before = before[:-1]
    response = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
    ids = [*before, *response, end]
    return {
        "input_ids": ids[:max_length],
        "attention_mask": [1] * len(ids[:max_length]),
        "labels": [*[IGNORED] * len(before), *ids[len(before) :]][:max_length],
        "prompt_tokens": len(before),
    }
