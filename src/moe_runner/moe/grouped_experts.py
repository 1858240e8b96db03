"""The back end `grouped_mm`: torch's grouped matrix product, one kernel for all experts on CUDA."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
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
    x_SD, keys_EFD, values_EFD = x_TD[token_S], experts.keys, experts.values
    ups_EFD = experts.ups
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # not on autocast's list
        half = torch.get_autocast_dtype(device)
        x_SD, keys_EFD, values_EFD = x_SD.to(half), keys_EFD.to(half), values_EFD.to(half)
        ups_EFD = None if ups_EFD is None else ups_EFD.to(half)
    _, size, d_model = keys_EFD.shape
    if not fits_grouped(d_model, size, x_SD.dtype.itemsize):
        reason = refusal(d_model, size, x_SD.dtype.itemsize)
        raise ValueError(f"{reason}; use the back end sorted or auto")

    def linear(rows_EFD: Tensor, bias_EF: Tensor | None) -> Tensor:
        out_SF = ContiguousGradient.apply(grouped_mm(x_SD, rows_EFD.transpose(1, 2), offs=ends_E))
        return out_SF if bias_EF is None else out_SF + bias_EF[expert_S].to(out_SF.dtype)

    pre_SF = linear(keys_EFD, experts.key_bias)
    if experts.pre_dropout:
        pre_SF = functional.dropout(pre_SF, experts.pre_dropout)
    hidden_SF = experts.activation(pre_SF)
    if ups_EFD is not None:
        hidden_SF = hidden_SF * linear(ups_EFD, experts.up_bias)
    if experts.dropout:
        hidden_SF = functional.dropout(hidden_SF, experts.dropout)
    if weights_TK is not None:
        hidden_SF = hidden_SF * weights_TK.flatten()[order_S, None].to(hidden_SF.dtype)
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
