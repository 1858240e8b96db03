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
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from moe_runner.backbones.families import family_of_type
from moe_runner.backbones.loaded import some
from moe_runner.backbones.lora import has_adapters
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
        ValueError: if the model has no MoE layer, or LoRA that is not merged.
    """
    conversion = conversion_of(model)
    if conversion is None or not conversion.method.converts:
        raise ValueError("the model is not converted; use its own save_pretrained")
    if has_adapters(model):
        raise ValueError(
            "the model has LoRA that is not merged; merge it first: merge_and_unload() of the "
            "PeftModel, or moe_runner.backbones.lora.merge_lora(model)"
        )
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
    """Write the weights as they are, how to generate, and a config that AutoModel refuses."""
    config = model.config.to_dict()
    config |= {
        "architectures": [type(model).__name__],
        "model_type": f"{PREFIX}{model.config.model_type}",
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", config)
    if model.can_generate():
        model.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)
    save_torch_model(model, folder, max_shard_size=max_shard_size)  # a hypernetwork's: once


def load_converted(model: PreTrainedModel, folder: Path) -> None:
    """Load what `save_converted` has written, each tensor in the dtype that it had.

    Raises:
        ConfigError: if the files do not hold exactly the model's weights.
    """
    if model.can_generate() and (folder / GENERATION_CONFIG_NAME).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    own = model.state_dict(keep_vars=True)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in own.keys() & tensors.keys():
                own[name].data = own[name].data.to(tensors.get_tensor(name).dtype)
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


def load_dense(model_class: Any, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Load the dense model that a folder of EMoE holds.

    Args:
        model_class: the model's own.
        folder: written by `save_pretrained`.
        **kwargs: for `from_pretrained`; by `ignore_mismatched_sizes` a head may be another one.

    Raises:
        ConfigError: if a weight is missing or of another shape: it would be random.
    """
    renewed = kwargs.pop("ignore_mismatched_sizes", False)
    model, info = model_class.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    missing = sorted(info["missing_keys"])
    others = [] if renewed else sorted(entry[0] for entry in info["mismatched_keys"])
    if missing or others:
        raise ConfigError(
            f"{folder} does not hold the weights of its config.json: {some(missing) or 'none'} "
            f"missing, {some(others) or 'none'} of another shape; save the model again"
        )
    assert isinstance(model, PreTrainedModel)
    return model


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
            only `dtype`; without it the model has that of the saved one.

    Returns:
        The model with its MoE layers, in evaluation mode and ready `for_inference`.

    Raises:
        ConfigError: if the folder is not of this format, or does not hold all weights.
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
        model = load_dense(model_class, folder, **kwargs)
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
