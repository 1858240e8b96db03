"""Which parameters train: everything, or LoRA on the attention projections and the head."""

from __future__ import annotations

from collections.abc import Set

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_runner.config import Tuning
from moe_runner.moe.layer import MoEFeedForward


def apply_tuning(
    model: PreTrainedModel,
    options: Tuning,
    targets: tuple[str, ...],
    *,
    head: Set[str],
    new_modules: Set[str],
) -> None:
    """Add what the tuning needs and let exactly its parameters train.

    Args:
        model: with a head, converted already.
        options: `full`: everything trains. `lora`: LoRA, the head and the new modules.
        targets: last parts of the names of the attention projections.
        head: parameters that the pretrained weights do not have.
        new_modules: parameters that the conversion added (learned routers, copied experts).

    Raises:
        ValueError: if no module has the name of a LoRA target.

    Source: EMoE, arXiv:2310.10908: LoRA r 8, alpha 16, dropout 0.1 on query and value (c_attn).
    """
    names = {name for name, _ in model.named_parameters()}
    if options.name == "lora":
        add_lora(model, options, targets)
        # LoRA wraps its targets, never the head or an expert: their names stay.
        lora = {name for name, _ in model.named_parameters() if ".lora_" in name}
        names = lora | set(head) | set(new_modules)
    set_trainable(model, names)


def add_lora(model: PreTrainedModel, options: Tuning, targets: tuple[str, ...]) -> None:
    """Inject LoRA into the attention projections, in place.

    Injected, not wrapped: the model keeps its class, and its forward hooks are called (a PeftModel
    calls `forward` past them, so the MoE layers would never see the mask).

    Args:
        model: the backbone with its head.
        options: rank, alpha, dropout.
        targets: last parts of the module names.

    Raises:
        ValueError: if no module has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = [name for name, module in model.named_modules() if isinstance(module, MoEFeedForward)]
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets
        and not any(name.startswith(f"{layer}.") for layer in inside)
        and not isinstance(module, nn.Dropout)
    ]
    if not found:
        raise ValueError(f"no module is named {' or '.join(targets)}; set model.lora_targets=[...]")
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
