"""Classification of images from several domains, as DomainBed trains and scores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from moe_runner import metrics
from moe_runner.backbones.drop_path import add_drop_path
from moe_runner.backbones.loading import load_image_classifier
from moe_runner.backbones.weights import Weights
from moe_runner.runs.run import Run
from moe_runner.tasks.images import DomainData
from moe_runner.tasks.specs import TaskData
from moe_runner.training.images import Collator, DomainSampler, ImageRows, ShuffledSampler
from moe_runner.training.trainer import RunTrainer


class DomainTrainer(RunTrainer):
    """Train on a minibatch per domain with Adam; score every domain by itself.

    Args:
        others: "<domain>/in", "<domain>/out" -> what every checkpoint is measured on besides.
        tokens_per_image: of the backbone.
        once_an_epoch: draw every image once an epoch, instead of as many of every domain.
        **kwargs: see `RunTrainer`.
    """

    def __init__(
        self,
        *,
        others: dict[str, ImageRows],
        tokens_per_image: int,
        once_an_epoch: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(compute_metrics=self.compute_task_metrics, **kwargs)
        self.others, self.tokens_per_image = others, tokens_per_image
        self.once_an_epoch = once_an_epoch
        self.domain = np.empty(0, dtype=np.int64)  # of the rows that are being evaluated

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Remember the domains of the rows, then evaluate."""
        assert isinstance(dataloader.dataset, ImageRows)
        self.domain = dataloader.dataset.domain
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def compute_task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute each metric as the mean over domains, whatever their sizes."""
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        found = [
            metrics.compute(logits[self.domain == d], labels[self.domain == d], self.metric_names)
            for d in np.unique(self.domain)
        ]
        values = {name: float(np.mean([f[name] for f in found])) for name in self.metric_names}
        return {**values, "primary": metrics.primary(values)}

    def further_figures(self) -> dict[str, Any]:
        """Measure both splits of every domain: what the selection rules read."""
        accuracy: dict[str, dict[str, float]] = {}
        for name, rows in self.others.items():
            domain, split = name.rsplit("/", 1)
            output = self.evaluation_loop(
                self.get_eval_dataloader(rows), name, metric_key_prefix=""
            )
            assert output.metrics is not None
            accuracy.setdefault(domain, {})[split] = float(output.metrics["_accuracy"])
        return {"domains": accuracy}

    def tokens_seen(self) -> int:
        """Count patches and [CLS], in all processes."""
        batches = self.state.global_step * self.args.gradient_accumulation_steps
        images = batches * self.args.train_batch_size * self.args.world_size
        return images * self.tokens_per_image

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Give Adam, whose weight decay is part of the gradient, as DomainBed has it."""
        _, settings = RunTrainer.get_optimizer_cls_and_kwargs(args, model)
        return torch.optim.Adam, settings

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Decay every parameter, as DomainBed does."""
        return [name for name, _ in model.named_parameters()]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        each = ShuffledSampler if self.once_an_epoch else DomainSampler
        return each(rows.domain, self.args.train_batch_size, self.args.seed)


class DomainGeneralisation:
    """See `Form`: an image, a class."""

    def __init__(self, run: Run, data: TaskData, weights: Weights) -> None:
        assert isinstance(data, DomainData)
        task = data.options
        assert task.image_size is not None  # resolved
        self.data = data
        self.backbone = load_image_classifier(run.model, weights, data.spec.labels, task.image_size)
        processor = self.backbone.processor
        self.collator = Collator(
            task.image_size, processor.image_mean, processor.image_std, task.augment
        )
        add_drop_path(self.backbone.model, task.drop_path)

    def encode(self, dataset: Dataset, columns: tuple[str, ...], cache: Path | None = None) -> Any:
        """Join the rows with their images, which the data have cached."""
        return ImageRows(dataset, self.data.arrays)

    def trainer(self, **kwargs: Any) -> RunTrainer:
        """Make a Trainer that measures every domain."""
        others = {
            name: ImageRows(rows, self.data.arrays) for name, rows in self.data.splits.items()
        }
        return DomainTrainer(
            others=others,
            tokens_per_image=self.tokens_per_image(),
            once_an_epoch=self.data.plain,
            **kwargs,
        )

    def tokens_per_image(self) -> int:
        """Count patches and what stands before them."""
        model: Any = self.backbone.model
        special = 1 + hasattr(model.base_model.embeddings, "distillation_token")  # DeiT
        assert self.data.options.image_size is not None  # resolved
        return (self.data.options.image_size // model.config.patch_size) ** 2 + special

    def arguments(self) -> dict[str, Any]:
        """Tell the Trainer what an image batch is like."""
        return {
            "include_num_input_tokens_seen": "no",
            "label_names": ["labels"],
            "remove_unused_columns": False,
        }
