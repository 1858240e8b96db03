"""Back ends: ways of computing the selected experts of each token, with the same numbers."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_runner.moe.alignment import fits_grouped
from moe_runner.moe.experts import Stack, combine_matrix
from moe_runner.moe.grouped_experts import grouped
from moe_runner.moe.kernel_training import by_kernel
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


IN_TORCH = {"masked": masked, "sorted": sort_by_expert, "grouped_mm": grouped}
BACKENDS = {**IN_TORCH, "kernel": by_kernel}  # which is built, and only taken where it is asked for


def choose_backend(tokens: int, top_k: int, experts: Stack, *, infers: bool = False) -> str:
    """Choose the fastest back end for the sizes of a layer.

    On CUDA `grouped_mm` where its rows are aligned, else `sorted`. Elsewhere what was fastest in
    the most similar case of a measured table (`backend_table.json`, which names the machine and
    the command that makes it), with the same exception. While a program is traced: `masked`, whose
    shapes are static.

    Args:
        tokens: T.
        top_k: selected experts of a token, K.
        experts: their tensors.
        infers: look up what was fastest without a backward pass, as a model `for_inference` does;
            an evaluation takes what training takes.

    Returns:
        A name of `IN_TORCH`.
    """
    num_experts, size, d_model = experts.keys.shape
    if torch.compiler.is_compiling():
        return "masked"
    device, dtype = experts.keys.device.type, experts.keys.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    fits = fits_grouped(d_model, size, dtype.itemsize) and dtype != torch.float64
    if device == "cuda":
        return "grouped_mm" if fits else "sorted"
    measured = "bfloat16" if dtype.itemsize == 2 else "float32"
    sizes = (max(tokens, 1), d_model, size, num_experts, top_k)
    phase = "forward" if infers else "forward+backward"
    found = nearest_case(sizes, experts.ups is not None, measured, phase)
    return "sorted" if found == "grouped_mm" and not fits else found


@functools.cache
def nearest_case(sizes: tuple[int, int, int, int, int], gated: bool, dtype: str, phase: str) -> str:
    """Find the back end of the most similar measured case: least distance of the sizes' logarithms.

    Args:
        sizes: tokens, d_model, neurons of an expert, experts, top_k.
        gated: whether the experts are gated.
        dtype: `float32` or `bfloat16`.
        phase: `forward` or `forward+backward`.

    Returns:
        A name of `IN_TORCH`.
    """

    def features(sizes: Sequence[int], gated: bool) -> list[float]:
        tokens, d_model, size, num_experts, top_k = sizes
        return [tokens, d_model, size, num_experts, top_k / num_experts, 1 + gated]

    def distance(case: dict[str, Any]) -> float:
        pairs = zip(features(sizes, gated), features(case["sizes"], case["gated"]), strict=True)
        return sum(math.log(a / b) ** 2 for a, b in pairs)

    table = json.loads(TABLE.read_text(encoding="utf-8"))
    cases = [case for case in table["cases"] if (case["dtype"], case["phase"]) == (dtype, phase)]
    return str(min(cases, key=distance)["fastest"])


TABLE = Path(__file__).with_name("backend_table.json")
