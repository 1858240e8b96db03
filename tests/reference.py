"""Naive formulations, one token and one neuron at a time: the oracles of the fast code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def naive_emoe(
    x: Tensor,
    ffn: dict[str, Tensor],
    expert_of_neuron: Tensor,
    top_k: int,
    select: str,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute an EMoE layer from its definition.

    Args:
        x: tokens (T, D).
        ffn: keys and values (N, D); optionally key_bias (N,), ups (N, D), up_bias (N,),
            output_bias (D,): in the original order of the neurons.
        expert_of_neuron: int64 (N,).
        top_k: experts per token.
        select: top, bottom or not_top.
        activation: elementwise.
    """
    num_experts = int(expert_of_neuron.max()) + 1
    groups = [
        [n for n in range(len(expert_of_neuron)) if int(expert_of_neuron[n]) == e]
        for e in range(num_experts)
    ]
    rows = []
    for token in x:
        scores = []
        for group in groups:
            mean_key = sum(ffn["keys"][n] for n in group) / len(group)
            scores.append(float((token * mean_key).sum().detach()))
        best_first = sorted(range(num_experts), key=lambda e: -scores[e])
        chosen = {
            "top": best_first[:top_k],
            "bottom": best_first[num_experts - top_k :],
            "not_top": best_first[top_k:],
        }[select]
        output = torch.zeros_like(token)
        for expert in chosen:
            for n in groups[expert]:
                pre = (token * ffn["keys"][n]).sum()
                if "key_bias" in ffn:
                    pre = pre + ffn["key_bias"][n]
                hidden = activation(pre)
                if "ups" in ffn:
                    up = (token * ffn["ups"][n]).sum()
                    hidden = hidden * (up + ffn["up_bias"][n] if "up_bias" in ffn else up)
                output = output + hidden * ffn["values"][n]
        if "output_bias" in ffn:
            output = output + ffn["output_bias"]
        rows.append(output)
    return torch.stack(rows)


def naive_ffn(token: Tensor, ffn: dict[str, Tensor], activation: Callable) -> Tensor:
    """Compute an FFN (keys, values (F, D); optionally key_bias, ups, output_bias) on one token."""
    output = torch.zeros_like(token)
    for n in range(len(ffn["keys"])):
        pre = (token * ffn["keys"][n]).sum()
        if "key_bias" in ffn:
            pre = pre + ffn["key_bias"][n]
        hidden = activation(pre)
        if "ups" in ffn:
            hidden = hidden * (token * ffn["ups"][n]).sum()
        output = output + hidden * ffn["values"][n]
    return output + ffn["output_bias"] if "output_bias" in ffn else output


def naive_cosine_scores(
    x: Tensor, projection: Tensor, bias: Tensor, vectors: Tensor, scale: Tensor | float
):
    """Score by GMoE's cosine router: scale * cos(W x + b, e_i)."""
    rows = []
    for token in x:
        projected = torch.stack([(row * token).sum() for row in projection]) + bias
        scores = []
        for vector in vectors:
            lengths = (projected**2).sum().sqrt() * (vector**2).sum().sqrt()
            scores.append(scale * (projected * vector).sum() / lengths)
        rows.append(torch.stack(scores))
    return torch.stack(rows)


def naive_selection(scores: Tensor, top_k: int) -> list[list[int]]:
    """Choose the best experts of each token, the best first."""
    return [
        sorted(range(len(row)), key=lambda e: -float(row[e].detach()))[:top_k] for row in scores
    ]


def naive_weighted(
    x: Tensor,
    ffns: list[dict[str, Tensor]],
    scores: Tensor,
    top_k: int,
    weighting: str,
    activation: Callable,
) -> Tensor:
    """Add up the selected experts times their weights.

    `softmax`: exp(s_i) / sum of exp over the selected, and for top_k = 1 p / constant(p);
    `probability`: exp(s_i) / sum of exp over all.
    """
    rows = []
    for token, row, chosen in zip(x, scores, naive_selection(scores, top_k), strict=True):
        everyone = sum(torch.exp(s) for s in row)
        selected = sum(torch.exp(row[e]) for e in chosen)
        output = torch.zeros_like(token)
        for e in chosen:
            probability = torch.exp(row[e]) / everyone
            if weighting == "probability":
                weight = probability
            elif top_k == 1:
                weight = probability / probability.detach()
            else:
                weight = torch.exp(row[e]) / selected
            output = output + weight * naive_ffn(token, ffns[e], activation)
        rows.append(output)
    return torch.stack(rows)


def naive_squared_cv(amounts: list[Tensor]) -> Tensor:
    """Compute variance / mean^2."""
    mean = sum(amounts) / len(amounts)
    return sum((a - mean) ** 2 for a in amounts) / len(amounts) / (mean**2 + 1e-10)


def naive_load(clean: Tensor, noisy: Tensor, std: Tensor, top_k: int) -> list[Tensor]:
    """Sum over the tokens of the probability that an expert is selected, noise drawn anew."""
    num_experts = clean.shape[1]
    loads = [torch.zeros((), dtype=clean.dtype) for _ in range(num_experts)]
    for t in range(len(clean)):
        for i in range(num_experts):
            others = sorted((noisy[t, j] for j in range(num_experts) if j != i), reverse=True)
            if len(others) < top_k:
                loads[i] = loads[i] + 1
                continue
            z = (clean[t, i] - others[top_k - 1]) / std[t, i]
            loads[i] = loads[i] + 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return loads


def naive_switch_balance(
    scores: Tensor, chosen: list[list[int]], counted: list[bool] | None = None
) -> Tensor:
    """Sum E * (share of the choices that fall on i) * (mean probability of i) over the experts.

    Args:
        scores: before softmax (T, E).
        chosen: the K experts of each token.
        counted: False for padding.
    """
    num_experts = scores.shape[1]
    tokens = [t for t in range(len(scores)) if counted is None or counted[t]]
    choices = [expert for t in tokens for expert in chosen[t]]
    loss = torch.zeros((), dtype=scores.dtype)
    for i in range(num_experts):
        share = choices.count(i) / len(choices)
        mean = sum(scores[t, i].exp() / scores[t].exp().sum() for t in tokens) / len(tokens)
        loss = loss + num_experts * share * mean
    return loss


def naive_z_loss(scores: Tensor) -> Tensor:
    """Average the squared logarithm of the summed exponentials over the tokens, scores (T, E)."""
    return sum(torch.log(sum(score.exp() for score in row)) ** 2 for row in scores) / len(scores)


def naive_capacity(scores: Tensor, chosen: list[list[int]], factor: float) -> list[list[bool]]:
    """Fill the experts: all first choices, surest token first; then all second ones."""
    num_tokens, num_experts, top_k = len(scores), scores.shape[1], len(chosen[0])
    room = top_k * int(factor * math.ceil(num_tokens / num_experts))
    surest = sorted(range(num_tokens), key=lambda t: -float(scores[t].softmax(-1).max()))
    taken = [0] * num_experts
    kept = [[False] * top_k for _ in range(num_tokens)]
    for rank in range(top_k):
        for t in surest:
            expert = chosen[t][rank]
            if taken[expert] < room:
                taken[expert] += 1
                kept[t][rank] = True
    return kept


def naive_hyper_expert(
    x: Tensor, chosen: list[list[int]], p: dict[str, Tensor], layer: int, width: int, mean: bool
) -> Tensor:
    """Generate an adapter for every single token from the experts that it did not select.

    Args:
        x: tokens (T, D).
        chosen: selected experts of each token.
        p: parameters by the names of `HyperExpert` (weights (out, in) and biases).
        layer: index of the layer.
        width: of the HyperExpert.
        mean: average the embeddings instead of summing them.
    """
    d_model = x.shape[1]

    def linear(name: str, v: Tensor) -> Tensor:
        return torch.stack([(row * v).sum() for row in p[f"{name}.weight"]]) + p[f"{name}.bias"]

    rows = []
    for token, selected in zip(x, chosen, strict=True):
        table = p["embeddings.weight"]
        rest = [e for e in range(len(table)) if e not in selected]
        s = torch.zeros_like(table[0])
        for e in rest:
            s = s + table[e] / (len(rest) if mean else 1)
        q = linear("second", torch.relu(linear("first", s)))
        z = torch.cat([q, p["hypernet.layers.weight"][layer]])
        z = torch.relu(linear("hypernet.hidden", z))
        down = linear("hypernet.down", z)  # row r of D^T is the r-th run of d_model numbers
        up = linear("hypernet.up", z)
        d, output = linear("hypernet.down_bias", z), linear("hypernet.up_bias", z)
        for r in range(width):
            part = slice(r * d_model, (r + 1) * d_model)
            output = output + torch.relu((token * down[part]).sum() + d[r]) * up[part]
        rows.append(output)
    return torch.stack(rows)
