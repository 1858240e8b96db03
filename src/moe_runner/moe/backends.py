"""Back ends: ways of computing the selected experts of each token, with the same numbers."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_runner.moe.experts import Stack, combine_matrix
from moe_runner.moe.grouped_experts import grouped
from moe_runner.moe.sorted_experts import sort_by_expert


def masked(x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack) -> Tensor:
    """Compute every neuron and scale those of unselected experts by 0: the definition.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        Weighted sum over the selected experts, without output bias, float (T, D).

    Source: EMoE, arXiv:2310.10908: the block mask over the d_ff activations.
    """
    hidden_TEF = experts.activations(x_TD)
    combine_TE = combine_matrix(index_TK, weights_TK, experts.num_experts).to(hidden_TEF.dtype)
    hidden_TN = (hidden_TEF * combine_TE[..., None]).flatten(1)
    if experts.dropout:
        hidden_TN = functional.dropout(hidden_TN, experts.dropout)
    return hidden_TN @ experts.values.flatten(0, 1)


BACKENDS = {"masked": masked, "sorted": sort_by_expert, "grouped_mm": grouped}


def choose_backend(tokens: int, top_k: int, experts: Stack) -> str:
    """Choose the fastest back end for the sizes of a layer.

    On CUDA `grouped_mm` where its rows are aligned, else `sorted`. Elsewhere what was fastest in
    the most similar case of a measured table (`backend_table.json`, which names the machine and
    the command that makes it). While a program is traced: `masked`, whose shapes are static.

    Args:
        tokens: T.
        top_k: selected experts of a token, K.
        experts: their tensors.

    Returns:
        A name of `BACKENDS`.
    """
    num_experts, size, d_model = experts.keys.shape
    if torch.compiler.is_compiling():
        return "masked"
    if experts.keys.is_cuda:
        row_bytes = math.gcd(size, d_model) * experts.keys.element_size()
        fits = row_bytes % 16 == 0 and experts.keys.dtype != torch.float64
        return "grouped_mm" if fits else "sorted"
    gated = experts.ups is not None
    return nearest_case(max(tokens, 1), d_model, size, num_experts, top_k, gated)


@functools.cache
def nearest_case(
    tokens: int, d_model: int, size: int, num_experts: int, top_k: int, gated: bool
) -> str:
    """Find the back end of the most similar measured case: least distance of the sizes' logarithms.

    Returns:
        A name of `BACKENDS`.
    """
    wanted = (tokens, d_model, size, num_experts, top_k / num_experts, 1 + gated)

    def distance(case: dict[str, Any]) -> float:
        sizes = (*case["sizes"][:4], case["sizes"][4] / case["sizes"][3], 1 + case["gated"])
        return sum(math.log(a / b) ** 2 for a, b in zip(wanted, sizes, strict=True))

    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return str(min(table["cases"], key=distance)["fastest"])


TABLE = Path(__file__).with_name("backend_table.json")
