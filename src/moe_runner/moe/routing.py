"""Scores of experts, and which of them are selected."""

# T tokens, D d_model, E experts, F neurons of one expert, K experts of a token

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_runner.moe.experts import Experts

Select = Literal["top", "bottom", "not_top"]
GateOn = Literal["gate", "up", "inter"]


def average_key_scores(x_TD: Tensor, experts: Experts, gate_on: GateOn = "gate") -> Tensor:
    """Score each expert by the mean pre-activation of its neurons (avg-k gating).

    The gate vectors are the means of the *current* keys, computed anew in every forward pass: they
    have no parameter of their own and cannot go stale. Selection is not differentiable and every
    selected expert has weight 1, so no gradient is kept.

    Args:
        x_TD: tokens, float (T, D).
        experts: the stacked experts.
        gate_on: `gate`: x . mean(keys), the paper's. Gated FFNs also `up`: x . mean(up rows), and
            `inter`: the mean of activation(gate) * up, which computes every neuron.

    Returns:
        float (T, E), at least fp32; biases left out for `gate` and `up`.

    Raises:
        ValueError: if `up` or `inter` is asked of an FFN without an up projection.

    Source: EMoE, arXiv:2310.10908, eq. of the avg-k gate; `up` and `inter` are its Llama variants.
    """
    if gate_on != "gate" and experts.ups is None:
        raise ValueError(f"gate_on={gate_on} needs a gated FFN; use gate_on=gate")
    # At least fp32 also under autocast: half precision makes ties, and back ends would differ.
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(x_TD.device.type, enabled=False):
        if gate_on == "inter":
            return experts.tensors().activations(x_TD.to(experts.keys.dtype)).mean(-1, dtype=wide)
        rows_EFD = experts.keys if gate_on == "gate" else experts.ups
        assert rows_EFD is not None
        return x_TD.to(wide) @ rows_EFD.mean(1, dtype=wide).T


def select_experts(scores_TE: Tensor, top_k: int, select: Select = "top") -> Tensor:
    """Choose the experts of each token.

    Args:
        scores_TE: float (T, E).
        top_k: 1..E.
        select: `top`: the k best; `bottom`: the k worst; `not_top`: all but the k best (ablations).

    Returns:
        int64 (T, K); K = top_k, or E - top_k for `not_top`. Among equal scores the choice is
        torch.topk's: some k of them, never one twice.

    Raises:
        ValueError: if top_k is outside 1..E, or nothing is left for `not_top`.
    """
    num_experts = scores_TE.shape[-1]
    count = num_experts - top_k if select == "not_top" else top_k
    if not 1 <= top_k <= num_experts or count < 1:
        raise ValueError(
            f"top_k={top_k} with select={select} does not fit {num_experts} experts; use 1 to "
            f"{num_experts - 1 if select == 'not_top' else num_experts}"
        )
    # All but the k best are the E - k worst: one rule serves both ablations.
    return scores_TE.topk(count, dim=-1, largest=select == "top", sorted=False).indices
