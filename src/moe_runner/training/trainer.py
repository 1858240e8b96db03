"""The Hugging Face Trainer with our checkpoints, parameter groups and routing figures."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Seq2SeqTrainingArguments, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PredictionOutput

from moe_runner.conversion.counts import moe_layers
from moe_runner.files import writing_tensors
from moe_runner.moe.layer import auxiliary_loss
from moe_runner.runs import processes, stopping
from moe_runner.runs.store import RunFolder
from moe_runner.training.checkpoint import (
    is_sharded,
    load_trained,
    reading,
    save_state,
    trained_state,
)
from moe_runner.training.routing import (
    compare_norms,
    count_load,
    is_near_collapse,
    last_norms,
    same_noise,
    sum_norms,
    summarise,
)
from moe_runner.training.tracking import Tracker

WORKER_GRACE = 60  # seconds that a data loader process outlives a signal to end


class RunTrainer(Trainer):
    """A Trainer for one run.

    Args:
        folder: of the run; every evaluation during training adds a line to its metrics.jsonl.
        metric_names: of the task; the primary one is their mean.
        lr_scales: what the learning rate is multiplied by, by parameter name.
        **kwargs: see transformers.Trainer.
    """

    optimizer: torch.optim.Optimizer | None
    by_length = False  # whether an evaluation may take the examples in the order of their lengths

    def __init__(
        self,
        *,
        folder: RunFolder,
        metric_names: tuple[str, ...],
        lr_scales: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.tracker = Tracker()
        self.metric_names = metric_names
        self.lr_scales = lr_scales
        self.order: np.ndarray | None = None  # of the examples in the last evaluation; None: theirs
        self.evaluation_seconds = 0.0  # within training
        self.data_seconds = 0.0  # in which training waited for a batch
        self.auxiliary: list[Tensor] = []  # losses of the micro-batches since the last log
        self.warned = False  # of a HyperExpert that outgrows the experts
        # The losses are means over a micro-batch: the Trainer must divide by their number. It
        # infers otherwise from the **kwargs of the models' signatures. A form with answers of
        # different lengths says True: the loss is then a mean over all tokens of an update.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Compute the task's loss; in training the routers' auxiliary losses are added to it."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:  # an evaluation reports the task's loss
            return found
        extra = auxiliary_loss(self.model)
        if extra is None:
            return found
        self.auxiliary.append(extra.detach())
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            # The task's loss is divided by the tokens of the whole update already; the auxiliary
            # losses are means over a micro-batch, so theirs is the mean over the update.
            extra = extra / self.current_gradient_accumulation_steps
        if isinstance(found, tuple):
            return found[0] + extra, *found[1:]
        return found + extra

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; several processes are told whether to look for parameters without a gradient."""
        if processes.world_size() > 1 and not self.is_fsdp_enabled:
            self.accelerator.ddp_handler.find_unused_parameters = self.has_idle_parameters()
        return super().train(*args, **kwargs)

    def has_idle_parameters(self) -> bool:
        """Tell whether some of what trains gets no gradient, such as the mask token of DINOv2.

        One example goes forward and back, without dropout; no state is changed.
        """
        training = self.model.training
        self.model.eval()
        inputs = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
        with torch.random.fork_rng(), self.compute_loss_context_manager():
            self.compute_loss(self.model, inputs).backward()
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        found = any(parameter.grad is None for parameter in parameters)
        self.model.zero_grad(set_to_none=True)
        self.model.train(training)
        return found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make AdamW with a group for each (weight decay, learning rate)."""
        if self.optimizer is None:
            module = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((decay, self.lr_scales[name]), []).append(parameter)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, module)
            self.optimizer = optimizer_class(
                [
                    {"params": p, "weight_decay": decay, "lr": self.args.learning_rate * scale}
                    for (decay, scale), p in groups.items()
                ],
                **settings,
            )
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and write the figures and the load of every layer into metrics.jsonl.

        Raises:
            FloatingPointError: if the loss or the primary metric is no number: of a run that
                diverged before its loss was logged. A model that writes answers has a score even
                then.
        """
        started = time.monotonic()
        with count_load(self.model) as loads, sum_norms(self.model) as norms:
            found = super().evaluate(*args, **kwargs)
        if math.isnan(found["eval_primary"]):
            raise self.diverged("the primary metric of an evaluation", found["eval_primary"])
        if not math.isfinite(found["eval_loss"]):
            raise self.diverged("the loss of an evaluation", found["eval_loss"])
        routing = {**summarise(loads), **compare_norms(norms)}
        self.watch(routing)
        further = self.further_figures()
        self.evaluation_seconds += time.monotonic() - started
        line = {
            "step": self.state.global_step,
            "epoch": round(self.state.epoch or 0.0, 4),
            "split": kwargs.get("metric_key_prefix", "eval"),
            **{name: float(found[f"eval_{name}"]) for name in (*self.metric_names, "primary")},
            "loss": float(found["eval_loss"]),
            **routing,
            **further,
            "load": [load.tolist() for load in loads],
        }
        if self.is_world_process_zero():
            self.folder.log_metrics(line)
            self.tracker.evaluated(self.state.global_step, routing)
        return found

    def watch(self, figures: Mapping[str, float]) -> None:
        """Warn, once, if a HyperExpert outgrows the experts; see `is_near_collapse`."""
        if not self.warned and self.is_world_process_zero():
            self.warned = is_near_collapse(self.model, figures, self.state.global_step)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with the same noise each time, see `same_noise`."""
        with same_noise(self.model, self.args.seed):
            return super().evaluation_loop(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """Take texts of like length together, the longest first: less padding."""
        self.order = None
        if not self.by_length or depends_on_batch(self.model):
            return SequentialSampler(eval_dataset)
        lengths = np.array([len(ids) for ids in eval_dataset["input_ids"]])
        self.order = np.argsort(-lengths, kind="stable")
        return InOrder(self.order)

    def in_order(self, rows: Any) -> Any:
        """Put what was predicted into the order of the data set.

        Args:
            rows: an array of the evaluation that has just ended, (N, ...).
        """
        if self.order is None or len(rows) != len(self.order):
            return rows
        found = np.empty_like(rows)
        found[self.order] = rows
        return found

    def further_figures(self) -> dict[str, Any]:
        """Measure what an evaluation is to record besides; nothing, unless a form has more."""
        return {}

    def plain_facts(self, found: PredictionOutput) -> tuple[float | None, bool | None]:
        """Score who needs no input, and tell whether all answers are one; None: not known.

        Args:
            found: of `predict`.

        Returns:
            See `Scores.majority` and `Scores.constant`.
        """
        return None, None

    def tokens_seen(self) -> int:
        """Count the tokens that were trained on, padding left out."""
        return int(self.state.num_input_tokens_seen)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the batches of an update, and the time for it."""
        started = time.monotonic()
        found = super().get_batch_samples(*args, **kwargs)
        self.data_seconds += time.monotonic() - started
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop a run that has diverged.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if not math.isfinite(logs.get("loss", 0.0)):
            raise self.diverged("the loss", logs["loss"])
        if "loss" in logs:  # not the logs of an evaluation
            norms = last_norms(self.model)
            self.watch(norms)
            logs = {**logs, **norms}
            if self.auxiliary:
                logs["aux/loss"] = float(torch.stack(self.auxiliary).mean())
                self.auxiliary = []
        super().log(logs, start_time)

    def diverged(self, what: str, value: float) -> FloatingPointError:
        """Word the end of a run whose figures are no longer numbers."""
        return FloatingPointError(
            f"{what} is {value} at update {self.state.global_step}; "
            "use a smaller trainer.learning_rate"
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing_tensors(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save what trains, and nothing that AutoModel could take for a model."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save or is_sharded(self.model):
            state = trained_state(self.model)
        if self.args.should_save:
            if folder.is_dir() and not folder.is_symlink():  # of a save that was cut short
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            save_state(state, folder)
        processes.wait()  # the others write their random states into the folder

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        with reading(Path(resume_from_checkpoint)):
            load_trained(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        """Leave it to `load_best`, which goes by the step: the path may be of another folder."""

    def load_best(self) -> int:
        """Load the weights of the best epoch.

        Returns:
            Its update.
        """
        processes.wait()
        step = self.state.best_global_step
        assert step is not None  # every epoch is evaluated, to a number
        load_trained(self.model, Path(self.args.output_dir) / f"checkpoint-{step}")
        return step

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = super()._get_dataloader(*args, **kwargs)
        if self.args.dataloader_num_workers:
            base = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
            base.worker_init_fn = partial(outlive_signals, base.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        data = self.train_dataset if train_dataset is None else train_dataset
        return GroupedByLength(
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            [len(ids) for ids in data["input_ids"]],
            self.args.seed,
        )


def outlive_signals(begin: Callable[[int], None] | None, worker: int) -> None:
    """Let a data loader process live on for a while after a signal to end.

    A cluster sends it to all processes of a job; training needs its data up to the next checkpoint.

    Args:
        begin: what the process does at its start besides.
        worker: its number.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in stopping.SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(WORKER_GRACE))
    if begin is not None:
        begin(worker)


def depends_on_batch(model: nn.Module) -> bool:
    """Tell whether what comes out for an example depends on those beside it in the batch.

    It does where experts have a capacity, and where noise is drawn for every place of a batch.
    """
    if any(getattr(module, "jitter_in_evaluation", False) for module in model.modules()):
        return True
    return any(layer.capacity.factor is not None for layer in moe_layers(model))


class InOrder(Sampler[int]):
    """Gives rows in an order.

    Args:
        order: of the rows, int (N,).
    """

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())


class GroupedByLength(LengthGroupedSampler):
    """Batches of similar length, drawn anew in every epoch, whichever epoch one starts with.

    The library's own sampler draws from the global generator, so a resumed run gets other batches.

    Args:
        batch_size: examples of one update.
        lengths: tokens of each example.
        seed: of the run.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Seed the generator; called by the data loader before each epoch."""
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)


def training_arguments(*, lower_is_better: bool, **kwargs: Any) -> Seq2SeqTrainingArguments:
    """Make the Trainer's settings that are the same for every run, with the given ones added.

    Args:
        lower_is_better: the best evaluation is the one with the smallest primary metric.
        **kwargs: see transformers.Seq2SeqTrainingArguments, whose own options only matter to the
            forms that generate text.
    """
    return Seq2SeqTrainingArguments(
        save_total_limit=2,  # the best and the newest: one of them survives a kill while saving
        load_best_model_at_end=True,
        metric_for_best_model="eval_primary",
        greater_is_better=not lower_is_better,
        restore_callback_states_from_checkpoint=True,  # or resume is not bit-exact
        logging_steps=10,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        optim="adamw_torch_fused",  # the library's default; one kernel instead of 10 per parameter
        **kwargs,
    )
