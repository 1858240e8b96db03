"""The protocol: the papers' equations, or what the authors' code does beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moe_runner.options.fields import Count, Fraction, NotNegative, Positive, later


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is done beside the equations: nothing (`paper`), or what the authors' code does.

    Each option is off by default and can be switched on alone. Those of EMoE's code act on `emoe`,
    `emoe_learn` and `gmoe`, and not on Llama, whose code has none of them; those of HyperMoE's code
    act on `moe`, `moe_share`, `moe_adapter` and `hypermoe`, `load_threshold` on `emoe_learn` and
    `gmoe`, too, and `residual_dropout` on every method that converts.
    """

    name: Literal["paper", "reference"] = "paper"
    # EMoE's code
    gate_noise: NotNegative = later(0.0)  # in training, N(0, 1) * gate_noise / E on the scores
    capacity_factor: Positive | None = later(None)  # room of an expert; the rest is dropped
    fixed_gate_balance_loss: NotNegative = later(0.0)  # for emoe, whose router does not learn
    split_output_bias: bool = later(False)  # every expert has b / k of its own
    expert_dropout: Fraction = later(0.0)  # before the activation (vision: after it)
    scale_by_top_k: bool = later(True)  # emoe_learn: weights sum to k, so it starts at dense scale
    contiguous_random: bool = later(False)  # random experts: blocks in neuron order
    normalize_token: bool = later(False)  # method.normalize_gate: x has length 1 there, too
    train_outside_layers: bool = later(False)  # lora: also pooler, final norm
    train_gmoe_block: bool = later(False)  # lora: also the blocks that gmoe converts
    rest_lr_scale: Positive = later(1.0)  # lora: of pretrained weights that train beside LoRA
    whole_vision_bias: bool = later(False)  # gmoe's b is not split there
    one_expert_weight: Literal["one", "probability"] = later("one")  # top_k=1, a learned router
    # HyperMoE's code
    hypernet_per_stack: bool = later(False)  # encoder and decoder each have a hypernetwork
    sequence_capacity: Count | None = later(None)  # Switch: choices per expert and sequence
    dropped_tokens: Literal["zero", "input"] = later("zero")  # over capacity: 0, or weight * input
    jitter: Fraction = later(0.0)  # Switch: noise on the layer's input in training
    straight_through: bool = later(True)  # top_k=1: the router learns from the task's loss
    load_threshold: Literal["scores", "probabilities"] = later("scores")  # of the balance loss
    load_threshold_on: Literal["hypermoe", "all"] = later("all", neutral="hypermoe")  # see below
    hypernet_start: Literal["paper", "authors"] = later(
        "paper"
    )  # initial values, see `HyperNetwork`
    switch_losses: Literal["layer", "stack"] = later("layer")  # Switch: what shares router losses
    jitter_in_evaluation: bool = later(False)  # Switch: the noise is on there too
    residual_dropout: Literal["output", "experts"] = later("output")  # GPT-2: what it falls on

    # Options that came after runs with `protocol=reference` were stored: they are in a run's id
    # only if its method and backbone have what they act on, see `Method.later_protocol`.
    # `load_threshold_on` is no choice of its own: `load_threshold` had been without effect on
    # EMoE's methods, whose stored runs name it. It tells them from those where it has one.
    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "normalize_token",
            "whole_vision_bias",
            "one_expert_weight",
            "load_threshold_on",
            "hypernet_start",
            "switch_losses",
            "jitter_in_evaluation",
            "residual_dropout",
        }
    )

    def limited_to(self, acting: Set[str]) -> Protocol:
        """Switch off those of `LATER` that do not act: they change no number.

        Args:
            acting: those that do.
        """
        idle: dict[str, Any] = {
            field.name: field.metadata["neutral"]
            for field in dataclasses.fields(self)
            if field.name in self.LATER - acting
        }
        if self.load_threshold == "scores":
            idle["load_threshold_on"] = "hypermoe"
        return dataclasses.replace(self, **idle)
