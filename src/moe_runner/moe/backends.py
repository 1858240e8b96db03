"""Back ends: ways of computing the selected experts of each token, with the same numbers."""

# T tokens, D d_model, E experts, F neurons of one expert, K selected experts, S = T * K choices

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_runner.moe.experts import Stack, combine_matrix, neurons


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
    expert_S = index_TK.flatten()
    order_S = expert_S.argsort(stable=True)
    token_S = order_S // index_TK.shape[1]
    load = expert_S.bincount(minlength=experts.num_experts).tolist()
    # unbind, not indexing: the backward of an indexed expert fills a gradient of all experts
    stacks = [
        [None] * experts.num_experts if tensor is None else tensor.unbind(0)
        for tensor in (experts.keys, experts.key_bias, experts.ups, experts.up_bias, experts.values)
    ]
    outputs = []
    for rows, keys, key_bias, ups, up_bias, values in zip(
        x_TD[token_S].split(load), *stacks, strict=True
    ):
        hidden = neurons(
            rows, keys, key_bias, ups, up_bias, experts.activation, experts.pre_dropout
        )
        if experts.dropout:
            hidden = functional.dropout(hidden, experts.dropout)
        outputs.append(hidden @ values)
    output_SD = torch.cat(outputs)
    # K summands in half precision would lose what one matrix product, as in `masked`, keeps
    wide = torch.promote_types(output_SD.dtype, torch.float32)
    summands_SD = output_SD.to(wide)
    if weights_TK is not None:
        summands_SD = summands_SD * weights_TK.flatten()[order_S, None]
    sums_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
    return sums_TD.index_add(0, token_S, summands_SD).to(output_SD.dtype)


BACKENDS = {"masked": masked, "sorted": sort_by_expert}


def choose_backend(tokens: int, top_k: int, experts: Stack) -> str:
    """Choose the back end for the sizes of a layer.

    Small experts are bound by the overhead of many small products, so they are masked.

    Returns:
        A name of `BACKENDS`.
    """
    _, size, d_model = experts.keys.shape
    return "sorted" if size * d_model >= SORTED_FROM else "masked"


SORTED_FROM = 24_576  # weights of one projection of one expert; measured on one CPU core
