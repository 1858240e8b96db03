"""Load a pretrained backbone with a new classification head, its tokenizer and padding token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_runner.backbones.weights import Weights
from moe_runner.config import ConfigError, Model


@dataclass
class Backbone:
    """A pretrained model with a head, and what turns text into its input.

    The head is the classifier, and a pooler that was not pretrained (a masked language model has
    none).
    """

    model: PreTrainedModel
    head: frozenset[str]  # parameters that the pretrained weights do not have
    tokenizer: PreTrainedTokenizerBase


def load_classifier(options: Model, weights: Weights, labels: tuple[str, ...]) -> Backbone:
    """Load a backbone for text classification or regression.

    The head is new; its weights come from torch's global generator, so seed before.

    Args:
        options: the backbone's options.
        weights: where it is.
        labels: class names in label order; empty for a regression (one output).

    Returns:
        The model in fp32 whatever the file's type, on the CPU.

    Raises:
        ConfigError: if the weights can't be had.
    """
    if weights.problem is not None:
        raise ConfigError(weights.problem)
    tokenizer = AutoTokenizer.from_pretrained(**weights.location)
    if tokenizer.pad_token is None:  # GPT-2, Llama
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    config = AutoConfig.from_pretrained(
        num_labels=len(labels) or 1,
        problem_type="single_label_classification" if labels else "regression",
        pad_token_id=tokenizer.pad_token_id,
        **weights.location,
    )
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    model, info = AutoModelForSequenceClassification.from_pretrained(
        config=config, dtype=torch.float32, output_loading_info=True, **weights.location
    )
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    outside = {name for name, p in model.named_parameters() if id(p) not in inside}
    return Backbone(model, frozenset(outside | set(info["missing_keys"])), tokenizer)
