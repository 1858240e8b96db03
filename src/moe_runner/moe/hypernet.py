"""HyperMoE's hypernetwork: unselected experts become a small HyperExpert beside the selected ones.

    s   = sum over the unselected experts j of e_j         expert embeddings of the layer
    p   = M2 ReLU(M1 s)                                    selection embedding
    z   = ReLU(W1 [p ; t] + c1)                            t: layer embedding
    D, P, their biases d, b = linear in z                  D: (d_model, r), P: (r, d_model)
    Ehat(x) = ReLU(x D + d) P + b

Tokens with the same selection have the same HyperExpert: one is generated per distinct selection,
not per token, with equal outputs and gradients.

Source: HyperMoE, arXiv:2402.12656, section 3; initial values and sizes as in its code.
"""

# T tokens, D d_model, E experts, K selected experts, S distinct selections, R width, Z hidden

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_runner.moe.backends import BACKENDS
from moe_runner.moe.experts import Stack

MOST_COMBINATIONS = 32  # up to here every selection is generated, used or not


class HyperNetwork(nn.Module):
    """Generate HyperExperts from selection embeddings; shared by all MoE layers.

    The output layers start so small that a HyperExpert is close to zero: uniform with the bound
    1e-3 sqrt(3 / (hidden_dim fan)), where fan is the number of inputs of the generated matrix
    (d_model for D, width for P); biases zero.

    Args:
        d_model: D.
        num_layers: layers that share it.
        width: R, of the HyperExpert.
        selection_dim: of the selection embedding.
        layer_dim: of the layer embedding.
        hidden_dim: Z.
    """

    def __init__(
        self,
        d_model: int,
        num_layers: int,
        *,
        width: int = 64,
        selection_dim: int = 128,
        layer_dim: int = 10,
        hidden_dim: int = 128,
    ) -> None:
        super().__init__()
        self.d_model, self.width = d_model, width
        self.layers = nn.Embedding(num_layers, layer_dim)
        self.hidden = nn.Linear(selection_dim + layer_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, width * d_model)  # rows of D^T, one after the other
        self.down_bias = nn.Linear(hidden_dim, width)
        self.up = nn.Linear(hidden_dim, width * d_model)  # rows of P
        self.up_bias = nn.Linear(hidden_dim, d_model)
        fans = {self.down: d_model, self.down_bias: d_model, self.up: width, self.up_bias: width}
        for linear, fan in fans.items():
            bound = 1e-3 * math.sqrt(3 / (hidden_dim * fan))
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)

    def forward(self, selection_SP: Tensor, layer: int) -> tuple[Stack, Tensor]:
        """Generate one HyperExpert per selection.

        Args:
            selection_SP: selection embeddings, float (S, selection_dim).
            layer: index of the layer.

        Returns:
            The HyperExperts as experts of R neurons each, and their output biases (S, D).
        """
        layer_SL = self.layers.weight[layer].expand(len(selection_SP), -1)
        z_SZ = torch.relu(self.hidden(torch.cat([selection_SP, layer_SL], 1)))
        stack = Stack(
            keys=self.down(z_SZ).unflatten(1, (self.width, self.d_model)),
            key_bias=self.down_bias(z_SZ),
            values=self.up(z_SZ).unflatten(1, (self.width, self.d_model)),
            activation=torch.relu,
        )
        return stack, self.up_bias(z_SZ)


class HyperExpert(nn.Module):
    """The HyperExpert of one MoE layer.

    The hypernetwork is an ordinary submodule of every layer that shares it: its parameters are
    listed once by `parameters()` and repeated in the state dict.

    Args:
        hypernet: shared.
        layer: index of this layer among those that share it.
        num_experts: E.
        embedding_dim: of the expert embeddings and the selection embedding.
        aggregate: `sum` (the paper's) or `mean` over the unselected experts.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        layer: int,
        num_experts: int,
        *,
        embedding_dim: int = 128,
        aggregate: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.hypernet = hypernet
        self.layer = layer
        self.aggregate = aggregate
        self.embeddings = nn.Embedding(num_experts, embedding_dim)
        self.first = nn.Linear(embedding_dim, embedding_dim)
        self.second = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, x_TD: Tensor, index_TK: Tensor, masked: bool = False) -> Tensor:
        """Compute the HyperExpert of each token's selection.

        Args:
            x_TD: tokens, float (T, D).
            index_TK: selected experts, int64 (T, K), in any order.
            masked: compute with the back end `masked` (static shapes, for tracing).

        Returns:
            float (T, D).
        """
        chosen_SE, selection_T = distinct_selections(index_TK, self.embeddings.num_embeddings)
        unselected_SE = 1 - chosen_SE.to(self.embeddings.weight.dtype)
        if self.aggregate == "mean":
            unselected_SE = unselected_SE / unselected_SE.sum(1, keepdim=True).clamp(min=1)
        summed_SP = unselected_SE @ self.embeddings.weight
        selection_SP = self.second(torch.relu(self.first(summed_SP)))
        stack, bias_SD = self.hypernet(selection_SP, self.layer)
        backend = BACKENDS["masked" if masked else "sorted"]
        output_TD = backend(x_TD, selection_T[:, None], None, stack)
        return output_TD + functional.embedding(selection_T, bias_SD).to(output_TD.dtype)


def distinct_selections(index_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Find which tokens have the same selection.

    Args:
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        num_experts: E.

    Returns:
        The selections, bool (S, E), True for selected; the selection of each token, int64 (T,).
        Few possible selections are all listed; of many, those that occur. While a program is
        traced, whose shapes must not depend on the data, each token then has its own.
    """
    num_tokens, top_k = index_TK.shape
    device = index_TK.device
    chosen_TE = torch.zeros(num_tokens, num_experts, dtype=torch.bool, device=device)
    chosen_TE = chosen_TE.scatter(1, index_TK, True)
    if math.comb(num_experts, top_k) <= MOST_COMBINATIONS:
        sets = torch.tensor(list(combinations(range(num_experts), top_k)), device=device)
        all_SE = torch.zeros(len(sets), num_experts, dtype=torch.bool, device=device)
        all_SE = all_SE.scatter(1, sets, True)
        agree_TS = chosen_TE.float() @ all_SE.float().T  # top_k where the sets are equal
        return all_SE, agree_TS.argmax(1)
    if torch.compiler.is_compiling():
        return chosen_TE, torch.arange(num_tokens, device=device)
    return torch.unique(chosen_TE, dim=0, return_inverse=True)
