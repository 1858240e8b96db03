"""HyperMoE's hypernetwork: unselected experts become a small HyperExpert beside the selected ones.

    s   = sum over the unselected experts j of e_j         expert embeddings of the layer
    p   = M2 ReLU(M1 s)                                    selection embedding
    z   = ReLU(W1 [p ; t] + c1)                            t: layer embedding
    D, P, their biases d, b = linear in z                  D: (d_model, r), P: (r, d_model)
    Ehat(x) = ReLU(x D + d) P + b

Tokens with the same selection have the same HyperExpert: one is generated per distinct selection,
not per token, with equal outputs and gradients. Generating is still most of the work, so its
backward is written out (`GeneratedLinear`).

Source: HyperMoE, arXiv:2402.12656, section 3; initial values and sizes as in its code.
"""

# T tokens, D d_model, E experts, K selected experts, S distinct selections, R width, Z hidden_dim,
# P selection_dim, I inputs and O outputs of a generated layer, N = I * O
# B selections of a group, L tokens of the selection with the most of them

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from moe_runner.moe.backends import BACKENDS
from moe_runner.moe.experts import Stack
from moe_runner.moe.routing import count_choices

MOST_COMBINATIONS = 32  # up to here every selection is listed, used or not
GPT2_STD = 0.02  # of GPT-2's initialiser
FILLED = 0.5  # least tokens of a selection, relative to the one with the most in its group


class HyperNetwork(nn.Module):
    """Generate HyperExperts from selection embeddings; shared by all MoE layers.

    The output layers start so small that a HyperExpert is close to zero: uniform with the bound
    1e-3 sqrt(3 / (hidden_dim fan)), where fan is the number of inputs of the generated matrix
    (d_model for D, width for P); biases zero. The authors' code leaves the fan out for what
    generates biases.

    Args:
        d_model: D.
        num_layers: layers that share it.
        width: R, of the HyperExpert.
        selection_dim: of the selection embedding.
        layer_dim: of the layer embedding.
        hidden_dim: Z.
        bias_fan: whether the fan counts for what generates biases.
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
        bias_fan: bool = True,
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
        if not bias_fan:
            fans |= {self.down_bias: 1, self.up_bias: 1}
        for linear, fan in fans.items():
            bound = 1e-3 * math.sqrt(3 / (hidden_dim * fan))
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)

    def forward(self, selection_SP: Tensor, layer: int) -> Tensor:
        """Compute what the HyperExperts are generated from.

        Args:
            selection_SP: selection embeddings, float (S, selection_dim).
            layer: index of the layer.

        Returns:
            z, float (S, hidden_dim).
        """
        layer_SL = self.layers.weight[layer].expand(len(selection_SP), -1)
        return torch.relu(self.hidden(torch.cat([selection_SP, layer_SL], 1)))

    def apply_to_groups(self, x_TD: Tensor, z_SZ: Tensor, groups: Sequence[Tensor]) -> Tensor:
        """Generate one HyperExpert per selection and apply it to the tokens of that selection.

        Args:
            x_TD: tokens, float (T, D).
            z_SZ: see `forward`.
            groups: see `group_tokens`.

        Returns:
            float (T, D).
        """
        pre_TR = generated_linear(
            x_TD, z_SZ, self.down, self.down_bias(z_SZ), groups, transposed=True
        )
        return generated_linear(torch.relu(pre_TR), z_SZ, self.up, self.up_bias(z_SZ), groups)

    def apply_masked(self, x_TD: Tensor, z_SZ: Tensor, selection_T: Tensor) -> Tensor:
        """Apply every HyperExpert to every token, and mask: the definition, with static shapes.

        Args:
            x_TD: tokens, float (T, D).
            z_SZ: see `forward`.
            selection_T: selection of each token, int64 (T,).

        Returns:
            float (T, D).
        """
        stack = Stack(
            keys=self.down(z_SZ).unflatten(1, (self.width, self.d_model)),
            key_bias=self.down_bias(z_SZ),
            values=self.up(z_SZ).unflatten(1, (self.width, self.d_model)),
            activation=torch.relu,
        )
        output_TD = BACKENDS["masked"](x_TD, selection_T[:, None], None, stack)
        return output_TD + functional.embedding(selection_T, self.up_bias(z_SZ))


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
        self.lr_scale = 1.0  # of its parameters, for whoever makes an optimizer

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
        if masked:
            z_SZ = self.hypernet(self.embed(chosen_SE), self.layer)
            return self.hypernet.apply_masked(x_TD, z_SZ, selection_T)
        used_S, groups = group_tokens(selection_T, len(chosen_SE))
        z_SZ = self.hypernet(self.embed(chosen_SE[used_S]), self.layer)
        return self.hypernet.apply_to_groups(x_TD, z_SZ, groups)

    def embed(self, chosen_SE: Tensor) -> Tensor:
        """Compute the selection embeddings.

        Args:
            chosen_SE: selections, bool (S, E), True for selected.

        Returns:
            float (S, embedding_dim).
        """
        unselected_SE = 1 - chosen_SE.to(self.embeddings.weight.dtype)
        if self.aggregate == "mean":
            unselected_SE = unselected_SE / unselected_SE.sum(1, keepdim=True).clamp(min=1)
        return self.second(torch.relu(self.first(unselected_SE @ self.embeddings.weight)))


def start_as_gpt2(module: nn.Module) -> None:
    """Draw the weights anew as GPT-2 does: N(0, 0.02), biases 0.

    So the authors' GPT-2 code starts, whose initialiser overwrites that of `HyperNetwork`. sum |z|
    is then near 0, and a HyperExpert grows slowly.

    Args:
        module: a hypernetwork, or a part of a HyperExpert.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=GPT2_STD)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def lr_scale(hyper_experts: Sequence[HyperExpert], top_k: int) -> float:
    """Derive what to multiply a learning rate by, so that it suits the generated weights.

    Adam moves every parameter by about the rate r, so a generated weight, sum_j w_j z_j + c, moves
    by up to r (1 + sum |z|), and so much faster than a weight that is a parameter. Divided by
    1 + sum |z| the step is r at most.

    Args:
        hyper_experts: those that share a hypernetwork, before training.
        top_k: selected experts of a token.

    Returns:
        1 / (1 + sum |z|), above 0 and at most 1; sum |z| is the mean over the layers and over the
        selections of top_k experts in a row, where each expert is selected equally often.

    Source: ours.
    """
    sums = []
    with torch.no_grad():
        for own in hyper_experts:
            num_experts = own.embeddings.num_embeddings
            chosen_EE = torch.eye(num_experts, dtype=torch.bool)
            selected_EE = torch.stack([chosen_EE.roll(i, 1) for i in range(top_k)]).any(0)
            selected_EE = selected_EE.to(own.embeddings.weight.device)
            z_EZ = own.hypernet(own.embed(selected_EE), own.layer)
            sums.append(float(z_EZ.abs().sum(1).float().mean()))
    return 1 / (1 + sum(sums) / len(sums))


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


def group_tokens(selection_T: Tensor, num_selections: int) -> tuple[Tensor, list[Tensor]]:
    """Sort tokens by selection, and join selections of similar numbers of tokens to groups.

    Args:
        selection_T: selection of each token, int64 (T,), values 0..num_selections-1.
        num_selections: of them, some may have no token.

    Returns:
        The selections that have tokens, those with the most first, int64 (S,); the tokens of each
        group, int64 (B, L), its selections in that order, filled up with T.
    """
    load_S, order_S = count_choices(selection_T, num_selections).sort(descending=True)
    loads = [load for load in load_S.tolist() if load]
    place_S = order_S.argsort()
    token = place_S[selection_T].argsort(stable=True).split(loads)
    starts = [0]
    for s, load in enumerate(loads):
        if load < FILLED * loads[starts[-1]]:
            starts.append(s)
    groups = [
        pad_sequence(list(token[first:last]), batch_first=True, padding_value=len(selection_T))
        for first, last in itertools.pairwise([*starts, len(loads)])
        if first < last
    ]
    return order_S[: len(loads)], groups


def generated_linear(
    x_TI: Tensor,
    z_SZ: Tensor,
    generator: nn.Linear,
    bias_SO: Tensor,
    groups: Sequence[Tensor],
    *,
    transposed: bool = False,
) -> Tensor:
    """Apply linear layers that are generated from z, one to each group of tokens.

    Args:
        x_TI: tokens, float (T, I).
        z_SZ: what the matrices are generated from, float (S, Z).
        generator: gives the I * O numbers of a matrix: rows of (I, O), one after the other.
        bias_SO: biases, float (S, O).
        groups: tokens of each matrix, see `group_tokens`; every token is there once.
        transposed: the numbers are rows of (O, I).

    Returns:
        x_t M_s + bias_s, float (T, O).
    """
    tensors = [x_TI, z_SZ, generator.weight, generator.bias, bias_SO]
    device = x_TI.device.type
    if torch.is_autocast_enabled(device):  # a custom function is not cast by itself
        tensors = [t.to(torch.get_autocast_dtype(device)) for t in tensors]
    with torch.autocast(device, enabled=False):
        return GeneratedLinear.apply(*tensors, groups, transposed)


class GeneratedLinear(torch.autograd.Function):
    """See `generated_linear`.

    Of the generated matrices and their gradients nothing is copied or permuted. Tokens have a row
    of zeros behind them, which stands for what fills the groups up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        z_SZ: Tensor,
        weight_NZ: Tensor,
        constant_N: Tensor,
        bias_SO: Tensor,
        groups: Sequence[Tensor],
        transposed: bool,
    ) -> Tensor:
        """Generate the matrices and apply them."""
        outputs, inputs = bias_SO.shape[1], x_TI.shape[1]
        rows, columns = (outputs, inputs) if transposed else (inputs, outputs)
        # a product for each row: a single one, of few rows and very many columns, takes longer
        generated_RSC = torch.baddbmm(
            constant_N.unflatten(0, (rows, 1, columns)),
            z_SZ.expand(rows, -1, -1),
            weight_NZ.unflatten(0, (rows, columns)).transpose(1, 2),
        )
        generated = generated_RSC.transpose(0, 1)
        matrix_SIO = generated.transpose(1, 2) if transposed else generated
        x = functional.pad(x_TI, (0, 0, 0, 1))
        output = x.new_empty(len(x), bias_SO.shape[1])

        for token_BL, part in parts(groups):
            result = torch.baddbmm(bias_SO[part, None], take(x, token_BL), matrix_SIO[part])
            output.index_copy_(0, token_BL.flatten(), result.flatten(0, 1))
        ctx.save_for_backward(x_TI, z_SZ, weight_NZ, generated)
        ctx.groups, ctx.transposed = groups, transposed
        return output[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        """Propagate to the tokens, then to what the matrices are generated from."""
        x_TI, z_SZ, weight_NZ, generated = ctx.saved_tensors
        need_x, need_z, need_weight, need_constant, need_bias = ctx.needs_input_grad[:5]
        x, upstream = (functional.pad(t, (0, 0, 0, 1)) for t in (x_TI, grad_TO))
        grad_x = torch.empty_like(x) if need_x else None
        grad_bias = grad_TO.new_empty(len(z_SZ), grad_TO.shape[1]) if need_bias else None
        need_generated = need_z or need_weight or need_constant
        grad_generated = generated.new_empty(generated.shape) if need_generated else None

        for token_BL, part in parts(ctx.groups):
            grad = take(upstream, token_BL)
            if grad_x is not None:
                matrix = generated[part] if ctx.transposed else generated[part].transpose(1, 2)
                grad_x.index_copy_(0, token_BL.flatten(), (grad @ matrix).flatten(0, 1))
            if grad_generated is not None:
                rows = take(x, token_BL)
                left, right = (grad, rows) if ctx.transposed else (rows, grad)
                torch.bmm(left.transpose(1, 2), right, out=grad_generated[part])
            if grad_bias is not None:
                torch.sum(grad, 1, out=grad_bias[part])
        grad_x = None if grad_x is None else grad_x[:-1]
        grad_z = grad_weight = grad_constant = None
        if grad_generated is not None:
            grad_RSC = grad_generated.transpose(0, 1)  # again a product for each row
            if need_z:
                weight_RCZ = weight_NZ.unflatten(0, (len(grad_RSC), -1))
                grad_z = torch.bmm(grad_RSC, weight_RCZ).sum(0)
            if need_weight:
                z_RSZ = z_SZ.expand(len(grad_RSC), -1, -1)
                grad_weight = torch.bmm(grad_RSC.transpose(1, 2), z_RSZ).flatten(0, 1)
            grad_constant = grad_generated.sum(0).flatten() if need_constant else None
        return grad_x, grad_z, grad_weight, grad_constant, grad_bias, None, None


def parts(groups: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Give each group's tokens, int64 (B, L), and which of all selections it has."""
    start = 0
    for token_BL in groups:
        yield token_BL, slice(start, start + len(token_BL))
        start += len(token_BL)


def take(rows_X: Tensor, token_BL: Tensor) -> Tensor:
    """Gather the rows of a group, (B, L, X)."""
    return rows_X.index_select(0, token_BL.flatten()).unflatten(0, token_BL.shape)
