"""The experts of one feed-forward network, stacked: groups of its neurons, or copies of it."""

# T tokens, D d_model, E experts, F neurons of one expert, N neurons of a split FFN (d_ff = E * F)

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

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
        pre_dropout: the same before the activation function (the reference code's experts).
    """

    keys: Tensor
    values: Tensor
    activation: Activation
    key_bias: Tensor | None = None
    ups: Tensor | None = None
    up_bias: Tensor | None = None
    output_bias: Tensor | None = None
    dropout: float = 0.0
    pre_dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the dense network on tokens (..., D): what converted layers start from."""
        hidden = neurons(x, self.keys, self.key_bias, self.ups, self.up_bias, self.activation)
        return functional.linear(hidden, self.values.T, self.output_bias)

    def of_one_dtype(self) -> Self:
        """Give the same network with all tensors of the widest dtype among them; exact.

        transformers keeps the second projection of a T5 in fp32 where the rest is fp16.
        """
        names = (*NEURON_TENSORS, "output_bias")
        tensors = {name: t for name in names if (t := getattr(self, name)) is not None}
        widest = functools.reduce(torch.promote_types, (t.dtype for t in tensors.values()))
        return replace(self, **{name: t.to(widest) for name, t in tensors.items()})


# What an expert consists of; the output bias is apart.
NEURON_TENSORS = ("keys", "values", "key_bias", "ups", "up_bias")


@dataclass(frozen=True)
class Stack:
    """The tensors of E equal experts as a back end takes them: parameters, or generated weights.

    Args:
        keys: float (E, F, D).
        values: float (E, F, D).
        activation: elementwise.
        key_bias: float (E, F) or None.
        ups: float (E, F, D) or None.
        up_bias: float (E, F) or None.
        dropout: probability of dropping an activation now: 0 outside training.
        pre_dropout: the same before the activation function.
    """

    keys: Tensor
    values: Tensor
    activation: Activation
    key_bias: Tensor | None = None
    ups: Tensor | None = None
    up_bias: Tensor | None = None
    dropout: float = 0.0
    pre_dropout: float = 0.0

    @property
    def num_experts(self) -> int:
        """E."""
        return self.keys.shape[0]

    def activations(self, x_TD: Tensor) -> Tensor:
        """Compute every neuron on every token, float (T, E, F)."""
        key_bias, ups, up_bias = (
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (self.key_bias, self.ups, self.up_bias)
        )
        hidden_TN = neurons(
            x_TD, self.keys.flatten(0, 1), key_bias, ups, up_bias, self.activation, self.pre_dropout
        )
        return hidden_TN.unflatten(-1, (self.num_experts, -1))

    def activate_choices(
        self,
        project: Callable[[Tensor, Tensor | None], Tensor],
        weight_S: Tensor | None,
    ) -> Tensor:
        """Compute the activations of chosen experts, times their weights, in rows of any order.

        Args:
            project: gives the rows of the chosen experts times the token, float (S, F), of rows of
                weights (E, F, D) and of a bias (E, F) or None.
            weight_S: of each choice, float (S,), or None: 1 each.

        Returns:
            float (S, F).
        """
        pre_SF = project(self.keys, self.key_bias)
        if self.pre_dropout:
            pre_SF = functional.dropout(pre_SF, self.pre_dropout)
        hidden_SF = self.activation(pre_SF)
        if self.ups is not None:
            hidden_SF = hidden_SF * project(self.ups, self.up_bias)
        if self.dropout:
            hidden_SF = functional.dropout(hidden_SF, self.dropout)
        return hidden_SF if weight_S is None else hidden_SF * weight_S[:, None].to(hidden_SF.dtype)


def neurons(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor | None,
    ups: Tensor | None,
    up_bias: Tensor | None,
    activation: Activation,
    pre_dropout: float = 0.0,
) -> Tensor:
    """Compute the activations of some neurons.

    Args:
        x: tokens, float (..., D).
        keys: float (F, D); the other arguments as in `FFN`, of the same neurons.
        key_bias: float (F,) or None.
        ups: float (F, D) or None.
        up_bias: float (F,) or None.
        activation: elementwise.
        pre_dropout: probability of dropping a pre-activation.

    Returns:
        float (..., F).
    """
    pre = functional.linear(x, keys, key_bias)
    hidden = activation(functional.dropout(pre, pre_dropout) if pre_dropout else pre)
    return hidden if ups is None else hidden * functional.linear(x, ups, up_bias)


def combine_matrix(index_TK: Tensor, weights_TK: Tensor | None, num_experts: int) -> Tensor:
    """Spread the weights of the selected experts over all experts.

    Args:
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: float (T, K), or None: 1 each.
        num_experts: E.

    Returns:
        float (T, E), 0 where an expert is not selected.
    """
    shape = (index_TK.shape[0], num_experts)
    if weights_TK is None:
        return torch.zeros(shape, device=index_TK.device).scatter(1, index_TK, 1.0)
    return weights_TK.new_zeros(shape).scatter(1, index_TK, weights_TK)


class Experts(nn.Module):
    """All experts of one layer, stacked: an unselected expert has a gradient, of zero.

    Made by `split` (groups of one FFN's neurons) or `stack` (whole FFNs).
    """

    keys: nn.Parameter  # (E, F, D)
    values: nn.Parameter  # (E, F, D)
    key_bias: nn.Parameter | None  # (E, F)
    ups: nn.Parameter | None  # (E, F, D)
    up_bias: nn.Parameter | None  # (E, F)
    output_bias: nn.Parameter | None  # (D,) added once, or (E, D): each expert's own
    expert_of_neuron: Tensor | None  # buffer of split experts: what merge needs

    def __init__(self, ffn: FFN, tensors: dict[str, Tensor | None]) -> None:
        super().__init__()
        self.activation = ffn.activation
        self.dropout = ffn.dropout
        self.pre_dropout = ffn.pre_dropout
        for name in (*NEURON_TENSORS, "output_bias"):
            tensor, trains = tensors.get(name), getattr(ffn, name)
            if tensor is not None:
                tensor = nn.Parameter(tensor.detach(), requires_grad=trains.requires_grad)
            self.register_parameter(name, tensor)
        self.num_experts = self.keys.shape[0]
        self.register_buffer("expert_of_neuron", None)

    @classmethod
    def split(cls, ffn: FFN, expert_of_neuron: Tensor) -> Self:
        """Group the neurons of one FFN; its values are copied, none changes.

        Args:
            ffn: the dense network.
            expert_of_neuron: int64 (N,), each of 0..E-1 equally often. Within an expert the neurons
                keep their original order.

        Returns:
            The experts, with the output bias once, (D,).
        """
        expert_of_neuron = expert_of_neuron.to(ffn.keys.device).long()
        num_experts = int(expert_of_neuron.max()) + 1
        order_N = expert_of_neuron.argsort(stable=True)
        tensors: dict[str, Tensor | None] = {}
        for name in NEURON_TENSORS:
            tensor = getattr(ffn, name)
            if tensor is not None:
                stacked = tensor.detach()[order_N].unflatten(0, (num_experts, -1))
                tensors[name] = stacked.contiguous()
        if ffn.output_bias is not None:
            tensors["output_bias"] = ffn.output_bias.detach().clone()
        experts = cls(ffn, tensors)
        experts.expert_of_neuron = expert_of_neuron
        return experts

    @classmethod
    def stack(cls, ffns: Sequence[FFN]) -> Self:
        """Take whole FFNs of equal shape as experts; n times the same one: n copies of it.

        Args:
            ffns: at least one; activation and dropout are the first one's.

        Returns:
            The experts, each with its own output bias, (E, D).
        """
        tensors: dict[str, Tensor | None] = {}
        for name in (*NEURON_TENSORS, "output_bias"):
            if getattr(ffns[0], name) is not None:
                tensors[name] = torch.stack([getattr(ffn, name).detach() for ffn in ffns])
        return cls(ffns[0], tensors)

    def split_output_bias(self, top_k: int) -> None:
        """Give every expert its own share of the output bias, b / k, as the reference code does.

        Args:
            top_k: k.
        """
        if self.output_bias is not None:
            bias_D = self.output_bias.detach()
            bias_D = bias_D if bias_D.ndim == 1 else bias_D.mean(0)
            self.output_bias = nn.Parameter(
                (bias_D / top_k).expand(self.num_experts, -1).clone(),
                requires_grad=self.output_bias.requires_grad,
            )

    def tensors(self) -> Stack:
        """Hand the parameters to a back end; dropout is on in training mode only."""
        return Stack(
            keys=self.keys,
            values=self.values,
            activation=self.activation,
            key_bias=self.key_bias,
            ups=self.ups,
            up_bias=self.up_bias,
            dropout=self.dropout if self.training else 0.0,
            pre_dropout=self.pre_dropout if self.training else 0.0,
        )

    def bias(self, index_TK: Tensor, weights_TK: Tensor | None) -> Tensor | None:
        """Find the output bias of each token.

        Args:
            index_TK: selected experts, int64 (T, K).
            weights_TK: weight of each, float (T, K), or None: 1 each.

        Returns:
            float (D,) if it is added once, (T, D) if each expert has its own, or None.
        """
        if self.output_bias is None or self.output_bias.ndim == 1:
            return self.output_bias
        combine_TE = combine_matrix(index_TK, weights_TK, self.num_experts)
        return combine_TE.to(self.output_bias.dtype) @ self.output_bias

    def dense(self, top_k: int) -> FFN:
        """Put split neurons back into their original order; exact, since nothing is computed.

        Args:
            top_k: only used where each expert has its own output bias b_i: it becomes k mean(b_i).

        Returns:
            The dense network; a tensor requires a gradient if its parameter trains.
        """
        assert self.expert_of_neuron is not None
        inverse_N = self.expert_of_neuron.argsort(stable=True).argsort()
        tensors: dict[str, Any] = {}
        for name in (*NEURON_TENSORS, "output_bias"):
            parameter = getattr(self, name)
            if parameter is None:
                continue
            tensor = parameter.detach()
            if name != "output_bias":
                tensor = tensor.flatten(0, 1)[inverse_N]
            else:
                tensor = tensor.clone() if tensor.ndim == 1 else top_k * tensor.mean(0)
            tensors[name] = tensor.requires_grad_(parameter.requires_grad)
        return FFN(activation=self.activation, dropout=self.dropout, **tensors)

    def extra_repr(self) -> str:
        """Show the sizes in `print(model)`."""
        num_experts, size, d_model = self.keys.shape
        return f"num_experts={num_experts}, neurons={size}, d_model={d_model}"
