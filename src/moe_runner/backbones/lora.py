"""LoRA on the attention projections: added to a model, merged into it; which parameters train."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_runner.moe.layer import MoEFeedForward
from moe_runner.options.training import Tuning


def add_lora(
    model: PreTrainedModel,
    options: Tuning,
    targets: tuple[str, ...],
    spared: Collection[str] = (),
) -> None:
    """Inject LoRA into the attention projections, in place.

    Injected, not wrapped: the model keeps its class, and its forward hooks are called (a PeftModel
    calls `forward` past them, so the MoE layers would never see the mask).

    Args:
        model: the backbone with its head.
        options: rank, alpha, dropout.
        targets: last parts of the module names.
        spared: full names of modules that get none, though they are called so.

    Raises:
        ValueError: if no module has such a name, or none but the spared ones.

    Source: EMoE, arXiv:2310.10908: LoRA r 8, alpha 16, dropout 0.1 on query and value (c_attn).
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = [name for name, module in model.named_modules() if isinstance(module, MoEFeedForward)]
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets
        and not any(name.startswith(f"{layer}.") for layer in inside)
        and name not in spared
        and not isinstance(module, (nn.Dropout, nn.Identity))  # a converted FFN's projections
    ]
    if not found:
        beside = " beside those that train whole or are converted" if spared else ""
        raise ValueError(
            f"no module is named {' or '.join(targets)}{beside}; set model.lora_targets=[...]"
        )
    assert options.rank is not None  # checked with the config
    assert options.alpha is not None
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=found,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in found),
    )
    inject_adapter_in_model(config, model)


def merge_lora(model: PreTrainedModel) -> None:
    """Add every LoRA product to the weight that it adapts and take LoRA away, in place.

    Args:
        model: with or without LoRA.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def has_adapters(model: nn.Module) -> bool:
    """Tell whether peft has put LoRA, or another adapter of its own, into a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def set_trainable(model: nn.Module, names: set[str]) -> None:
    """Let exactly the named parameters train: the one place that sets `requires_grad`.

    Args:
        model: any module.
        names: full parameter names.

    Raises:
        ValueError: if a name is not a parameter of the model.
    """
    parameters = dict(model.named_parameters())
    unknown = names - parameters.keys()
    if unknown:
        raise ValueError(f"no parameters of these names: {', '.join(sorted(unknown))}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
