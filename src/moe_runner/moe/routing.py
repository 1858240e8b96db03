"""Routers score the experts; selection, weights and capacity follow from the scores."""

# T tokens, D d_model, E experts, F neurons of one expert, K experts of a token

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_runner.moe.experts import Experts

Select = Literal["top", "bottom", "not_top"]
GateOn = Literal["gate", "up", "up_abs", "inter", "inter_abs"]
Weighting = Literal["ones", "softmax", "probability"]


@dataclass
class Scores:
    """What a router says.

    Args:
        clean: scores without noise, float (T, E), at least fp32.
        noisy: what the selection goes by; the same tensor where there is no noise.
        std: of the noise that the load loss assumes, float (T, E) or a number.
    """

    clean: Tensor
    noisy: Tensor
    std: Tensor | float


def average_key_scores(
    x_TD: Tensor,
    experts: Experts,
    gate_on: GateOn = "gate",
    normalize: bool = False,
    normalize_token: bool = False,
    *,
    gates: Tensor | None = None,
) -> Tensor:
    """Score each expert by the mean pre-activation of its neurons (avg-k gating).

    The gate vectors are the means of the *current* keys, computed anew in every forward pass (but
    for a model `for_inference`): they have no parameter of their own and cannot go stale. Selection
    is not differentiable and every selected expert has weight 1, so no gradient is needed but for a
    balance loss.

    Args:
        x_TD: tokens, float (T, D).
        experts: the stacked experts.
        gate_on: `gate`: x . mean(keys), the paper's. Gated FFNs also `up`: x . mean(up rows);
            `up_abs`: the mean of the up projections' absolute values, which computes them all;
            `inter`: the mean of activation(gate) * up, which computes every neuron; `inter_abs`: of
            its absolute values.
        normalize: scale the gate vectors to length 1 (ablation; only with `gate` and `up`).
        normalize_token: scale the tokens, too, so that the scores are cosines: no other expert is
            selected, but noise, capacity and balance loss weigh differently.
        gates: of `gate` and `up`, float (E, D), if they are known; see `gate_vectors`.

    Returns:
        float (T, E), at least fp32; biases left out for `gate` and `up`. A gradient reaches the
        tokens only: the keys learn as neurons.

    Raises:
        ValueError: if another one than `gate` is asked of an FFN without an up projection.

    Source: EMoE, arXiv:2310.10908, eq. of the avg-k gate; the others are those of its Llama code.
    """
    if gate_on != "gate" and experts.ups is None:
        raise ValueError(f"gate_on={gate_on} needs a gated FFN; use gate_on=gate")
    # At least fp32 also under autocast: half precision makes ties, and back ends would differ.
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    with torch.autocast(x_TD.device.type, enabled=False):
        if gate_on in ("inter", "inter_abs", "up_abs"):
            with torch.no_grad():
                hidden_TEF = hidden_of_all(x_TD.to(experts.keys.dtype), experts, gate_on)
                return hidden_TEF.mean(-1, dtype=wide)
        rows_EFD = experts.keys if gate_on == "gate" else experts.ups
        assert rows_EFD is not None
        gates_ED = gate_vectors(rows_EFD, normalize) if gates is None else gates
        x_TD = x_TD.to(wide)
        x_TD = functional.normalize(x_TD, dim=1) if normalize_token else x_TD
        return x_TD @ gates_ED.to(wide).T


def gate_vectors(rows_EFD: Tensor, normalize: bool) -> Tensor:
    """Average each expert's keys, or up rows, float (E, D), at least fp32, without a gradient.

    Args:
        rows_EFD: float (E, F, D).
        normalize: scale to length 1.
    """
    wide = torch.promote_types(rows_EFD.dtype, torch.float32)
    gates_ED = rows_EFD.detach().mean(1, dtype=wide)
    return functional.normalize(gates_ED, dim=1) if normalize else gates_ED


def hidden_of_all(
    x_TD: Tensor, experts: Experts, gate_on: Literal["up_abs", "inter", "inter_abs"]
) -> Tensor:
    """Compute what every neuron is scored by, float (T, E, F); see `average_key_scores`."""
    if gate_on == "up_abs":
        assert experts.ups is not None
        bias_N = None if experts.up_bias is None else experts.up_bias.flatten()
        up_TN = functional.linear(x_TD, experts.ups.flatten(0, 1), bias_N)
        return up_TN.abs().unflatten(1, (experts.num_experts, -1))
    hidden_TEF = experts.tensors().activations(x_TD)
    return hidden_TEF if gate_on == "inter" else hidden_TEF.abs()


class AverageKeyRouter(nn.Module):
    """Avg-k gating, see `average_key_scores`; the noise only if the reference code's is asked for.

    Args:
        gate_on: see `average_key_scores`.
        normalize: see there.
        normalize_token: see there.
        gate_noise: in training, N(0, 1) * gate_noise / E is added to the scores.
        differentiable: keep the gradient to the tokens, for a balance loss.
    """

    def __init__(
        self,
        gate_on: GateOn = "gate",
        *,
        normalize: bool = False,
        normalize_token: bool = False,
        gate_noise: float = 0.0,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.gate_on: GateOn = gate_on
        self.normalize = normalize
        self.normalize_token = normalize_token
        self.gate_noise = gate_noise
        self.differentiable = differentiable
        self.keeps_gates = False  # set by `for_inference`
        self.kept: tuple[tuple[Any, ...], Tensor] | None = None  # see `gates`

    def forward(self, x_TD: Tensor, experts: Experts) -> Scores:
        """Score the experts, see `Scores`."""
        x_TD = x_TD if self.differentiable else x_TD.detach()
        clean = average_key_scores(
            x_TD,
            experts,
            self.gate_on,
            self.normalize,
            self.normalize_token,
            gates=self.gates(experts),
        )
        return with_constant_noise(clean, self.gate_noise if self.training else 0.0)

    def gates(self, experts: Experts) -> Tensor | None:
        """Give the gate vectors, float (E, D), where they are kept: in a model `for_inference`.

        Computing them reads every key, as much as a third of what one token costs a dense FFN. They
        are computed anew once the keys have changed: by place, or by the count of changes that
        torch keeps. What is written behind its back, through `.data` or into the shards of FSDP, it
        does not count: after that call `forget_gates`. A plain evaluation, as between the epochs of
        training, keeps nothing.
        """
        training = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        rows_EFD = experts.keys if self.gate_on == "gate" else experts.ups
        keeps = self.keeps_gates and not training
        if not keeps or self.gate_on not in ("gate", "up") or rows_EFD is None:
            self.kept = None
            return None
        if rows_EFD.is_inference():  # no changes are counted
            return None
        state = (rows_EFD.data_ptr(), rows_EFD._version, rows_EFD.dtype, rows_EFD.device)
        if self.kept is None or self.kept[0] != state:
            self.kept = state, gate_vectors(rows_EFD, self.normalize)
        return self.kept[1]

    def matrix(self, experts: Experts) -> Tensor | None:
        """Give what tokens are multiplied by in inference, float (E, D); None: no one product."""
        return None if self.normalize_token else self.gates(experts)

    def extra_repr(self) -> str:
        """Show the settings in `print(model)`."""
        return f"gate_on={self.gate_on}, normalize={self.normalize}, gate_noise={self.gate_noise}"


def forget_gates(model: nn.Module) -> None:
    """Let the routers of a model compute their gate vectors anew: its weights are others now."""
    for module in model.modules():
        if isinstance(module, AverageKeyRouter):
            module.kept = None


class CosineRouter(nn.Module):
    """Score by the cosine between a projection of the token and a vector per expert.

        score_i = scale * cos(W x, e_i)

    Args:
        d_model: D.
        num_experts: E.
        projection_dim: rows of W.
        gate_noise: in training, N(0, 1) * gate_noise / E is added to the scores.

    Source: GMoE, arXiv:2206.04046; projection to 256, the learned scale starts at 2 and is at most
    100 (the smallest temperature is 0.01).
    """

    def __init__(
        self, d_model: int, num_experts: int, projection_dim: int = 256, gate_noise: float = 0.0
    ) -> None:
        super().__init__()
        self.gate_noise = gate_noise
        self.projection = nn.Linear(d_model, projection_dim)
        self.expert_vectors = nn.Parameter(0.01 * torch.randn(num_experts, projection_dim))
        self.log_scale = nn.Parameter(torch.tensor([math.log(2.0)]))  # 1-D: FSDP takes no scalars

    def forward(self, x_TD: Tensor, experts: Experts) -> Scores:
        """Score the experts, see `Scores`."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            projected = functional.linear(
                x_TD.to(wide), self.projection.weight.to(wide), self.projection.bias.to(wide)
            )
            cosine = functional.normalize(projected, dim=1) @ (
                functional.normalize(self.expert_vectors.to(wide), dim=1).T
            )
            clean = cosine * self.log_scale.to(wide).clamp(max=math.log(100.0)).exp()
        return with_constant_noise(clean, self.gate_noise if self.training else 0.0)


class NoisyTopKRouter(nn.Module):
    """Linear scores with learned noise in training.

        H(x) = x W_g + N(0, 1) * softplus(x W_n)

    Both matrices start at zero: all experts are alike, and the noise alone spreads the tokens.

    Args:
        d_model: D.
        num_experts: E.

    Source: Shazeer et al., arXiv:1701.06538, eq. 4; zero start as in its appendix A.
    """

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(num_experts, d_model))
        self.noise = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, x_TD: Tensor, experts: Experts) -> Scores:
        """Score the experts, see `Scores`."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(wide)
            clean = x_TD @ self.gate.to(wide).T
            std = functional.softplus(x_TD @ self.noise.to(wide).T) + 1e-2  # never zero
        noisy = clean + torch.randn_like(clean) * std if self.training else clean
        return Scores(clean, noisy, std)

    def matrix(self, experts: Experts) -> Tensor:
        """Give what tokens are multiplied by outside training, float (E, D)."""
        return self.gate


class LinearRouter(nn.Module):
    """Linear scores: the router of a Switch Transformer.

    Args:
        weight: pretrained, float (E, D).

    Source: Switch Transformers, arXiv:2101.03961, eq. 1.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)

    def forward(self, x_TD: Tensor, experts: Experts) -> Scores:
        """Score the experts, see `Scores`."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            scores = x_TD.to(wide) @ self.weight.to(wide).T
        return Scores(scores, scores, 1.0)

    def matrix(self, experts: Experts) -> Tensor:
        """Give what tokens are multiplied by, float (E, D)."""
        return self.weight


def with_constant_noise(clean_TE: Tensor, gate_noise: float) -> Scores:
    """Add N(0, 1) * gate_noise / E to scores; the load loss assumes noise of 1 / E in any case."""
    std = 1.0 / clean_TE.shape[1]
    noisy = clean_TE + torch.randn_like(clean_TE) * gate_noise * std if gate_noise else clean_TE
    return Scores(clean_TE, noisy, std)


def select_experts(scores_TE: Tensor, top_k: int, select: Select = "top") -> Tensor:
    """Choose the experts of each token.

    Args:
        scores_TE: float (T, E).
        top_k: 1..E.
        select: `top`: the k best; `bottom`: the k worst; `not_top`: all but the k best (ablations).

    Returns:
        int64 (T, K), the most fitting first; K = top_k, or E - top_k for `not_top`. Among equal
        scores the choice is torch.topk's: some k of them, never one twice.

    Raises:
        ValueError: if top_k is outside 1..E, or nothing is left for `not_top`.
    """
    num_experts = scores_TE.shape[-1]
    count = num_experts - top_k if select == "not_top" else top_k
    if not 1 <= top_k <= num_experts or count < 1:
        raise ValueError(
            f"top_k={top_k} with select={select} does not fit {num_experts} experts; use 1 to "
            f"{num_experts - 1 if select == 'not_top' else num_experts}"
        )
    # All but the k best are the E - k worst: one rule serves both ablations.
    return scores_TE.topk(count, dim=-1, largest=select == "top").indices


def count_choices(index: Tensor, number: int) -> Tensor:
    """Count how often each of 0..number-1 occurs, int64 (number,), without asking the device.

    (`bincount` reads the largest value on the host, so that a GPU has to be waited for.)
    """
    flat = index.flatten()
    return flat.new_zeros(number).scatter_add_(0, flat, torch.ones_like(flat))


def expert_weights(
    scores_TE: Tensor, index_TK: Tensor, weighting: Weighting, *, straight_through: bool = True
) -> Tensor | None:
    """Weigh the selected experts.

    Args:
        scores_TE: noisy scores, float (T, E).
        index_TK: selected experts, int64 (T, K).
        weighting: `ones` (EMoE); `softmax`: over the selected ones, sum 1; `probability`: their
            softmax over all experts (Switch).
        straight_through: for `softmax` with K = 1, whose weight p / p has no gradient: use
            p / p.detach(), of value 1, so that the router learns from the task's loss.

    Returns:
        float (T, K), or None for `ones`.
    """
    if weighting == "ones":
        return None
    if weighting == "probability" or index_TK.shape[1] == 1:
        probs_TK = scores_TE.softmax(-1).gather(1, index_TK)
        if weighting == "probability":
            return probs_TK
        return probs_TK / (probs_TK.detach() if straight_through else probs_TK)
    return scores_TE.gather(1, index_TK).softmax(-1)


def within_capacity(scores_TE: Tensor, index_TK: Tensor, capacity_factor: float) -> Tensor:
    """Tell which choices find room in their expert, the surest tokens first.

    An expert takes K * int(factor * ceil(T / E)) choices of the batch, padding included. First
    choices go before second ones; among them, the token of the larger maximal probability.

    Args:
        scores_TE: noisy scores, float (T, E).
        index_TK: selected experts, the best first, int64 (T, K).
        capacity_factor: room in relation to an even load; 1 is exactly enough.

    Returns:
        bool (T, K).

    Source: the reference code of EMoE (batch-prioritised routing, arXiv:2106.05974, section 2.3).
    """
    (num_tokens, num_experts), top_k = scores_TE.shape, index_TK.shape[1]
    room = top_k * int(capacity_factor * math.ceil(num_tokens / num_experts))
    order_T = scores_TE.softmax(-1).amax(1).argsort(descending=True, stable=True)
    by_rank_S = index_TK[order_T].T.flatten()  # all first choices, then all second ones
    chosen_SE = functional.one_hot(by_rank_S, num_experts)
    place_S = chosen_SE.cumsum(0).gather(1, by_rank_S[:, None]).squeeze(1)  # 1, 2, ... per expert
    fits_TK = (place_S <= room).unflatten(0, (top_k, num_tokens)).T
    return torch.empty_like(fits_TK).index_copy(0, order_T, fits_TK)


def within_sequence_capacity(index_BLK: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Tell which choices find room in their expert, the first tokens of each sequence first.

    Args:
        index_BLK: selected experts, int64 (B, L, K).
        num_experts: E.
        capacity: choices that an expert takes of one sequence.

    Returns:
        bool (B * L, K).

    Source: Switch Transformers as in transformers (`expert_capacity`).
    """
    chosen = functional.one_hot(index_BLK, num_experts)  # (B, L, K, E)
    place = chosen.flatten(1, 2).cumsum(1).unflatten(1, index_BLK.shape[1:])
    return (place.gather(3, index_BLK[..., None]).squeeze(3) <= capacity).flatten(0, 1)
