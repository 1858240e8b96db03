"""One token, as in decoding: the selected experts' weights are read once, and nothing else is.

A product of one row is bound by reading its matrix. The selected rows are copied together, which
reads them from memory once and leaves them in the cache for the product; the values are added up
where they lie. The other back ends are made for many tokens: they sort, or read every expert.
"""

# T = 1 token, D d_model, E experts, F neurons of one expert, K selected experts, S = K * F

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_runner.moe.experts import Stack, neurons


def one_token(x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack) -> Tensor:
    """Compute the selected experts of a single token, without a gradient.

    Args:
        x_TD: the token, float (1, D).
        index_TK: its experts, int64 (1, K), none twice.
        weights_TK: weight of each, float (1, K), or None: 1 each.
        experts: their tensors; dropout is not applied.

    Returns:
        As `backends.masked`, float (1, D), equal up to the order of the sums.
    """
    index_K = index_TK[0]

    def rows(tensor_EFX: Tensor | None) -> Tensor | None:
        return None if tensor_EFX is None else tensor_EFX.index_select(0, index_K).flatten(0, 1)

    keys_SD = rows(experts.keys)
    assert keys_SD is not None
    hidden_TS = neurons(
        x_TD, keys_SD, rows(experts.key_bias), rows(experts.ups), rows(experts.up_bias),
        experts.activation,
    )  # fmt: skip
    size = experts.keys.shape[1]
    if weights_TK is not None:
        hidden_TS = hidden_TS * weights_TK.to(hidden_TS.dtype).repeat_interleave(size, dim=1)
    values_ND = experts.values.flatten(0, 1)
    if hidden_TS.dtype != values_ND.dtype or hidden_TS.dtype not in (torch.float32, torch.float64):
        values_SD = rows(experts.values)
        assert values_SD is not None
        return hidden_TS @ values_SD.to(hidden_TS.dtype)
    neuron_TS = (index_TK[..., None] * size + torch.arange(size, device=x_TD.device)).flatten(1)
    return functional.embedding_bag(neuron_TS, values_ND, mode="sum", per_sample_weights=hidden_TS)
