"""The back end `grouped_mm`: torch's grouped matrix product, one kernel for all experts on CUDA."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from moe_runner.moe.alignment import fits_grouped, refusal
from moe_runner.moe.experts import Stack


def grouped(x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack) -> Tensor:
    """Compute only what is selected by torch's grouped matrix product: one kernel for all experts.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        As `masked`, equal up to the order of the sums.

    Raises:
        ValueError: in float64, which the product does not know, or with sizes that it refuses, see
            `alignment`.
    """
    if x_TD.dtype == torch.float64:
        raise ValueError("the back end grouped_mm has no float64; use masked or sorted")
    expert_S, order_S = index_TK.flatten().sort(stable=True)
    token_S = order_S // index_TK.shape[1]
    every_E = torch.arange(experts.num_experts, device=x_TD.device)
    ends_E = torch.searchsorted(expert_S, every_E, right=True).int()  # stays on the device
    x_SD, values_EFD = x_TD[token_S], experts.values
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # not on autocast's list
        half = torch.get_autocast_dtype(device)
        x_SD, values_EFD = x_SD.to(half), values_EFD.to(half)
    _, size, d_model = values_EFD.shape
    if not fits_grouped(d_model, size, x_SD.dtype.itemsize):
        reason = refusal(d_model, size, x_SD.dtype.itemsize)
        raise ValueError(f"{reason}; use the back end sorted or auto")

    def project(rows_EFD: Tensor, bias_EF: Tensor | None) -> Tensor:
        rows_EDF = rows_EFD.to(x_SD.dtype).transpose(1, 2)
        out_SF = ContiguousGradient.apply(grouped_mm(x_SD, rows_EDF, offs=ends_E))
        return out_SF if bias_EF is None else out_SF + bias_EF[expert_S].to(out_SF.dtype)

    weight_S = None if weights_TK is None else weights_TK.flatten()[order_S]
    hidden_SF = experts.activate_choices(project, weight_S)
    rows_SD = ContiguousGradient.apply(
        grouped_mm(hidden_SF.to(x_SD.dtype), values_EFD, offs=ends_E)
    )
    wide = torch.promote_types(rows_SD.dtype, torch.float32)
    sums_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
    return sums_TD.index_add(0, token_S, rows_SD.to(wide)).to(rows_SD.dtype)


class ContiguousGradient(torch.autograd.Function):
    """Pass values on, and a contiguous gradient back: the grouped product's backward needs one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the input."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient, contiguous."""
        return grad.contiguous()
