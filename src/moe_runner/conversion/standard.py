"""Write an upcycled model as a mixture of plain transformers: Mixtral or Qwen3-MoE.

Where the mathematics agree nothing is computed: weights get other names. What agrees, and what does
not, is said in `options/mixtures`; here it is checked again on the layers themselves.
"""

# E experts, F neurons of one expert, D d_model

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedModel

from moe_runner.backbones.loaded import some
from moe_runner.conversion.record import Conversion, conversion_of
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import LinearRouter, NoisyTopKRouter
from moe_runner.options.errors import ConfigError, show
from moe_runner.options.mixtures import (
    MIXTURES,
    USE,
    Mixture,
    config_problems,
    family_problems,
    layer_count_problems,
)

# The names of published files, which transformers of any version reads: of the layer's module, of
# the gate, up and down projection of an expert.
NAMES = {
    "Mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "Qwen3Moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}


def to_standard(model: PreTrainedModel) -> PreTrainedModel:
    """Make the model of plain transformers that computes what a converted model computes.

    In fp32 their outputs differ by rounding only. In half precision our router scores in fp32 and
    theirs does not, so a token near a tie may choose another expert. Tuned further without us, a
    Mixtral with one expert per token has a router without a gradient (its weight p / p is 1).

    Args:
        model: Llama, Mistral or Qwen3, bare or with a head, converted by `convert` with the method
            `moe`, LoRA merged; it is not changed.

    Returns:
        Mixtral (of Llama and Mistral) or Qwen3-MoE with the same head, in evaluation mode, on the
        CPU, of the model's dtype. Weights that are not of experts or routers are shared with the
        model where that is on the CPU. The noise of the router, for training only, is left out.

    Raises:
        ConfigError: if the method, the family or a setting has what the mixture lacks.
        ValueError: if the model is not converted, or has weights beyond those of its class (LoRA).

    Source: Mixtral, arXiv:2401.04088; Qwen3, arXiv:2505.09388; both as transformers has them.
    """
    check_standard(model)
    conversion = conversion_of(model)
    assert conversion is not None
    mixture = MIXTURES[model.config.model_type]
    config = standard_config(model, conversion, mixture)
    made, info = standard_class(model, mixture).from_pretrained(
        None,
        config=config,
        state_dict=standard_state_dict(model, conversion, mixture),
        dtype=model.dtype,
        output_loading_info=True,
    )
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]}):
        raise ValueError(
            f"the model's weights are not those of a {type(made).__name__}: {some(wrong)}; merge "
            "LoRA first"
        )
    if model.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
    assert isinstance(made, PreTrainedModel)
    return made


def check_standard(model: PreTrainedModel) -> None:
    """Check that a converted model is a mixture of transformers.

    Args:
        model: converted by `convert`, tuned or not.

    Raises:
        ConfigError: with a line per part that does not fit.
        ValueError: if the model is not converted.
    """
    conversion = conversion_of(model)
    if conversion is None:
        raise ValueError("the model is not converted; use its own save_pretrained")
    if problems := standard_problems(model, conversion):
        raise ConfigError(*problems)


def standard_problems(model: PreTrainedModel, conversion: Conversion) -> list[str]:
    """Find what of a converted model no mixture of transformers has; see `check_standard`."""
    method, model_type = conversion.method, model.config.model_type
    if problems := method.export_problems("hf"):
        return problems
    if problems := family_problems(model_type, type(model).__name__):
        return problems
    mixture = MIXTURES[model_type]
    count, of = len(conversion.layers), len(conversion.blocks)
    problems = [
        *config_problems(model_type, model.config.to_dict()),
        *layer_count_problems(mixture, count, of, show(method.layer_rule)),
    ]
    gaps = dict.fromkeys(layer_gap(layer, mixture) for layer in conversion.layers)
    problems += [
        f"export=hf: {gap}, which {mixture.name} does not know; {USE}" for gap in gaps if gap
    ]
    if standard_class(model, mixture) is None:
        problems.append(
            f"export=hf: transformers has no {mixture.name} with the head of "
            f"{type(model).__name__}; {USE}"
        )
    return problems


def layer_gap(layer: MoEFeedForward, mixture: Mixture) -> str | None:
    """Say what a layer has that no layer of the mixture can have; None: nothing."""
    if not isinstance(layer.router, NoisyTopKRouter | LinearRouter):
        return f"the router is a {type(layer.router).__name__}"
    if layer.beside is not None:
        return "something stands beside the experts"
    if layer.select != "top":
        return f"experts are selected by select={layer.select}"
    if layer.weighting == "ones":
        return "selected experts are summed without weights"
    if layer.weighting == "probability" and not mixture.unscaled:
        return "the weights of the selected experts do not sum to 1"
    if layer.scale != 1.0:
        return f"the weights of the selected experts are scaled by {layer.scale:g}"
    if layer.capacity.factor is not None or layer.capacity.per_sequence is not None:
        return "experts have a limited capacity"
    return None


def standard_class(model: PreTrainedModel, mixture: Mixture) -> Any:
    """Find the class of the mixture that has a model's head; None if there is none."""
    head = type(model).__name__.removeprefix(mixture.dense)
    return getattr(transformers, f"{mixture.name}{head}", None)


def standard_config(model: PreTrainedModel, conversion: Conversion, mixture: Mixture) -> Any:
    """Make the mixture's configuration: the dense model's, and the sizes of the mixtures."""
    options = model.config.to_dict()
    for key in ("model_type", "architectures", *mixture.neutral, *mixture.dropped):
        options.pop(key, None)
    layer = conversion.layers[0]  # all are alike
    options |= {
        "num_experts": layer.experts.num_experts,
        "num_experts_per_tok": layer.top_k,
    }
    if mixture.keeps_dense:
        converted = {site.layer for site in conversion.sites}
        options |= {
            "moe_intermediate_size": layer.experts.keys.shape[1],
            "norm_topk_prob": layer.weighting == "softmax",
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i in range(len(conversion.blocks)) if i not in converted],
        }
    return getattr(transformers, f"{mixture.name}Config")(**options)


def standard_state_dict(
    model: PreTrainedModel, conversion: Conversion, mixture: Mixture
) -> dict[str, Tensor]:
    """Collect the weights under the names of the mixture's published files; no copies.

    Args:
        model: converted.
        conversion: its record.
        mixture: what it becomes.

    Returns:
        Tensors by name; of an expert: gate and up projection (F, D), down projection (D, F).
    """
    module, gate, up, down = NAMES[mixture.name]
    state: dict[str, Tensor] = model.state_dict()
    for site, layer in zip(conversion.sites, conversion.layers, strict=True):
        for name in [name for name in state if name.startswith(f"{site.slot}.")]:
            del state[name]
        router, experts = layer.router, layer.experts
        place = f"{site.slot.rpartition('.')[0]}.{module}"
        weight = router.gate if isinstance(router, NoisyTopKRouter) else router.weight
        assert isinstance(weight, Tensor)
        state[f"{place}.gate.weight"] = weight.detach()  # (E, D)
        assert experts.ups is not None  # all families of the table are gated
        for expert in range(experts.num_experts):
            own = f"{place}.experts.{expert}"
            state[f"{own}.{gate}.weight"] = experts.keys[expert].detach()
            state[f"{own}.{up}.weight"] = experts.ups[expert].detach()
            state[f"{own}.{down}.weight"] = experts.values[expert].detach().T
    return state
