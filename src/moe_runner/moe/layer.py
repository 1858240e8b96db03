"""A feed-forward network made of experts: routing, selection, expert computation."""

# T tokens, D d_model, E experts, K selected experts

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_runner.moe.backends import BACKENDS, choose_backend, combine_matrix
from moe_runner.moe.experts import Experts
from moe_runner.moe.routing import GateOn, Select, average_key_scores, select_experts


@dataclass
class Routing:
    """What a layer did in its last forward pass.

    Args:
        index: selected experts of all positions, int64 (T, K), padding included.
        mask: bool (T,), False for padding; None when the model was given no mask.
    """

    index: Tensor
    mask: Tensor | None

    def load(self, num_experts: int) -> Tensor:
        """Count the tokens of each expert, padding left out, int64 (E,)."""
        index = self.index if self.mask is None else self.index[self.mask]
        return torch.bincount(index.flatten(), minlength=num_experts)


class MoEFeedForward(nn.Module):
    """Stand where an FFN stood: a token goes through its selected experts, each of weight 1.

    Args:
        experts: the stacked experts.
        top_k: experts per token.
        select: see `select_experts`.
        gate_on: see `average_key_scores`.
        backend: `auto`, or a name of `BACKENDS`.

    Source: EMoE, arXiv:2310.10908.
    """

    def __init__(
        self,
        experts: Experts,
        *,
        top_k: int,
        select: Select = "top",
        gate_on: GateOn = "gate",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.experts = experts
        self.top_k = top_k
        self.select: Select = select
        self.gate_on: GateOn = gate_on
        if gate_on == "inter":  # its scores need every neuron anyway
            backend = "masked"
        self.backend = choose_backend(experts.tensors()) if backend == "auto" else backend
        self.attention_mask: Tensor | None = None  # handed over by the model's pre-hook, (B, L)
        self.routing: Routing | None = None  # overwritten in every forward pass

    def forward(self, x: Tensor) -> Tensor:
        """Send tokens through their experts.

        Args:
            x: hidden states, float (..., D).

        Returns:
            float (..., D).
        """
        x_TD = x.reshape(-1, x.shape[-1])
        scores_TE = average_key_scores(x_TD, self.experts, self.gate_on)
        index_TK = select_experts(scores_TE, self.top_k, self.select)
        self.routing = Routing(index_TK, self.token_mask(x))
        output_TD = BACKENDS[self.backend](x_TD, index_TK, None, self.experts.tensors())
        bias = self.experts.bias(combine_matrix(index_TK, None, self.experts.num_experts))
        return (output_TD if bias is None else output_TD + bias).reshape(x.shape)

    def selected(self) -> int:
        """Count the experts that a token passes: top_k, or the rest for `not_top`."""
        num_experts = self.experts.num_experts
        return num_experts - self.top_k if self.select == "not_top" else self.top_k

    def token_mask(self, x: Tensor) -> Tensor | None:
        """Flatten the attention mask, if there is one of the input's shape."""
        mask = self.attention_mask
        if mask is None or mask.shape != x.shape[:-1]:
            return None
        return mask.reshape(-1).bool()

    def extra_repr(self) -> str:
        """Show the routing in `print(model)`."""
        return f"top_k={self.top_k}, select={self.select}, backend={self.backend}"
