"""Auxiliary losses of routers: how unevenly tokens are spread over the experts."""

# T tokens, E experts, K selected experts

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def squared_cv(amount_E: Tensor) -> Tensor:
    """Square the coefficient of variation: variance / mean^2.

    Args:
        amount_E: importance or load of each expert, float (E,), 0 or more.

    Returns:
        Scalar float, 0 when even, E - 1 when one expert has all; 0 when nobody has anything.

    Source: Shazeer et al., arXiv:1701.06538, eq. 7 and 11, which do not say which variance. Here it
    is that of the population, so that E = 1 is 0, under every protocol; both authors' codes have
    the unbiased one, E / (E - 1) times as large.
    """
    return amount_E.var(correction=0) / (amount_E.mean() ** 2 + 1e-10)


def smooth_load(
    clean_TE: Tensor, noisy_TE: Tensor, std: Tensor | float, index_TK: Tensor
) -> Tensor:
    """Estimate how likely each expert is selected, were the noise of its own score drawn anew.

    P(x, i) = Phi((clean_i - kth largest of the other noisy scores) / std_i)

    Args:
        clean_TE: scores without noise, float (T, E).
        noisy_TE: what the threshold is taken from, float (T, E); constant noise of 0: clean_TE.
        std: of the noise, float (T, E) or a number.
        index_TK: the K experts with the largest noisy scores, int64 (T, K).

    Returns:
        float (T, E), 0 to 1, differentiable; all 1 when every expert is selected.

    Source: Shazeer et al., arXiv:1701.06538, eq. 8 and 9.
    """
    top_k, num_experts = index_TK.shape[1], clean_TE.shape[1]
    if top_k == num_experts:
        return torch.ones_like(clean_TE)
    best = noisy_TE.topk(top_k + 1, dim=1).values
    # Without i, the k-th largest is the (k + 1)-th of all if i is among the k best.
    selected_TE = torch.zeros_like(clean_TE, dtype=torch.bool).scatter(1, index_TK, True)
    threshold_TE = torch.where(selected_TE, best[:, top_k:], best[:, top_k - 1 : top_k])
    return torch.special.ndtr((clean_TE - threshold_TE) / std)


def load_by_probabilities(
    clean_TE: Tensor, noisy_TE: Tensor, std: Tensor | float, top_k: int
) -> Tensor:
    """Estimate the load as HyperMoE's reference code does, which mixes scores and probabilities.

    Its thresholds are softmaxed, yet they are compared with scores: to tell whether an expert is
    among the k best, and within Phi. So this is not the published load.

    Args:
        clean_TE: scores without noise, float (T, E).
        noisy_TE: scores with noise, float (T, E).
        std: of the noise, float (T, E) or a number.
        top_k: K.

    Returns:
        float (T, E), 0 to 1, differentiable; all 1 when every expert is selected.

    Source: HyperMoE's code for GPT-2; see `smooth_load` for the published form.
    """
    if top_k == clean_TE.shape[1]:
        return torch.ones_like(clean_TE)
    best = noisy_TE.softmax(1).topk(top_k + 1, dim=1).values
    among_TE = noisy_TE > best[:, top_k:]
    threshold_TE = torch.where(among_TE, best[:, top_k:], best[:, top_k - 1 : top_k])
    return torch.special.ndtr((clean_TE - threshold_TE) / std)


def load_of_probabilities(
    clean_TE: Tensor, noisy_TE: Tensor, std: Tensor | float, top_k: int
) -> Tensor:
    """Estimate the load as EMoE's reference code does, which mixes probabilities and scores.

    What is compared is softmaxed, the threshold is not, and it is the k-th largest score for every
    expert, whether it is among the k best or not: Phi((p_i - kth largest noisy score) / std). So
    this is not the published load; neither is HyperMoE's, which mixes the other way about.

    Args:
        clean_TE: scores without noise, float (T, E).
        noisy_TE: scores with noise, float (T, E).
        std: of the noise, float (T, E) or a number.
        top_k: K.

    Returns:
        float (T, E), 0 to 1, differentiable.

    Source: Tutel (`load_importance_loss`), on which EMoE's code is built; see `smooth_load` for the
    published form.
    """
    threshold_T1 = noisy_TE.topk(top_k, dim=1).values[:, -1:]
    return torch.special.ndtr((clean_TE.softmax(1) - threshold_T1) / std)


def importance_and_load_loss(
    importance_TE: Tensor, load_TE: Tensor, counted_T: Tensor | None
) -> Tensor:
    """Add the squared coefficients of variation of importance and load.

    Args:
        importance_TE: gate weights or probabilities, float (T, E).
        load_TE: see `smooth_load`, float (T, E).
        counted_T: bool (T,), False for padding; None: all count.

    Returns:
        Scalar float32, unscaled, 0 when both are even. Over the tokens of `over_processes`. The
        variance of both halves is that of `squared_cv`.

    Source: Shazeer et al., arXiv:1701.06538, section 4.
    """
    importance_E = over_processes(total(importance_TE, counted_T))
    load_E = over_processes(total(load_TE, counted_T))
    return squared_cv(importance_E) + squared_cv(load_E)


def switch_balance_loss(probs_TE: Tensor, index_TK: Tensor, counted_T: Tensor | None) -> Tensor:
    """Measure how unevenly tokens are spread over the experts of a Switch layer.

    E * sum over i of (fraction of choices for i) * (mean probability of i)

    Args:
        probs_TE: router output after softmax, float (T, E).
        index_TK: selected experts, int64 (T, K).
        counted_T: bool (T,), False for padding; None: all count.

    Returns:
        Scalar float32, unscaled; 1 when even. Over the tokens of `over_processes`.

    Source: Switch Transformers, arXiv:2101.03961, eq. 4-6, with the mean over K.
    """
    num_experts = probs_TE.shape[1]
    chosen_TE = functional.one_hot(index_TK, num_experts).float().mean(1)
    tokens = over_processes(count(probs_TE, counted_T)).clamp(min=1)
    share_E = over_processes(total(chosen_TE, counted_T)) / tokens
    prob_E = over_processes(total(probs_TE, counted_T)) / tokens
    return num_experts * (share_E * prob_E).sum()


def z_loss(scores_TE: Tensor, counted_T: Tensor | None) -> Tensor:
    """Keep the router's scores small: mean over the tokens of logsumexp(scores)^2.

    Args:
        scores_TE: router output before softmax, float (T, E).
        counted_T: bool (T,), False for padding; None: all count.

    Returns:
        Scalar float32, unscaled, 0 or more. Over the tokens of `over_processes`.

    Source: ST-MoE, arXiv:2202.08906, eq. 5.
    """
    squared_T1 = scores_TE.float().logsumexp(1, keepdim=True) ** 2
    tokens = over_processes(count(scores_TE, counted_T)).clamp(min=1)
    return (over_processes(total(squared_T1, counted_T)) / tokens).squeeze()


def stack_losses(scores: Sequence[Tensor], chosen: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute one loss of each kind for the Switch layers of a stack, as the authors' code does.

    The layers' tokens count as if they followed each other in longer sequences, padding included.
    The balance is that within each sequence, E * sum over i of (fraction of its choices for i) *
    (its mean probability of i), and its mean over the sequences is taken.

    Args:
        scores: router output before softmax of each layer, float (B, L, E).
        chosen: the first choice of each token, int64 (B, L); 0 where it found no room.

    Returns:
        `switch_balance` and `z`: scalars, unscaled, of this process alone.

    Source: transformers 4.30.2, on which HyperMoE's code is built; see `switch_balance_loss` and
    `z_loss` for the losses of a layer.
    """
    scores_BME = torch.cat(list(scores), 1)
    scores_BME = scores_BME.to(torch.promote_types(scores_BME.dtype, torch.float32))
    num_experts = scores_BME.shape[-1]
    chosen_BME = functional.one_hot(torch.cat(list(chosen), 1), num_experts)
    share_BE = chosen_BME.to(scores_BME.dtype).mean(1)
    prob_BE = scores_BME.softmax(-1).mean(1)
    return {
        "switch_balance": num_experts * (share_BE * prob_BE).sum(1).mean(),
        "z": (scores_BME.logsumexp(-1) ** 2).mean(),
    }


def total(values_TX: Tensor, counted_T: Tensor | None) -> Tensor:
    """Sum over the counted tokens in fp32 or wider, float (X,)."""
    values_TX = values_TX.to(torch.promote_types(values_TX.dtype, torch.float32))
    if counted_T is not None:
        values_TX = values_TX * counted_T[:, None]
    return values_TX.sum(0)


def count(values_TX: Tensor, counted_T: Tensor | None) -> Tensor:
    """Count the tokens, a float scalar on their device."""
    if counted_T is None:
        return torch.tensor(float(values_TX.shape[0]), device=values_TX.device)
    return counted_T.float().sum()


def over_processes(amount: Tensor) -> Tensor:
    """Sum over the processes of data-parallel training, differentiably.

    These losses are not means over tokens, so the mean of the processes' losses would be another
    loss than that of the whole batch. Gradients then agree with one process: the backward of the
    sum is again a sum, and the average that DDP takes divides by the number of processes.

    Without gradients the amount stays that of this process: processes need not evaluate the same
    number of batches or generate texts of the same length, and must not wait for each other then.
    """
    if not torch.is_grad_enabled():
        return amount
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(amount)
    return amount
