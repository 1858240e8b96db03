"""Save a converted model so that it loads again, and so that nothing else can be loaded by mistake.

EMoE: the folder holds the merged dense weights under the backbone's own names, so `AutoModel` loads
the dense model; `moe_runner.json` holds what is needed to convert it again without clustering.

Other methods have no dense form: the folder holds the converted weights, and a `model_type` that
`AutoModel` does not know (it would load the rest and give the FFNs random weights).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import load_torch_model, save_torch_model
from torch import Tensor
from transformers import PreTrainedModel

from moe_runner.backbones.families import family_of_type
from moe_runner.backbones.loaded import some
from moe_runner.backbones.sites import FFNSite
from moe_runner.conversion.convert import convert
from moe_runner.conversion.record import Conversion, conversion_of
from moe_runner.files import write_json, writing_tensors
from moe_runner.moe.layer import for_inference
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError
from moe_runner.options.protocol import Protocol
from moe_runner.registry import METHODS
from moe_runner.runs.run import before

FILE = "moe_runner.json"
SHARD = "50GB"  # the largest file of weights, as in transformers
FORMAT = 1
PREFIX = "moe_runner_"  # of the model_type of what AutoModel must not load


def save_pretrained(
    model: PreTrainedModel, folder: str | Path, max_shard_size: str = SHARD
) -> None:
    """Write a converted model as a Hugging Face folder; the model is not changed.

    Args:
        model: converted by `convert`, LoRA merged.
        folder: made if it is not there.
        max_shard_size: weights beyond it go into several files with an index: "5GB".

    Raises:
        ValueError: if the model has no MoE layer.
    """
    conversion = conversion_of(model)
    if conversion is None or not conversion.method.converts:
        raise ValueError("the model is not converted; use its own save_pretrained")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with writing_tensors(folder):
        if conversion.method.not_mergeable is None:
            state = dense_state_dict(model)
            model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
        else:
            save_converted(model, folder, max_shard_size)
    write_json(
        folder / FILE,
        {
            "format": FORMAT,
            "method": portable(dataclasses.asdict(conversion.method)),
            "protocol": dataclasses.asdict(conversion.protocol),
            "sites": assignments_of(conversion),
        },
    )


def portable(method: dict[str, Any]) -> dict[str, Any]:
    """Leave out the C++ kernel, which the machine that loads the model may not have."""
    return {**method, "backend": "auto"} if method.get("backend") == "kernel" else method


def assignments_of(conversion: Conversion) -> dict[str, list[int]]:
    """List the expert of each neuron by site key, for the methods that group neurons."""
    return {
        site.key: layer.experts.expert_of_neuron.tolist()
        for site, layer in zip(conversion.sites, conversion.layers, strict=True)
        if layer.experts.expert_of_neuron is not None
    }


def save_converted(model: PreTrainedModel, folder: Path, max_shard_size: str) -> None:
    """Write the weights as they are, and a config that AutoModel refuses."""
    config = model.config.to_dict()
    config |= {
        "architectures": [type(model).__name__],
        "model_type": f"{PREFIX}{model.config.model_type}",
    }
    write_json(folder / "config.json", config)
    save_torch_model(model, folder, max_shard_size=max_shard_size)  # a hypernetwork's: once


def load_converted(model: PreTrainedModel, folder: Path) -> None:
    """Load what `save_converted` has written.

    Raises:
        ConfigError: if the files do not hold exactly the model's weights.
    """
    found: Any = load_torch_model(model, folder)
    state = model.state_dict()
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in found.missing_keys}
    missing = [name for name in found.missing_keys if state[name].data_ptr() not in loaded]
    if missing or found.unexpected_keys:
        lacks, has = (some(sorted(names)) or "none" for names in (missing, found.unexpected_keys))
        raise ConfigError(
            f"{folder} does not hold the weights of its {FILE}: {lacks} missing, {has} unexpected; "
            "save the model again"
        )


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
        assert isinstance(site, FFNSite)
        for name in [name for name in state if name.startswith(f"{site.slot}.experts.")]:
            del state[name]
        tensors = site.dense_tensors(model, layer.experts.dense(layer.top_k))
        state |= {name: tensor.detach() for name, tensor in tensors.items()}
    return state


def from_pretrained(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a converted model, head included.

    Args:
        folder: written by `save_pretrained`.
        **kwargs: for the `from_pretrained` of the model's own class; for other methods than EMoE
            only `dtype`.

    Returns:
        The model with its MoE layers, in evaluation mode and ready `for_inference`.

    Raises:
        ConfigError: if the folder is not of this format.
        ValueError: for an argument that cannot be followed.
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
    protocol = build(Protocol, before(Protocol) | content.get("protocol", {}), "protocol", problems)
    if protocol is None:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    assignments = {name: torch.tensor(experts) for name, experts in content["sites"].items()}
    options = json.loads((folder / "config.json").read_text())
    model_type = options.pop("model_type").removeprefix(PREFIX)
    model_class = class_of(options.pop("architectures")[0], model_type)
    if method.not_mergeable is None:
        model = model_class.from_pretrained(folder, **kwargs)
        convert(model, method, protocol=protocol, assignments=assignments)
        return for_inference(model)
    config = transformers.AutoConfig.for_model(model_type, **options)
    dtype = kwargs.pop("dtype", None)
    if kwargs:
        raise ValueError(f"only dtype can be given for method={method.name}; got {sorted(kwargs)}")
    model = model_class(config)
    convert(model, method, protocol=protocol, assignments=assignments or None)
    load_converted(model, folder)
    return for_inference(model if dtype is None else model.to(dtype))


def class_of(name: str, model_type: str) -> Any:
    """Find a class of models: transformers' own, or that of another package's family.

    Args:
        name: of the class.
        model_type: as in config.json.
    """
    family = family_of_type(model_type)
    own = None if family is None else family.classes()
    return getattr(own if hasattr(own, name) else transformers, name)
