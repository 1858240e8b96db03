"""Back ends: ways of computing the selected experts of each token, with the same numbers."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import grouped_mm

from moe_runner.moe.experts import Activation, Stack, combine_matrix


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


def sort_by_expert(
    x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack
) -> Tensor:
    """Compute only what is selected: tokens sorted by expert, one small product per expert.

    No capacity: an expert takes every token that chose it, and none is dropped.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        As `masked`, equal up to the order of the sums.
    """
    order_S, token_S, load = sort_choices(index_TK, experts.num_experts)
    weight_S = None if weights_TK is None else weights_TK.flatten()[order_S]
    tensors = [x_TD, experts.keys, experts.values, experts.key_bias, experts.ups, experts.up_bias]
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # a custom function is not cast by itself
        half = torch.get_autocast_dtype(device)
        tensors = [None if t is None else t.to(half) for t in tensors]
    size = (len(token_S), experts.keys.shape[1])
    with torch.autocast(device, enabled=False):
        return SortedExperts.apply(
            *tensors,
            weight_S,
            token_S,
            load,
            known_activation(experts.activation),
            dropout_mask(x_TD, size, experts.pre_dropout),
            dropout_mask(x_TD, size, experts.dropout),
        )


def sort_choices(index_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Sort the choices by expert.

    Returns:
        The place of each choice in the flattened index, int64 (S,), its token, int64 (S,), and the
        number of choices of each expert.
    """
    expert_S = index_TK.flatten()
    order_S = expert_S.argsort(stable=True)
    load = expert_S.bincount(minlength=num_experts).tolist()
    return order_S, order_S // index_TK.shape[1], load


def dropout_mask(like: Tensor, size: tuple[int, int], probability: float) -> Tensor | None:
    """Draw a mask of 0 and 1 / (1 - p), of the dtype of `like`; None for p = 0."""
    if probability == 0:
        return None
    return functional.dropout(torch.ones(size, dtype=like.dtype, device=like.device), probability)


class SortedExperts(torch.autograd.Function):
    """Experts over their own tokens, one after the other, with the backward written out.

    Memory traffic is what costs, not arithmetic: no array of (choices, D) is ever made. A chunk of
    an expert's tokens is gathered into one small buffer, which stays in the cache for the products,
    and is added to the output. Of the forward pass only pre-activations are kept, (choices, F).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_TD: Tensor,
        keys_EFD: Tensor,
        values_EFD: Tensor,
        key_bias_EF: Tensor | None,
        ups_EFD: Tensor | None,
        up_bias_EF: Tensor | None,
        weight_S: Tensor | None,
        token_S: Tensor,
        load: list[int],
        activation: Activation,
        pre_mask_SF: Tensor | None,
        mask_SF: Tensor | None,
    ) -> Tensor:
        """Add up the selected experts' outputs, see `sort_by_expert`."""
        ctx.load, ctx.activation = load, activation
        # K summands in half precision would lose what one matrix product, as in `masked`, keeps
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        output_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
        pre_SF = x_TD.new_empty(len(token_S), keys_EFD.shape[1])
        up_SF = None if ups_EFD is None else torch.empty_like(pre_SF)
        buffer = x_TD.new_empty(min(CHUNK, max(load, default=0)), x_TD.shape[1])
        for e, part in chunks(load):
            token = token_S[part]
            x = torch.index_select(x_TD, 0, token, out=buffer[: len(token)])
            pre = project(x, keys_EFD[e], None if key_bias_EF is None else key_bias_EF[e])
            if pre_mask_SF is not None:
                pre = pre * pre_mask_SF[part]
            pre_SF[part] = pre
            hidden = activation(pre)
            if ups_EFD is not None:
                up = project(x, ups_EFD[e], None if up_bias_EF is None else up_bias_EF[e])
                up_SF[part] = up
                hidden = hidden * up
            scale = scale_of(part, weight_S, mask_SF, hidden)
            if scale is not None:
                hidden = hidden * scale
            rows = torch.mm(hidden, values_EFD[e], out=buffer[: len(token)])
            output_TD.index_add_(0, token, rows.to(wide))
        ctx.save_for_backward(
            x_TD, keys_EFD, values_EFD, ups_EFD, weight_S, token_S, pre_SF, up_SF, pre_mask_SF,
            mask_SF,
        )  # fmt: skip
        ctx.biased = key_bias_EF is not None, up_bias_EF is not None
        return output_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Propagate through the same chunks; the activations are computed again."""
        (
            x_TD, keys_EFD, values_EFD, ups_EFD, weight_S, token_S, pre_SF, up_SF, pre_mask_SF,
            mask_SF,
        ) = ctx.saved_tensors  # fmt: skip
        need_x, need_keys, need_values, need_key_bias, need_ups, need_up_bias, need_weight = (
            ctx.needs_input_grad[:7]
        )
        wide = torch.promote_types(x_TD.dtype, torch.float32)

        def zeros(like: Tensor | None, needed: bool, *shape: int) -> Tensor | None:
            return like.new_zeros(shape or like.shape) if needed and like is not None else None

        grad_x = torch.zeros_like(x_TD, dtype=wide) if need_x else None
        grad_keys, grad_values = zeros(keys_EFD, need_keys), zeros(values_EFD, need_values)
        grad_ups = zeros(ups_EFD, need_ups)
        biases = keys_EFD.shape[:2]
        grad_key_bias = zeros(keys_EFD, ctx.biased[0] and need_key_bias, *biases)
        grad_up_bias = zeros(ups_EFD, ctx.biased[1] and need_up_bias, *biases)
        grad_weight = torch.zeros_like(weight_S) if need_weight else None
        grad_TD = grad_TD.contiguous()
        size = (min(CHUNK, max(ctx.load, default=0)), x_TD.shape[1])
        x_buffer, grad_buffer = x_TD.new_empty(size), x_TD.new_empty(size)
        for e, part in chunks(ctx.load):
            token = token_S[part]
            grad = torch.index_select(grad_TD, 0, token, out=grad_buffer[: len(token)])
            pre = pre_SF[part]
            hidden, slope = activate_and_differentiate(ctx.activation, pre)
            up = None if up_SF is None else up_SF[part]
            gated = hidden if up is None else hidden * up
            scale = scale_of(part, weight_S, mask_SF, gated)
            grad_scaled = grad @ values_EFD[e].T
            if grad_values is not None:
                scaled = gated if scale is None else gated * scale
                grad_values[e].addmm_(scaled.T, grad)
            if grad_weight is not None:
                dropped = gated if mask_SF is None else gated * mask_SF[part]
                grad_weight[part] = (grad_scaled * dropped).sum(1).to(grad_weight.dtype)
            grad_gated = grad_scaled if scale is None else grad_scaled * scale
            grad_hidden = grad_gated if up is None else grad_gated * up
            grad_pre = slope(grad_hidden)
            if pre_mask_SF is not None:
                grad_pre = grad_pre * pre_mask_SF[part]
            grad_up = None if up is None else grad_gated * hidden
            if grad_key_bias is not None:
                grad_key_bias[e] += grad_pre.sum(0)
            if grad_up_bias is not None:
                grad_up_bias[e] += grad_up.sum(0)
            if grad_keys is not None or grad_ups is not None:
                x = torch.index_select(x_TD, 0, token, out=x_buffer[: len(token)])
                if grad_keys is not None:
                    grad_keys[e].addmm_(grad_pre.T, x)
                if grad_ups is not None:
                    grad_ups[e].addmm_(grad_up.T, x)
            if grad_x is not None:
                rows = torch.mm(grad_pre, keys_EFD[e], out=grad_buffer[: len(token)])
                if grad_up is not None:
                    rows.addmm_(grad_up, ups_EFD[e])
                grad_x.index_add_(0, token, rows.to(wide))
        if grad_x is not None:
            grad_x = grad_x.to(x_TD.dtype)
        grads = (grad_x, grad_keys, grad_values, grad_key_bias, grad_ups, grad_up_bias, grad_weight)
        return *grads, None, None, None, None, None


def chunks(load: list[int]) -> Iterator[tuple[int, slice]]:
    """Go through the sorted choices: the expert and a slice of at most CHUNK of its choices.

    The slices of an expert are equally long, up to one.
    """
    start = 0
    for e, count in enumerate(load):
        pieces = -(-count // CHUNK)
        for piece in range(pieces):
            yield e, slice(start + count * piece // pieces, start + count * (piece + 1) // pieces)
        start += count


def project(x: Tensor, rows_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """Compute x rows^T + bias, float (tokens, F)."""
    return x @ rows_FD.T if bias_F is None else torch.addmm(bias_F, x, rows_FD.T)


def scale_of(
    part: slice, weight_S: Tensor | None, mask_SF: Tensor | None, hidden: Tensor
) -> Tensor | None:
    """Join what some activations are multiplied by: router weight and dropout; None for 1."""
    if weight_S is None:
        return None if mask_SF is None else mask_SF[part]
    weight = weight_S[part, None].to(hidden.dtype)
    return weight if mask_SF is None else weight * mask_SF[part]


def known_activation(activation: Activation) -> Activation:
    """Replace the tanh form of GELU, which transformers spells out, by torch's fused one."""
    if type(activation).__name__ in ("NewGELUActivation", "FastGELUActivation"):
        return tanh_gelu
    if type(activation).__name__ == "GELUActivation":
        return functional.gelu
    return activation


def tanh_gelu(x: Tensor) -> Tensor:
    """Compute GELU by its tanh formula."""
    return functional.gelu(x, approximate="tanh")


def activate_and_differentiate(
    activation: Activation, pre: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Apply an elementwise function, and give what maps an upstream gradient through it."""
    if activation in (functional.gelu, tanh_gelu):
        form = "none" if activation is functional.gelu else "tanh"
        hidden = functional.gelu(pre, approximate=form)
        return hidden, lambda grad: torch.ops.aten.gelu_backward(grad, pre, approximate=form)
    with torch.enable_grad():
        leaf = pre.detach().requires_grad_()
        out = activation(leaf)
    return out.detach(), lambda grad: torch.autograd.grad(out, leaf, grad)[0]


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
        ValueError: in float64, which the product does not know.
    """
    if x_TD.dtype == torch.float64:
        raise ValueError("the back end grouped_mm has no float64; use masked or sorted")
    order_S, token_S, load = sort_choices(index_TK, experts.num_experts)
    ends_E = torch.tensor(load, dtype=torch.int32, device=x_TD.device).cumsum(0, dtype=torch.int32)
    expert_S = index_TK.flatten()[order_S]
    tensors = [x_TD, experts.keys, experts.values, experts.ups]
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # not on autocast's list
        half = torch.get_autocast_dtype(device)
        tensors = [None if t is None else t.to(half) for t in tensors]
    x_TD, keys_EFD, values_EFD, ups_EFD = tensors
    x_SD = x_TD[token_S]

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
        grouped_mm(hidden_SF.to(x_TD.dtype), values_EFD, offs=ends_E)
    )
    wide = torch.promote_types(rows_SD.dtype, torch.float32)
    sums_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
    return sums_TD.index_add(0, token_S, rows_SD.to(wide)).to(rows_SD.dtype)


class ContiguousGradient(torch.autograd.Function):
    """Pass values on, and a contiguous gradient back: the grouped product's backward needs one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the input."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """Return the gradient, contiguous."""
        return grad.contiguous()


BACKENDS = {"masked": masked, "sorted": sort_by_expert, "grouped_mm": grouped}
CHUNK = 1024  # tokens of an expert that go through at once: their rows stay in the cache


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
