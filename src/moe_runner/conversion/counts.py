"""Count the parameters and operations of a model, converted or not."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from moe_runner.backbones.finder import find_native_experts
from moe_runner.moe.layer import MoEFeedForward

LORA = ".lora_"  # in the names of its parameters and modules


def library_experts(model: nn.Module) -> list[nn.ModuleDict]:
    """List the experts of a Switch Transformer's own sparse layers, which were not converted."""
    return [m for m in model.modules() if isinstance(m, nn.ModuleDict) and "expert_0" in m]


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the parameters of a model, tied ones once, without LoRA's; or all that train."""
    named = model.named_parameters()
    return sum(
        p.numel() for name, p in named if (p.requires_grad if trainable else LORA not in name)
    )


def lora_parameters(model: nn.Module) -> int:
    """Count the parameters of LoRA."""
    return sum(p.numel() for name, p in model.named_parameters() if LORA in name)


def active_parameters(model: nn.Module) -> int:
    """Count the parameters that take part in one token: all but its unselected experts."""
    idle = [layer.idle_parameters() for layer in moe_layers(model)]
    idle += [experts.idle_parameters() for experts in find_native_experts(model)]
    return count_parameters(model) - sum(idle)


def flops_per_token(model: nn.Module) -> int:
    """Count the floating point operations of a token's forward pass in products with weights.

    Two per weight. Attention scores, which grow with the length, and embeddings are left out; in
    an encoder-decoder the token passes both stacks. LoRA, which can be merged, is left out. Experts
    count by what is selected (`masked` computes more than that), the router's product included.
    """
    native = find_native_experts(model)
    total = sum(experts.flops_per_token() for experts in native)
    inside = [f"{experts.slot}." for experts in native]
    for name, module in model.named_modules():
        if LORA in name or any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, MoEFeedForward):
            inside.append(f"{name}.")
            total += module.flops_per_token()
        elif isinstance(module, (nn.Linear, Conv1D)):
            total += 2 * module.weight.numel()
    return total


def moe_layers(model: nn.Module) -> list[MoEFeedForward]:
    """List the MoE layers of a model in their order."""
    return [module for module in model.modules() if isinstance(module, MoEFeedForward)]
