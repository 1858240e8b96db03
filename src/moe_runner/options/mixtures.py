"""The mixtures of transformers that an upcycled model can be written as (`export=hf`); no torch.

Checked with the modelling files of transformers 5.23. Mixtral and Qwen3-MoE choose by the softmax
over all experts and, Qwen3-MoE with `norm_topk_prob`, divide by the sum of the selected: the
softmax over the selected, which is `moe`'s weight (with one selected: 1). Their routers and experts
have no biases, and nothing is dropped or noisy in inference. Attention, norms and rotary positions
are those of the dense family; what is not is in `neutral`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_runner.options.errors import show
from moe_runner.options.layers import select_layers
from moe_runner.options.method import Method
from moe_runner.options.model import Model

USE = "use export=moe"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of transformers, beside the dense family that it is the mixture of.

    Args:
        dense: how the classes of the dense family begin: `Llama`.
        name: how its own classes begin: `Mixtral`.
        keeps_dense: whether some of its layers may have a plain FFN.
        unscaled: whether it can weigh by the softmax over all experts as it is, too.
        neutral: keys of the dense family's config.json that it does not know -> the value that
            means the same as not knowing them.
        dropped: further such keys, which change nothing.
    """

    dense: str
    name: str
    keeps_dense: bool
    unscaled: bool
    neutral: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


MIXTURES: Mapping[str, Mixture] = {  # by the model_type of the dense family
    "llama": Mixture(
        dense="Llama", name="Mixtral", keeps_dense=False, unscaled=False,
        neutral={"attention_bias": False, "mlp_bias": False}, dropped=("pretraining_tp",),
    ),
    "mistral": Mixture(dense="Mistral", name="Mixtral", keeps_dense=False, unscaled=False),
    "qwen3": Mixture(
        dense="Qwen3", name="Qwen3Moe", keeps_dense=True, unscaled=True,
        neutral={"use_sliding_window": False}, dropped=("layer_types", "max_window_layers"),
    ),
}  # fmt: skip
NEAR_MISSES: Mapping[str, str] = {
    "qwen2": "Qwen2-MoE adds a shared expert behind a gate to every mixture",
}


def mixture_problems(method: Method, model: Model, export: str) -> list[str]:
    """Check that the backbone, converted as the method says, is a mixture of transformers.

    Args:
        method: what is wrong with it by itself is left to its `export_problems`.
        model: family and number of layers are read.
        export: only `hf` is checked.

    Returns:
        One line if it is not.
    """
    if export != "hf" or method.export_problems(export):
        return []
    if problems := family_problems(model.family, f"model={model.name}"):
        return problems
    if MIXTURES[model.family].keeps_dense or model.num_layers < 1:
        return []
    try:
        chosen = select_layers(method.layer_rule, model.num_layers)
    except ValueError:
        return []  # a problem of method.layers
    return layer_count_problems(
        MIXTURES[model.family], len(chosen), model.num_layers, show(method.layer_rule)
    )


def family_problems(model_type: str, given: str) -> list[str]:
    """Check that transformers has a mixture of a family.

    Args:
        model_type: of the dense model.
        given: what names the model in the message.
    """
    if model_type in MIXTURES:
        return []
    others = ", ".join(MIXTURES)
    reason = NEAR_MISSES.get(model_type, f"no mixture of transformers is an upcycled {model_type}")
    return [f"export=hf: {reason} ({given}); only {others} can be written so: {USE}"]


def layer_count_problems(mixture: Mixture, count: int, of: int, rule: str) -> list[str]:
    """Check that no layer is left dense in a mixture that has experts in all of them.

    Args:
        mixture: what is to be written.
        count: of the converted layers.
        of: so many.
        rule: the layers as typed.
    """
    if mixture.keeps_dense or count == of:
        return []
    return [
        f"export=hf: method.layers={rule} converts {count} of {of} layers, and every layer of "
        f"{mixture.name} is a mixture; use method.layers=all or export=moe"
    ]


def config_problems(model_type: str, config: Mapping[str, Any]) -> list[str]:
    """Check that a backbone has nothing that its mixture lacks.

    Args:
        model_type: of the dense model.
        config: the content of its config.json; a key that is not there has its neutral value.

    Returns:
        One line per setting that does not fit.
    """
    mixture = MIXTURES.get(model_type)
    if mixture is None:
        return []  # another one's problem
    return [
        f"export=hf: {key}={show(config[key])} in the model's config.json does not fit "
        f"{mixture.name}, which has only {key}={show(value)}; {USE}"
        for key, value in mixture.neutral.items()
        if config.get(key, value) != value
    ]
