"""Naive formulations, one token and one neuron at a time: the oracles of the fast code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def naive_emoe(
    x: Tensor,
    ffn: dict[str, Tensor],
    expert_of_neuron: Tensor,
    top_k: int,
    select: str,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute an EMoE layer from its definition.

    Args:
        x: tokens (T, D).
        ffn: keys and values (N, D); optionally key_bias (N,), ups (N, D), up_bias (N,),
            output_bias (D,): in the original order of the neurons.
        expert_of_neuron: int64 (N,).
        top_k: experts per token.
        select: top, bottom or not_top.
        activation: elementwise.
    """
    num_experts = int(expert_of_neuron.max()) + 1
    groups = [
        [n for n in range(len(expert_of_neuron)) if int(expert_of_neuron[n]) == e]
        for e in range(num_experts)
    ]
    rows = []
    for token in x:
        scores = []
        for group in groups:
            mean_key = sum(ffn["keys"][n] for n in group) / len(group)
            scores.append(float((token * mean_key).sum().detach()))
        best_first = sorted(range(num_experts), key=lambda e: -scores[e])
        chosen = {
            "top": best_first[:top_k],
            "bottom": best_first[num_experts - top_k :],
            "not_top": best_first[top_k:],
        }[select]
        output = torch.zeros_like(token)
        for expert in chosen:
            for n in groups[expert]:
                pre = (token * ffn["keys"][n]).sum()
                if "key_bias" in ffn:
                    pre = pre + ffn["key_bias"][n]
                hidden = activation(pre)
                if "ups" in ffn:
                    up = (token * ffn["ups"][n]).sum()
                    hidden = hidden * (up + ffn["up_bias"][n] if "up_bias" in ffn else up)
                output = output + hidden * ffn["values"][n]
        if "output_bias" in ffn:
            output = output + ffn["output_bias"]
        rows.append(output)
    return torch.stack(rows)
