"""Language modelling: running text in blocks, scored by its perplexity.

Source: as in HyperMoE's experiments with GPT-2 (PROTOCOL.md II.2).
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn
from transformers import default_data_collator
from transformers.trainer_utils import EvalLoopOutput

from moe_runner.backbones.loading import load_causal
from moe_runner.backbones.weights import Weights
from moe_runner.runs import processes
from moe_runner.runs.run import Run
from moe_runner.tasks.cache import cached_map, tokenizer_content
from moe_runner.tasks.specs import TaskData
from moe_runner.training.forms.instruct import response_losses
from moe_runner.training.trainer import RunTrainer


class PerplexityTrainer(RunTrainer):
    """Score by the loss alone: logits over the vocabulary are not kept."""

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute the loss of a batch, or in several processes that of each block.

        Blocks that fill up the last batches come twice, and are dropped only by themselves.
        """
        if processes.world_size() == 1:
            return super().prediction_step(model, inputs, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits_BLV = model(input_ids=inputs["input_ids"]).logits
        losses_B, tokens_B = response_losses(logits_BLV, inputs["labels"])
        return None, losses_B / tokens_B, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Add the perplexity, exp of the mean loss; all blocks have the same length."""
        found = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if found.predictions is not None:
            found.metrics[f"{prefix}_loss"] = float(found.predictions.mean())
        perplexity = math.exp(min(found.metrics[f"{prefix}_loss"], 700.0))
        found.metrics.update({f"{prefix}_perplexity": perplexity, f"{prefix}_primary": perplexity})
        return found


class LanguageModelling:
    """See `Form`: the texts of a column, one after the other, in blocks."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        self.block_size = run.task.tokens(run.model)
        self.backbone = load_causal(run.model, weights)

    @staticmethod
    def collator(blocks: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, int64 (B, block_size); the labels are the tokens: the model shifts them."""
        batch = default_data_collator(blocks)
        return {**batch, "labels": batch["input_ids"].clone()}

    def encode(
        self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None
    ) -> Dataset:
        """Tokenize, join and cut into blocks; what does not fill the last one is left out.

        No begin or end token is put in, since a row of the data is a line, not a document.

        Raises:
            ValueError: if there is not enough text for one block.
        """
        (column,) = columns
        tokenizer, size = self.backbone.processor, self.block_size
        rest: list[int] = []  # tokens that wait for the next rows

        def blocks(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            found = tokenizer(rows[column], add_special_tokens=False, verbose=False)["input_ids"]
            tokens = [*rest, *chain.from_iterable(found)]
            end = len(tokens) - len(tokens) % size
            rest[:] = tokens[end:]
            return {"input_ids": [tokens[i : i + size] for i in range(0, end, size)]}

        key = {
            "form": "language_modelling",
            "tokenizer": tokenizer_content(tokenizer),
            "column": column,
            "block_size": size,
        }
        features = Features({"input_ids": List(Value("int32"))})
        packed = cached_map(dataset, blocks, key, cache, features=features)
        if not len(packed):
            raise ValueError(
                f"the text has fewer tokens than task.block_size={size}; use a smaller one"
            )
        return packed

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that computes the perplexity."""
        return PerplexityTrainer(**kwargs)

    def arguments(self) -> dict[str, Any]:
        """Keep no logits."""
        return {"prediction_loss_only": True}
