"""Load a pretrained backbone with the head that a form of task needs, and its tokenizer."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_runner.backbones.loaded import check_loaded, renew_head, some
from moe_runner.backbones.weights import Weights
from moe_runner.files import is_starved, read_json
from moe_runner.options.errors import ConfigError
from moe_runner.options.model import Model
from moe_runner.registry import FAMILIES

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
UNUSED = 0.9  # a tokenizer with a smaller share of the embedding's rows is suspicious


@dataclass
class Backbone:
    """A pretrained model with a head, and what turns text into its input.

    The head is what was not pretrained: a classifier, and the pooler of a masked language model.
    """

    model: PreTrainedModel
    head: frozenset[str]  # parameters that the pretrained weights do not have
    processor: Any


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
    tokenizer = load_tokenizer(options, weights)
    config = AutoConfig.from_pretrained(
        num_labels=len(labels) or 1,
        problem_type="single_label_classification" if labels else "regression",
        **weights.location,
    )
    pad = tokenizer.pad_token_id
    if pad < config.get_text_config().vocab_size:  # else the embedding has to grow first
        config.pad_token_id = pad
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    model, info = read_model(AutoModelForSequenceClassification, weights, config)
    renew_head(model, info, weights.origin)
    fit_vocabulary(model, tokenizer, weights)
    model.config.pad_token_id = pad
    return Backbone(model, outside_backbone(model) | set(info["missing_keys"]), tokenizer)


def load_image_classifier(
    options: Model, weights: Weights, labels: tuple[str, ...], image_size: int
) -> Backbone:
    """Load a backbone for image classification, with a new head; see `load_classifier`.

    Args:
        options: the backbone's options.
        weights: where it is.
        labels: class names in label order.
        image_size: pixels a side; positions are interpolated where the backbone had another.

    Returns:
        The model in fp32, on the CPU; the processor holds mean and std of the channels.

    Raises:
        ConfigError: if the weights can't be had, or the patches do not fit the size.
    """
    if weights.problem is not None:
        raise ConfigError(weights.problem)
    FAMILIES[options.family].classes()
    processor = AutoImageProcessor.from_pretrained(backend="pil", **weights.location)
    config = AutoConfig.from_pretrained(
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        **weights.location,
    )
    if image_size % config.patch_size:
        raise ConfigError(
            f"task.image_size={image_size} does not divide by the {config.patch_size} pixels of a "
            f"patch of model={options.name}; use a multiple of {config.patch_size}"
        )
    config.architectures = []  # a distilled DeiT says a class that cannot be trained
    model, info = read_model(AutoModelForImageClassification, weights, config)
    if image_size != config.image_size and not FAMILIES[options.family].any_image_size:
        resize_positions(model, image_size)
    new = outside_backbone(model) | set(info["missing_keys"])
    with torch.no_grad():  # also where the pretrained head happens to have as many classes
        for owner in dict.fromkeys(
            name.rpartition(".")[0] for name in sorted(outside_backbone(model))
        ):
            layer: Any = model.get_submodule(owner)
            layer.weight.normal_(0.0, config.initializer_range)
            layer.bias.zero_()
    return Backbone(model, new, processor)


UNREADABLE = (  # what transformers raises for files and settings that make no model
    OSError, ValueError, RuntimeError, KeyError, ArithmeticError, SafetensorError, UnpicklingError,
)  # fmt: skip


def read_model(
    auto_class: Any, weights: Weights, config: Any = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model in fp32 and check that its backbone is what the files hold.

    Args:
        auto_class: of transformers.
        weights: where it is.
        config: None: that of the files.

    Returns:
        The model, and the loading info of transformers.

    Raises:
        ConfigError: if a file cannot be read, or does not hold the backbone; see `check_loaded`.
    """
    try:
        model, info = auto_class.from_pretrained(
            **({} if config is None else {"config": config}),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # of a head; `check_loaded` looks at the backbone
            **weights.location,
        )
    except UNREADABLE as error:
        if is_starved(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        if "weights_only" in str(error) or isinstance(error, UnpicklingError):
            reason = (
                "its .bin file holds more than tensors, which is never unpickled here; save the "
                "model as safetensors where you trust it: model.save_pretrained(<folder>)"
            )
        raise ConfigError(f"{weights.origin} cannot be loaded: {reason}") from error
    check_loaded(model, info, weights.origin)
    return model, info


def outside_backbone(model: PreTrainedModel) -> frozenset[str]:
    """Name the parameters that are not the bare backbone's: the head."""
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    return frozenset(name for name, p in model.named_parameters() if id(p) not in inside)


def resize_positions(model: PreTrainedModel, image_size: int) -> None:
    """Interpolate the positions of a ViT's patches (bicubic), in place.

    Args:
        model: with an image classification head.
        image_size: pixels a side, from now on.
    """
    embeddings: Any = model.base_model.embeddings
    patches: Any = embeddings.patch_embeddings
    positions = embeddings.position_embeddings.data  # (1, special + patches, d_model)
    special = positions.shape[1] - patches.num_patches
    old, new = (size // model.config.patch_size for size in (model.config.image_size, image_size))
    grid = positions[:, special:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic")
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)
    resized = torch.cat([positions[:, :special], grid], dim=1)
    embeddings.position_embeddings = torch.nn.Parameter(resized)
    patches.num_patches = new * new
    patches.image_size = embeddings.image_size = (image_size, image_size)
    model.config.image_size = image_size


def load_causal(options: Model, weights: Weights) -> Backbone:
    """Load a backbone that predicts the next token.

    Args:
        options: the backbone's options.
        weights: where it is.

    Returns:
        The model in fp32 whatever the file's type, on the CPU.

    Raises:
        ConfigError: if the weights can't be had.
    """
    tokenizer = load_tokenizer(options, weights)
    return with_language_head(AutoModelForCausalLM, tokenizer, weights)


def load_text_to_text(options: Model, weights: Weights) -> Backbone:
    """Load a backbone that generates a text from a text; see `load_causal`."""
    tokenizer = load_tokenizer(options, weights)
    return with_language_head(AutoModelForSeq2SeqLM, tokenizer, weights)


def with_language_head(
    auto_class: Any, tokenizer: PreTrainedTokenizerBase, weights: Weights
) -> Backbone:
    """Load a model that gives scores to the tokens of the vocabulary."""
    model, info = read_model(auto_class, weights)
    if info["missing_keys"]:
        log.warning(
            "  %s has no language head (the file lacks %s): a new one, of random weights, is tuned",
            weights.origin, some(sorted(info["missing_keys"])),
        )  # fmt: skip
    fit_vocabulary(model, tokenizer, weights)
    model.config.pad_token_id = tokenizer.pad_token_id
    return Backbone(model, frozenset(info["missing_keys"]), tokenizer)


def load_tokenizer(options: Model, weights: Weights) -> PreTrainedTokenizerBase:
    """Load a backbone's tokenizer, padding on the right.

    Raises:
        ConfigError: if the weights can't be had, or there is no token to pad with.
    """
    if weights.problem is not None:
        raise ConfigError(weights.problem)
    FAMILIES[options.family].classes()  # before anything asks transformers for them
    try:
        tokenizer = AutoTokenizer.from_pretrained(**weights.location)
    except (OSError, MemoryError):  # of a connection: these say what they are
        raise
    except Exception as error:  # the library raises bare ones
        reason = no_object(weights.folder or weights.cached) or f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the tokenizer of {weights.origin} cannot be read ({reason}); "
            "copy the model's own tokenizer files there"
        ) from error
    if tokenizer.pad_token is None:  # GPT-2, Llama
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"the tokenizer of model={options.name} has neither a padding token nor an end token; "
            "add pad_token to its tokenizer_config.json"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def no_object(folder: Path | None) -> str | None:
    """Name a JSON file of a tokenizer that holds something else than an object, if there is one."""
    for name in TOKENIZER_FILES:
        with suppress(OSError, ValueError):
            if folder is not None and not isinstance(read_json(folder / name), dict):
                return f"{name} holds no object of JSON"
    return None


def fit_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: Weights
) -> None:
    """Give tokens that were added to a tokenizer rows of the embedding, in place.

    Args:
        model: as loaded.
        tokenizer: of the same files.
        weights: where both are from, for messages.

    Raises:
        ConfigError: if the tokenizer's own vocabulary is larger than the embedding: it is that of
            another model.
    """
    rows, ids = model.get_input_embeddings().num_embeddings, len(tokenizer)
    own = tokenizer.vocab_size  # without what was added
    if own > rows:
        raise ConfigError(
            f"{weights.origin}: the tokenizer has {own} tokens and the embedding {rows} rows; the "
            "tokenizer is that of another model: put the files of one model into the folder"
        )
    if ids > rows:
        log.warning(
            "  %d tokens of the tokenizer are beyond the %d rows of the embedding (%s); it grows",
            ids - rows, rows, some(tokenizer.convert_ids_to_tokens(list(range(rows, ids)))),
        )  # fmt: skip
        model.resize_token_embeddings(ids)
    elif ids < UNUSED * rows:
        log.warning(
            "  the tokenizer has %d tokens and the embedding %d rows; if it is that of another "
            "model, every text is misread",
            ids, rows,
        )  # fmt: skip
