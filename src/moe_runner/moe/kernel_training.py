"""The back end `kernel`: the C++ kernel's products over sorted choices, with their gradients.

Three products are all that experts and their gradients consist of: rows of the chosen experts times
the token, sums over a token's choices, and outer products summed over an expert's choices. Each is
the gradient of the others. No row of a token is copied: the kernel reads and adds it where it lies.
"""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_runner.kernels import building
from moe_runner.moe import kernel_experts
from moe_runner.moe.experts import NEURON_TENSORS, Stack
from moe_runner.moe.sorted_experts import known_activation


def by_kernel(x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack) -> Tensor:
    """Compute only what is selected by the C++ kernel, in fp32 on a CPU.

    Args:
        x_TD: tokens, float32 (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        As `masked`, equal up to the order of the sums, which does not depend on the threads.

    Raises:
        ValueError: on another device or dtype, under autocast, while a program is traced, or where
            the kernel is not built.
    """
    if kernel_experts.fits(x_TD, experts):  # without a gradient, in one go
        return kernel_experts.kernel(x_TD, index_TK, weights_TK, experts)
    if reason := refusal(x_TD, experts):
        raise ValueError(f"the back end kernel {reason}; use sorted or auto")
    kernel_experts.calls += 1
    x_TD, index_TK = x_TD.contiguous(), index_TK.contiguous()
    order_S = torch.ops.moe_runner.order(index_TK, experts.num_experts)

    def project(rows_EFD: Tensor, bias_EF: Tensor | None) -> Tensor:
        bias_EF = None if bias_EF is None else bias_EF.contiguous()
        found: Tensor = Project.apply(x_TD, index_TK, rows_EFD.contiguous(), bias_EF)
        return found

    weight_S = None if weights_TK is None else weights_TK.float().flatten()[order_S]
    known = replace(experts, activation=known_activation(experts.activation))
    hidden_SF = known.activate_choices(project, weight_S)
    output_TD: Tensor = Combine.apply(hidden_SF, index_TK, experts.values.contiguous())
    return output_TD


def refusal(x_TD: Tensor, experts: Stack) -> str | None:
    """Say why the kernel cannot compute some experts, with a gradient or without; None if it can.

    Args:
        x_TD: tokens, float (T, D).
        experts: their tensors.
    """
    tensors = [x_TD, *(t for name in NEURON_TENSORS if (t := getattr(experts, name)) is not None)]
    kinds, devices = {t.dtype for t in tensors}, {t.device.type for t in tensors}
    under_autocast = torch.is_autocast_enabled("cpu")
    if kinds != {torch.float32} or devices != {"cpu"} or under_autocast:
        found = f"{', '.join(sorted(map(str, kinds)))} on {', '.join(sorted(devices))}"
        found += " under autocast" if under_autocast else ""
        return f"computes in fp32 on a CPU, and this is {found}"
    if torch.compiler.is_compiling():
        return "cannot be traced"
    return None if kernel_experts.load() else f"is not there: {building.why_missing()}"


class Project(torch.autograd.Function):
    """Rows of the chosen experts times the token, and a bias.

    Args of `apply`, all contiguous: tokens, float32 (T, D); selection, int64 (T, K); rows, float32
    (E, F, D); bias, float32 (E, F) or None. Gives float32 (S, F), sorted by expert.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, index_TK: Tensor, rows_EFD: Tensor, bias_EF: Tensor | None
    ) -> Tensor:
        """Compute float32 (S, F)."""
        ctx.save_for_backward(x_TD, index_TK, rows_EFD)
        found: Tensor = torch.ops.moe_runner.project(x_TD, index_TK, rows_EFD, bias_EF)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SF: Tensor) -> tuple[Tensor | None, ...]:
        """Propagate (S, F) to tokens, rows and bias."""
        x_TD, index_TK, rows_EFD = ctx.saved_tensors
        need_x, _, need_rows, need_bias = ctx.needs_input_grad
        grad_SF, grad_x, grad_rows, grad_bias = grad_SF.contiguous(), None, None, None
        if need_x:
            grad_x = torch.ops.moe_runner.combine(grad_SF, index_TK, rows_EFD)
        if need_rows or need_bias:
            grad_rows, grad_bias = torch.ops.moe_runner.outer(
                grad_SF, index_TK, x_TD, len(rows_EFD)
            )
        return (
            grad_x, None, grad_rows if need_rows else None, grad_bias if need_bias else None,
        )  # fmt: skip


class Combine(torch.autograd.Function):
    """The sum over a token's choices of their activations times the expert's rows.

    Args of `apply`: activations, float32 (S, F), sorted by expert; selection, int64 (T, K), and
    rows, float32 (E, F, D), both contiguous. Gives float32 (T, D).
    """

    @staticmethod
    def forward(ctx: Any, hidden_SF: Tensor, index_TK: Tensor, rows_EFD: Tensor) -> Tensor:
        """Compute float32 (T, D)."""
        hidden_SF = hidden_SF.contiguous()
        ctx.save_for_backward(hidden_SF, index_TK, rows_EFD)
        found: Tensor = torch.ops.moe_runner.combine(hidden_SF, index_TK, rows_EFD)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        """Propagate (T, D) to activations and rows."""
        hidden_SF, index_TK, rows_EFD = ctx.saved_tensors
        need_hidden, _, need_rows = ctx.needs_input_grad
        grad_TD, grad_hidden, grad_rows = grad_TD.contiguous(), None, None
        if need_hidden:
            grad_hidden = torch.ops.moe_runner.project(grad_TD, index_TK, rows_EFD, None)
        if need_rows:
            grad_rows, _ = torch.ops.moe_runner.outer(hidden_SF, index_TK, grad_TD, len(rows_EFD))
        return grad_hidden, None, grad_rows
