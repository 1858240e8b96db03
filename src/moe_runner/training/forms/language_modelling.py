"""Language modelling: running text in blocks, scored by its perplexity.

Source: as in HyperMoE's experiments with GPT-2 (PROTOCOL.md II.2).
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from datasets import Dataset
from transformers import default_data_collator
from transformers.trainer_utils import EvalLoopOutput

from moe_runner.backbones.loading import load_causal
from moe_runner.backbones.weights import Weights
from moe_runner.config import LanguageModellingTask
from moe_runner.runs.run import Run
from moe_runner.tasks.base import TaskData
from moe_runner.training.trainer import RunTrainer


class PerplexityTrainer(RunTrainer):
    """Score by the loss alone: logits over the vocabulary are not kept."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Add the perplexity, exp of the mean loss; all blocks have the same length."""
        found = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        perplexity = math.exp(min(found.metrics[f"{prefix}_loss"], 700.0))
        found.metrics |= {f"{prefix}_perplexity": perplexity, f"{prefix}_primary": perplexity}
        return found


class LanguageModelling:
    """See `Form`: the texts of a column, one after the other, in blocks."""

    collator = staticmethod(default_data_collator)

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        assert isinstance(run.task, LanguageModellingTask)
        self.block_size = run.task.block_size
        self.backbone = load_causal(run.model, weights)

    def encode(self, dataset: Dataset, columns: tuple[str, ...]) -> Dataset:
        """Tokenize, join and cut into blocks; what does not fill the last one is left out.

        Raises:
            ValueError: if there is not enough text for one block.
        """
        (column,) = columns
        tokenizer = self.backbone.processor

        def blocks(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            tokens = list(chain.from_iterable(tokenizer(rows[column])["input_ids"]))
            starts = range(0, len(tokens) - self.block_size + 1, self.block_size)
            ids = [tokens[start : start + self.block_size] for start in starts]
            return {"input_ids": ids, "labels": ids}

        packed = dataset.map(
            blocks,
            batched=True,
            batch_size=len(dataset),
            remove_columns=dataset.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,
        )
        if not len(packed):
            raise ValueError(
                f"the text has fewer tokens than task.block_size={self.block_size}; "
                "use a smaller one"
            )
        return packed

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that computes the perplexity."""
        return PerplexityTrainer(**kwargs)

    def arguments(self) -> dict[str, Any]:
        """Keep no logits."""
        return {"prediction_loss_only": True}
