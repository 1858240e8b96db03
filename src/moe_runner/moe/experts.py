"""The neurons of a feed-forward network, stacked by expert, and the back ends that compute them."""

# T tokens, D d_model, E experts, F neurons of one expert, N = E * F (d_ff), K selected experts

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FFN:
    """A dense feed-forward network as plain tensors: y = act(x K^T + b) [* (x U^T + b)] V + b.

    Args:
        keys: rows of the first (gated: the gate) projection, float (d_ff, D).
        values: rows feeding the second projection, float (d_ff, D).
        activation: elementwise.
        key_bias: float (d_ff,) or None.
        ups: rows of the up projection of a gated FFN, float (d_ff, D) or None.
        up_bias: float (d_ff,) or None.
        output_bias: float (D,) or None.
        dropout: probability of dropping an activation in training (T5 has it).
    """

    keys: Tensor
    values: Tensor
    activation: Activation
    key_bias: Tensor | None = None
    ups: Tensor | None = None
    up_bias: Tensor | None = None
    output_bias: Tensor | None = None
    dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the dense network on tokens (..., D): what converted layers start from."""
        hidden = neurons(x, self.keys, self.key_bias, self.ups, self.up_bias, self.activation)
        return functional.linear(hidden, self.values.T, self.output_bias)


# What moves with a neuron; the output bias does not.
NEURON_TENSORS = ("keys", "values", "key_bias", "ups", "up_bias")


def neurons(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor | None,
    ups: Tensor | None,
    up_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Compute the activations of some neurons.

    Args:
        x: tokens, float (..., D).
        keys: float (F, D); the other arguments as in `FFN`, of the same neurons.
        key_bias: float (F,) or None.
        ups: float (F, D) or None.
        up_bias: float (F,) or None.
        activation: elementwise.

    Returns:
        float (..., F).
    """
    hidden = activation(functional.linear(x, keys, key_bias))
    return hidden if ups is None else hidden * functional.linear(x, ups, up_bias)


class Experts(nn.Module):
    """All experts of one FFN, stacked: an unselected expert has a gradient, of zero.

    Args:
        ffn: the dense network; its values are copied, none changes.
        expert_of_neuron: int64 (N,), each of 0..E-1 equally often. Within an expert the neurons
            keep their original order.
    """

    keys: nn.Parameter  # (E, F, D)
    values: nn.Parameter  # (E, F, D)
    key_bias: nn.Parameter | None  # (E, F)
    ups: nn.Parameter | None  # (E, F, D)
    up_bias: nn.Parameter | None  # (E, F)
    output_bias: nn.Parameter | None  # (D,)
    expert_of_neuron: Tensor  # buffer, the original index's expert: what merge needs

    def __init__(self, ffn: FFN, expert_of_neuron: Tensor) -> None:
        super().__init__()
        self.num_experts = int(expert_of_neuron.max()) + 1
        self.activation = ffn.activation
        self.dropout = ffn.dropout
        self.register_buffer("expert_of_neuron", expert_of_neuron.to(ffn.keys.device).long())
        order_N = self.order()
        for name in NEURON_TENSORS:
            tensor = getattr(ffn, name)
            if tensor is not None:
                stacked = tensor.detach()[order_N].unflatten(0, (self.num_experts, -1)).contiguous()
                tensor = nn.Parameter(stacked, requires_grad=tensor.requires_grad)
            self.register_parameter(name, tensor)
        bias = ffn.output_bias
        if bias is not None:
            bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("output_bias", bias)

    def order(self) -> Tensor:
        """List the original index of each neuron in stacked order, int64 (N,)."""
        return self.expert_of_neuron.argsort(stable=True)

    def dense(self) -> FFN:
        """Put the neurons back into their original order; exact, since nothing is computed.

        A tensor requires a gradient if its parameter trains.
        """
        inverse_N = self.order().argsort()
        tensors: dict[str, Any] = {}
        for name in (*NEURON_TENSORS, "output_bias"):
            parameter = getattr(self, name)
            if parameter is None:
                continue
            tensor = parameter.detach()
            tensor = tensor.clone() if name == "output_bias" else tensor.flatten(0, 1)[inverse_N]
            tensors[name] = tensor.requires_grad_(parameter.requires_grad)
        return FFN(activation=self.activation, dropout=self.dropout, **tensors)

    def activations(self, x_TD: Tensor) -> Tensor:
        """Compute every neuron on every token, float (T, E, F)."""
        key_bias, ups, up_bias = (
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (self.key_bias, self.ups, self.up_bias)
        )
        keys_ND = self.keys.flatten(0, 1)
        hidden_TN = neurons(x_TD, keys_ND, key_bias, ups, up_bias, self.activation)
        return hidden_TN.unflatten(-1, (self.num_experts, -1))

    def drop(self, hidden: Tensor) -> Tensor:
        """Apply the FFN's inner dropout in training mode."""
        return functional.dropout(hidden, self.dropout, self.training) if self.dropout else hidden

    def extra_repr(self) -> str:
        """Show the sizes in `print(model)`."""
        num_experts, size, d_model = self.keys.shape
        return f"num_experts={num_experts}, neurons={size}, d_model={d_model}"


def masked(x_TD: Tensor, index_TK: Tensor, experts: Experts) -> Tensor:
    """Compute every neuron and zero those of unselected experts: the definition, and the oracle.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        experts: the stacked experts.

    Returns:
        Sum over the selected experts plus the output bias once, float (T, D).

    Source: EMoE, arXiv:2310.10908: the block mask over the d_ff activations.
    """
    hidden_TEF = experts.activations(x_TD)
    mask_TE = hidden_TEF.new_zeros(hidden_TEF.shape[:2]).scatter(1, index_TK, 1.0)
    hidden_TN = experts.drop(hidden_TEF * mask_TE[..., None]).flatten(1)
    return functional.linear(hidden_TN, experts.values.flatten(0, 1).T, experts.output_bias)


def sort_by_expert(x_TD: Tensor, index_TK: Tensor, experts: Experts) -> Tensor:
    """Compute only what is selected: tokens sorted by expert, one small product per expert.

    No capacity: an expert takes every token that chose it, and none is dropped.

    Args:
        x_TD: tokens, float (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        experts: the stacked experts.

    Returns:
        As `masked`, equal up to the order of the sums.
    """
    expert_S = index_TK.flatten()  # S = T * K choices
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
        hidden = neurons(rows, keys, key_bias, ups, up_bias, experts.activation)
        outputs.append(experts.drop(hidden) @ values)
    output_SD = torch.cat(outputs)
    # K summands in half precision would lose what one matrix product, as in `masked`, keeps
    wide = torch.promote_types(output_SD.dtype, torch.float32)
    sums_TD = torch.zeros(x_TD.shape, dtype=wide, device=x_TD.device)
    sums_TD = sums_TD.index_add(0, token_S, output_SD.to(wide))
    if experts.output_bias is not None:
        sums_TD = sums_TD + experts.output_bias
    return sums_TD.to(output_SD.dtype)


BACKENDS = {"masked": masked, "sorted": sort_by_expert}


def choose_backend(experts: Experts) -> str:
    """Choose the back end for the sizes of a layer.

    Small experts are bound by the overhead of many small products, so they are masked.

    Returns:
        A name of `BACKENDS`.
    """
    _, size, d_model = experts.keys.shape
    return "sorted" if size * d_model >= SORTED_FROM else "masked"


SORTED_FROM = 24_576  # weights of one projection of one expert; measured on one CPU core
