"""How a run trains: which parameters, which settings of the loop, what is searched for."""

from __future__ import annotations

from dataclasses import dataclass
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
    length_grouping: bool = False
    gradient_checkpointing: bool = runtime(False)  # computes activations twice, keeps fewer
    deterministic: bool = runtime(False)  # CUDA: deterministic kernels
    save_steps: Count | None = runtime(None)  # None: a checkpoint at the end of every epoch
    workers: Number = runtime(0)
