"""Save a converted model so that both its dense and its MoE form load again.

The folder holds the merged dense weights under the backbone's own names, so `AutoModel` loads the
dense model; `moe_runner.json` holds what is needed to convert it again without clustering.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from moe_runner.config import METHODS, ConfigError, build
from moe_runner.files import write_json
from moe_runner.methods.conversion import conversion_of, convert

FILE = "moe_runner.json"
FORMAT = 1


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Write a converted model as a Hugging Face folder; the model is not changed.

    Args:
        model: converted by `convert`, LoRA merged.
        folder: made if it is not there.

    Raises:
        ValueError: if the model is not converted.
    """
    conversion = conversion_of(model)
    if conversion is None:
        raise ValueError("the model is not converted; use its own save_pretrained")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    assignments = {
        site.key: layer.experts.expert_of_neuron.tolist()
        for site, layer in zip(conversion.sites, conversion.layers, strict=True)
    }
    model.save_pretrained(folder, state_dict=dense_state_dict(model))
    method = dataclasses.asdict(conversion.method)
    write_json(folder / FILE, {"format": FORMAT, "method": method, "sites": assignments})


def dense_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """Collect the weights of the merged model under the backbone's names, without changing it.

    Args:
        model: converted by `convert`.

    Returns:
        Tensors by parameter name, as `merge(model)` followed by `model.state_dict()` would give.
    """
    conversion = conversion_of(model)
    assert conversion is not None
    state = model.state_dict()
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        for name in [name for name in state if name.startswith(f"{site.slot}.experts.")]:
            del state[name]
        tensors = site.dense_tensors(model, layer.experts.dense(layer.top_k))
        state |= {name: tensor.detach() for name, tensor in tensors.items()}
    return state


def from_pretrained(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a converted model, head included.

    Args:
        folder: written by `save_pretrained`.
        **kwargs: for the `from_pretrained` of the model's own class (for example `dtype`).

    Returns:
        The model with its MoE layers, in evaluation mode.

    Raises:
        ConfigError: if the folder is not of this format.
    """
    folder = Path(folder)
    file = folder / FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {FILE}; load a dense model with AutoModel") from None
    if content.get("format") != FORMAT:
        raise ConfigError(f"{file} has format {content.get('format')}; this version reads {FORMAT}")
    problems: list[str] = []
    name = content["method"]["name"]
    if name not in METHODS:
        raise ConfigError(f"{file} has method={name}, which this version does not know")
    method = build(METHODS[name], content["method"], "method", problems)
    if method is None:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(folder, **kwargs)
    assignments = {name: torch.tensor(experts) for name, experts in content["sites"].items()}
    convert(model, method, assignments=assignments)
    return model
