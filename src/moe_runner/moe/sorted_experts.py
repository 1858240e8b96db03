"""The back end `sorted`: every expert over its own tokens only, on any device, without a kernel."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices
# P rows of a layout: the choices and what fills up, B experts of a group

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from moe_runner.moe.experts import Activation, Stack

PIECE = 256  # most rows of one product: enough for full speed, few enough for the cache
BLOCK_NUMBERS = 3 << 18  # most numbers in the rows of a block, for each thread: 3 MiB in fp32
SMALL_EXPERT = 1 << 18  # weights of a projection up to which one product leaves threads idle
FILLED = 0.75  # least load of an expert, relative to the busiest of its group


def sort_by_expert(
    x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack
) -> Tensor:
    """Compute only what is selected: tokens sorted by expert, products batched over experts.

    No capacity: an expert takes every token that chose it, and none is dropped.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        As `masked`, equal up to the order of the sums.
    """
    num_experts, size, d_model = experts.keys.shape
    layout = lay_out(index_TK, num_experts, size, d_model)
    weight_S = x_TD.new_ones(index_TK.numel()) if weights_TK is None else weights_TK.flatten()
    weight_P = functional.pad(weight_S, (0, 1))[layout.choice_P]  # rows that fill up: weight 0
    tensors = [x_TD, experts.keys, experts.values, experts.key_bias, experts.ups, experts.up_bias]
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):  # a custom function is not cast by itself
        half = torch.get_autocast_dtype(device)
        tensors = [None if t is None else t.to(half) for t in tensors]
    with torch.autocast(device, enabled=False):
        return SortedExperts.apply(
            *tensors,
            weight_P,
            layout,
            known_activation(experts.activation),
            dropout_mask(x_TD, (len(weight_P), size), experts.pre_dropout),
            dropout_mask(x_TD, (len(weight_P), size), experts.dropout),
        )


@dataclass(frozen=True)
class Group:
    """Some experts of similar load, whose matrix products are computed at once.

    Args:
        experts: int64 (B,).
        numbers: the same on the host, so that a GPU need not be asked.
        blocks: rows of the layout that go through at once, each B times as many as of an expert.
    """

    experts: Tensor
    numbers: list[int]
    blocks: list[slice]

    def view(self, rows_X: Tensor) -> Tensor:
        """Show the rows of a block by expert, (B, rows of an expert, X)."""
        return rows_X.unflatten(0, (len(self.experts), -1))

    def take(self, tensor_EX: Tensor) -> Tensor:
        """Take the group's part of a tensor of the experts, (B, ...); of one expert as a view."""
        if len(self.experts) == 1:
            return tensor_EX.narrow(0, self.numbers[0], 1)
        return tensor_EX.index_select(0, self.experts)


@dataclass(frozen=True)
class Layout:
    """The choices of all tokens in rows, sorted by expert, filled up to groups of equal lengths.

    Args:
        token_P: token of each row, int64 (P,); 0 for a row that only fills up.
        choice_P: place of the row's choice in the flattened index, int64 (P,); S for a row that
            only fills up.
        groups: every expert is in one; the blocks are consecutive rows.
    """

    token_P: Tensor
    choice_P: Tensor
    groups: list[Group]


def lay_out(index_TK: Tensor, num_experts: int, size: int, d_model: int) -> Layout:
    """Sort choices by expert, and join experts of similar load to groups.

    Args:
        index_TK: selected experts, int64 (T, K).
        num_experts: E.
        size: F, neurons of an expert.
        d_model: D.

    Returns:
        The layout. A large expert is a group for itself.
    """
    (num_tokens, top_k), device = index_TK.shape, index_TK.device
    expert_S = index_TK.flatten()
    order_S = expert_S.int().argsort(stable=True)  # of 32 bits: four times as fast
    load = expert_S.bincount(minlength=num_experts).tolist()
    first = [0, *itertools.accumulate(load)]  # of the sorted choices of each expert
    most = torch.get_num_threads() * BLOCK_NUMBERS // max(size, d_model)
    groups: list[Group] = []
    pieces: list[tuple[int, int, int]] = []  # rows, how many of them are real, first sorted choice
    start = 0
    for experts in similar_loads(load, most if size * d_model <= SMALL_EXPERT else 0):
        blocks = []
        for low, high in even_parts(load[experts[0]], PIECE):
            pieces += [
                (high - low, min(max(load[e] - low, 0), high - low), first[e] + low)
                for e in experts
            ]
            blocks.append(slice(start, start + (high - low) * len(experts)))
            start = blocks[-1].stop
        groups.append(Group(torch.tensor(experts, device=device), experts, blocks))
    rows_Q, own_Q, first_Q = torch.tensor(pieces, device=device).long().reshape(-1, 3).T
    within_P = torch.arange(start, device=device)
    within_P -= (rows_Q.cumsum(0) - rows_Q).repeat_interleave(rows_Q, output_size=start)
    real_P = within_P < own_Q.repeat_interleave(rows_Q, output_size=start)
    sorted_P = first_Q.repeat_interleave(rows_Q, output_size=start) + within_P
    choice_P = functional.pad(order_S, (0, 1))[torch.where(real_P, sorted_P, 0)]
    return Layout(
        torch.where(real_P, choice_P // max(top_k, 1), 0),
        torch.where(real_P, choice_P, num_tokens * top_k),
        groups,
    )


def similar_loads(load: list[int], most_rows: int) -> list[list[int]]:
    """Join experts to groups, the busiest first, that are neither too large nor too uneven.

    Args:
        load: choices of each expert.
        most_rows: of all experts of a group in a block; 0: no groups of more than one.

    Returns:
        The experts of each group, the busiest first.
    """
    groups: list[list[int]] = []
    for e in sorted(range(len(load)), key=lambda e: -load[e]):
        if groups:
            longest = load[groups[-1][0]]
            fits = (len(groups[-1]) + 1) * min(longest, PIECE) <= most_rows
            if fits and load[e] >= FILLED * longest:
                groups[-1].append(e)
                continue
        groups.append([e])
    return groups


def even_parts(length: int, most: int) -> list[tuple[int, int]]:
    """Cut a length into parts that are equal up to one, none above `most`: (start, end) of each."""
    parts = -(-length // most)
    ends = [length * part // parts for part in range(parts + 1)] if parts else []
    return list(itertools.pairwise(ends))


def dropout_mask(like: Tensor, size: tuple[int, int], probability: float) -> Tensor | None:
    """Draw a mask of 0 and 1 / (1 - p), of the dtype of `like`; None for p = 0."""
    if probability == 0:
        return None
    return functional.dropout(torch.ones(size, dtype=like.dtype, device=like.device), probability)


class SortedExperts(torch.autograd.Function):
    """Experts over their own tokens, batch by batch, with the backward written out.

    Memory traffic is what costs, not arithmetic: no array of (choices, D) is ever made. The tokens
    of a batch are gathered into one buffer, which stays in the cache for the products, and are
    added to the output. Of the forward pass only pre-activations are kept, (choices, F). A product
    of a single small expert would leave threads idle; a batch of them does not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        keys_EFD: Tensor,
        values_EFD: Tensor,
        key_bias_EF: Tensor | None,
        ups_EFD: Tensor | None,
        up_bias_EF: Tensor | None,
        weight_P: Tensor,
        layout: Layout,
        activation: Activation,
        pre_mask_PF: Tensor | None,
        mask_PF: Tensor | None,
    ) -> Tensor:
        """Add up the selected experts' outputs, see `sort_by_expert`."""
        # K summands in half precision would lose what one matrix product, as in `masked`, keeps
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        output_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
        pre_PF = x_TD.new_empty(len(weight_P), keys_EFD.shape[1])
        up_PF = None if ups_EFD is None else torch.empty_like(pre_PF)
        buffer = row_buffer(x_TD, layout)
        for group in layout.groups:
            keys, key_bias = group.take(keys_EFD), take(group, key_bias_EF)
            values, ups, up_bias = (
                group.take(values_EFD),
                take(group, ups_EFD),
                take(group, up_bias_EF),
            )
            for block in group.blocks:
                token = layout.token_P[block]
                x = group.view(torch.index_select(x_TD, 0, token, out=buffer[: len(token)]))
                pre = project(x, keys, key_bias, out=group.view(pre_PF[block]))
                if pre_mask_PF is not None:
                    pre.mul_(group.view(pre_mask_PF[block]))
                hidden = activation(pre)
                if ups is not None and up_PF is not None:
                    hidden = hidden * project(x, ups, up_bias, out=group.view(up_PF[block]))
                hidden = hidden * scale_of(group, block, weight_P, mask_PF, hidden.dtype)
                rows = torch.bmm(hidden, values, out=x)  # x is not needed any more
                output_TD.index_add_(0, token, rows.flatten(0, 1).to(wide))
        ctx.layout, ctx.activation = layout, activation
        ctx.biased = key_bias_EF is not None, up_bias_EF is not None
        ctx.save_for_backward(
            x_TD, keys_EFD, values_EFD, ups_EFD, weight_P, pre_PF, up_PF, pre_mask_PF, mask_PF
        )
        return output_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        """Propagate through the same batches; the activations are computed again."""
        x_TD, keys_EFD, values_EFD, ups_EFD, weight_P, pre_PF, up_PF, pre_mask_PF, mask_PF = (
            ctx.saved_tensors
        )
        need_x, need_keys, need_values, need_key_bias, need_ups, need_up_bias, need_weight = (
            ctx.needs_input_grad[:7]
        )
        layout: Layout = ctx.layout
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        grad_x = torch.zeros_like(x_TD, dtype=wide) if need_x else None
        grad_weight = torch.zeros_like(weight_P) if need_weight else None
        bias_EF = keys_EFD[..., 0]
        totals = {
            "keys": Total(keys_EFD, need_keys),
            "values": Total(values_EFD, need_values),
            "key_bias": Total(bias_EF, need_key_bias and ctx.biased[0]),
            "ups": Total(keys_EFD, need_ups and ups_EFD is not None),
            "up_bias": Total(bias_EF, need_up_bias and ctx.biased[1]),
        }
        x_buffer, grad_buffer = row_buffer(x_TD, layout), row_buffer(x_TD, layout)
        for group in layout.groups:
            keys, values, ups = group.take(keys_EFD), group.take(values_EFD), take(group, ups_EFD)
            for total in totals.values():
                total.open(group)
            for block in group.blocks:
                token = layout.token_P[block]
                grad = group.view(
                    torch.index_select(grad_TD, 0, token, out=grad_buffer[: len(token)])
                )
                hidden, slope = activate_and_differentiate(
                    ctx.activation, group.view(pre_PF[block])
                )
                up = None if up_PF is None else group.view(up_PF[block])
                gated = hidden if up is None else hidden * up
                scale = scale_of(group, block, weight_P, mask_PF, gated.dtype)
                grad_scaled = grad @ values.transpose(1, 2)
                totals["values"].add_product(gated * scale, grad)
                if grad_weight is not None:
                    dropped = gated if mask_PF is None else gated * group.view(mask_PF[block])
                    grad_weight[block] = (grad_scaled * dropped).sum(2).flatten()
                grad_gated = grad_scaled.mul_(scale)
                grad_pre = slope(grad_gated if up is None else grad_gated * up)
                if pre_mask_PF is not None:
                    grad_pre = grad_pre * group.view(pre_mask_PF[block])
                totals["key_bias"].add(grad_pre)
                if need_keys or need_ups:
                    x = group.view(torch.index_select(x_TD, 0, token, out=x_buffer[: len(token)]))
                    totals["keys"].add_product(grad_pre, x)
                if up is not None:
                    grad_up = grad_gated * hidden
                    totals["up_bias"].add(grad_up)
                    if need_ups:
                        totals["ups"].add_product(grad_up, x)
                if grad_x is not None:
                    rows = torch.bmm(grad_pre, keys, out=grad)
                    if ups is not None:
                        rows.baddbmm_(grad_up, ups)
                    grad_x.index_add_(0, token, rows.flatten(0, 1).to(wide))
            for total in totals.values():
                total.close(group)
        grads = (grad_x, *(total.grad_EX for total in totals.values()))  # in forward's order
        narrow = (None if grad is None else grad.to(x_TD.dtype) for grad in grads)
        return *narrow, grad_weight, None, None, None, None


class Total:
    """The gradient of a tensor of the experts, summed up group by group in fp32 or wider.

    Args:
        like: float (E, ...).
        needed: if not, nothing is done.
    """

    def __init__(self, like: Tensor, needed: bool) -> None:
        wide = torch.promote_types(like.dtype, torch.float32)
        self.grad_EX = torch.empty_like(like, dtype=wide) if needed else None
        self.part: Tensor | None = None  # of the open group, (B, ...)

    def open(self, group: Group) -> None:
        """Begin with a group."""
        if self.grad_EX is not None:
            self.part = group.take(self.grad_EX).zero_()

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add left^T right of every expert, of (B, rows, F) and (B, rows, D)."""
        if self.part is None:
            return
        if self.part.dtype == left.dtype:
            self.part.baddbmm_(left.transpose(1, 2), right)
        else:
            self.part.add_(left.transpose(1, 2) @ right)

    def add(self, rows: Tensor) -> None:
        """Add the sum over the rows of every expert, of (B, rows, F)."""
        if self.part is not None:
            self.part.add_(rows.sum(1))

    def close(self, group: Group) -> None:
        """End with a group; the part of one expert is a view, and is there already."""
        if self.grad_EX is not None and self.part is not None and len(group.experts) > 1:
            for e, part in zip(group.numbers, self.part, strict=True):
                self.grad_EX[e] = part  # much faster than index_copy_


def row_buffer(x_TD: Tensor, layout: Layout) -> Tensor:
    """Make room for the rows of the largest block, (rows, D)."""
    blocks = [block for group in layout.groups for block in group.blocks]
    rows = max((block.stop - block.start for block in blocks), default=0)
    return x_TD.new_empty(rows, x_TD.shape[1])


def take(group: Group, tensor_EX: Tensor | None) -> Tensor | None:
    """Take a group's part of a tensor of the experts that may not be there."""
    return None if tensor_EX is None else group.take(tensor_EX)


def project(x: Tensor, rows: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    """Compute x rows^T + bias of every expert into `out`, (B, rows, F)."""
    if bias is None:
        return torch.bmm(x, rows.transpose(1, 2), out=out)
    return torch.baddbmm(bias[:, None], x, rows.transpose(1, 2), out=out)


def scale_of(
    group: Group, block: slice, weight_P: Tensor, mask_PF: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Join what activations are multiplied by, router weight and dropout: (B, rows, 1 or F)."""
    weight = group.view(weight_P[block, None]).to(dtype)
    return weight if mask_PF is None else weight * group.view(mask_PF[block])


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
