"""How a run trains: which parameters, which settings of the loop, what is searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moe_runner.options.fields import (
    REQUIRED,
    Count,
    Fraction,
    NotNegative,
    Number,
    Positive,
    Seed,
    later,
    runtime,
)

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which parameters train, and how fast."""

    name: Literal["full", "lora", "lora_block"]
    learning_rate: Positive = runtime(REQUIRED)  # for trainer.learning_rate=null
    learning_rates: tuple[Positive, ...] = runtime(REQUIRED)  # what search=paper tries
    rank: Count | None = None
    alpha: Count | None = None
    dropout: Fraction | None = None
    new_modules_lr_scale: Positive = 1.0  # learned routers, copied experts, hypernetworks
    blocks: str | tuple[int, ...] | None = later(None)  # lora_block of a dense model: see `layers`


@dataclass(frozen=True, kw_only=True)
class Search:
    """Learning rates and seeds to try; empty lists: one run."""

    name: Literal["single", "paper"]
    tune_learning_rate: bool = False  # try tuning.learning_rates
    seeds: tuple[Seed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Settings of the training loop (Hugging Face Trainer)."""

    learning_rate: Positive | None = None  # None: tuning.learning_rate * model.lr_scale
    epochs: Count | None = None  # None here and below: the task's own number
    max_steps: Count | None = None  # updates
    batch_size: Count | None = None  # global, per update
    accumulate: Count = 1  # micro-batches per update; batch_size / accumulate go through at once
    eval_batch_size: Count | None = None
    eval_steps: Count | None = later(None)  # updates between evaluations; None: one per epoch
    weight_decay: NotNegative | None = None
    schedule: Schedule | None = None  # None: the task's own
    warmup_ratio: Fraction | None = None
    max_grad_norm: NotNegative = 1.0
    patience: Number | None = None  # evaluations without a better primary metric; 0: never stop
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    inference: Literal["plain", "kernel"] = later("plain")  # see `for_inference`
    evaluate_first: bool = later(False)  # the model before tuning, too
    time_inference: bool = later(False)  # forward passes in turns with the dense model's
    length_grouping: bool = False
    gradient_checkpointing: bool = runtime(False)  # computes activations twice, keeps fewer
    deterministic: bool = runtime(False)  # CUDA: deterministic kernels
    save_steps: Count | None = runtime(None)  # None: a checkpoint at the end of every epoch
    workers: Number = runtime(0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training of a task where the user gives nothing: what null means in `trainer`."""

    epochs: Mapping[str, int] = field(default_factory=dict)  # by tuning: {"full": 10, "lora": 20}
    max_steps: int | None = None  # updates; wins over the epochs
    learning_rate: float | None = None  # None: tuning.learning_rate * model.lr_scale
    batch_size: int = 32
    eval_batch_size: int = 64
    eval_steps: int | None = None  # None: an evaluation per epoch
    weight_decay: float = 0.0
    schedule: Schedule = "linear"  # of the learning rate
    warmup_ratio: float = 0.0  # of the updates
    batch_multiple: int = 1  # a batch takes as many examples of each of so many sources
    patience: int = 0  # evaluations without a better primary metric before training stops; 0: never
    max_length: int = 128  # tokens of a text that is classified
