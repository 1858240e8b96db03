"""What a loaded model has from its files and what was made up: transformers only logs it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_runner.options.errors import ConfigError

log = logging.getLogger(__name__)

MAY_BE_NEW = ("pooler",)  # parts of a backbone that a language model's checkpoint lacks
SHOWN = 3  # names in a message


def check_loaded(model: PreTrainedModel, info: Mapping[str, Any], origin: str) -> None:
    """Check that every tensor of the bare backbone is the file's, and finite.

    Args:
        model: as loaded.
        info: the loading info of `from_pretrained`: missing, unexpected and mismatched keys.
        origin: what was loaded, for messages.

    Raises:
        ConfigError: if a tensor of the backbone is not in the file, has another shape there, or
            holds NaN or infinite values.
    """
    inside = backbone_names(model)
    missing = sorted(set(info["missing_keys"]) & inside)
    lacking = [name for name in missing if not new_by_right(name)]
    if lacking:
        unexpected = sorted(info["unexpected_keys"])
        raise ConfigError(
            f"{origin}: {len(lacking)} of the {len(inside)} tensors of the backbone are not in the "
            f"file ({some(lacking)}){found_instead(unexpected)}: "
            f"{likely_cause(lacking, unexpected, inside)}"
        )
    shapes = sorted(entry for entry in info["mismatched_keys"] if entry[0] in inside)
    if shapes:
        name, in_file, expected = shapes[0]
        raise ConfigError(
            f"{origin}: {len(shapes)} tensors of the backbone have another shape than config.json "
            f"says ({name}: {tuple(in_file)} in the file, {tuple(expected)} expected); these are "
            "the weights, or the config.json, of another model"
        )
    if extra := more_layers(sorted(info["unexpected_keys"]), inside):
        log.warning(
            "  %s: %d tensors of layers that config.json does not have are left out (%s)",
            origin, len(extra), some(extra),
        )  # fmt: skip
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConfigError(
                f"{origin}: the tensor {name} holds NaN or infinite values; the file is damaged, "
                "or was saved by a training that diverged: use another checkpoint"
            )
    new = sorted(set(info["missing_keys"]) - set(lacking))
    if new:
        log.info("  new, not pretrained: %s", some(new, 6))


def backbone_names(model: PreTrainedModel) -> set[str]:
    """Name the parameters of the bare backbone within a model."""
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    names = dict(model.named_parameters(remove_duplicate=False))
    return {name for name, parameter in names.items() if id(parameter) in inside}


def new_by_right(name: str) -> bool:
    """Tell whether a part of the backbone may be new: a pooler."""
    return any(part in MAY_BE_NEW for part in name.split("."))


def some(names: Sequence[str], shown: int = SHOWN) -> str:
    """List the first few of some names."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def found_instead(unexpected: Sequence[str]) -> str:
    """Say which tensors of the file are not the model's."""
    if not unexpected:
        return ""
    return f"; it has {len(unexpected)} others ({some(unexpected)})"


def likely_cause(missing: Sequence[str], unexpected: Sequence[str], inside: Iterable[str]) -> str:
    """Guess why tensors are missing, and name the remedy.

    Args:
        missing: names that the backbone has and the file lacks.
        unexpected: names that only the file has.
        inside: all names of the backbone.
    """
    for prefix in {name.partition(".")[0] for name in unexpected}:
        stripped = {name[len(prefix) + 1 :] for name in unexpected if name.startswith(f"{prefix}.")}
        ends = [any(name == s or name.endswith(f".{s}") for s in stripped) for name in missing[:50]]
        if stripped and all(ends):
            return (
                f"every name in the file has the prefix {prefix}. (of a wrapped model); save "
                "the model that is inside, or rename the tensors"
            )
    there = set(inside) - set(missing)
    patterns = {without_numbers(name) for name in there}
    layers = {layer_of(name) for name in there}
    if all(without_numbers(name) in patterns and layer_of(name) not in layers for name in missing):
        return "the file has fewer layers than config.json says; correct its number of layers"
    return "the weights are incomplete, or of another architecture than config.json says"


def more_layers(unexpected: Sequence[str], inside: set[str]) -> list[str]:
    """Find tensors of the file that are of further layers of the backbone."""
    patterns = {without_numbers(name) for name in inside if re.search(r"\.\d+\.", name)}
    tails = {pattern.partition(".")[2] for pattern in patterns}  # of a bare backbone's file
    return [name for name in unexpected if without_numbers(name) in patterns | tails]


def without_numbers(name: str) -> str:
    """Replace the layer numbers in a tensor's name."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def layer_of(name: str) -> str:
    """Name the layer that a tensor is in: all up to its first number; "" if there is none."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else ""


def renew_head(model: PreTrainedModel, info: Mapping[str, Any], origin: str) -> None:
    """Give a model whose checkpoint was tuned for a classification a new head, in place.

    A head that the checkpoint lacks is new already. Drawn from torch's global generator.

    Args:
        model: with a classification head, as loaded.
        info: the loading info of `from_pretrained`.
        origin: what was loaded, for the log.
    """
    new = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    inside = backbone_names(model)
    old = [name for name, _ in model.named_parameters() if name not in inside | new]
    if not old:
        return
    log.info("  %s: the checkpoint's head (%s) is replaced by a new one", origin, some(old))
    owners = dict.fromkeys(name.rpartition(".")[0] for name in old)
    for owner in owners:
        initialise(model, model.get_submodule(owner))


def initialise(model: PreTrainedModel, module: nn.Module) -> None:
    """Draw the weights of a module as transformers does for a new one."""
    for parameter in module.parameters(recurse=False):
        parameter.__dict__.pop("_is_hf_initialized", None)
    module.__dict__.pop("_is_hf_initialized", None)
    with torch.no_grad():
        model._init_weights(module)
