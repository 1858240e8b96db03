"""What the MoE layers of a model did with the tokens of a data set."""

# T tokens, E experts, K selected experts

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_runner.conversion.counts import moe_layers
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.runs import processes


@contextmanager
def count_load(model: nn.Module) -> Iterator[list[Tensor]]:
    """Count the tokens of each expert, over all forward passes within the block.

    Args:
        model: converted or dense.

    Yields:
        One int64 (E,) per MoE layer, filled while the block runs; padding is left out. After the
        block they are sums over all processes (whose last batches are filled up to equal size).
    """
    layers = moe_layers(model)
    loads = [torch.zeros(layer.experts.num_experts, dtype=torch.int64) for layer in layers]

    def add(layer: MoEFeedForward, load: Tensor) -> None:
        assert layer.routing is not None
        load += layer.routing.load(len(load)).cpu()

    handles = [
        layer.register_forward_hook(lambda layer, args, output, load=load: add(layer, load))
        for layer, load in zip(layers, loads, strict=True)
    ]
    try:
        yield loads
    finally:
        for handle in handles:
            handle.remove()
    for load in loads:
        load.copy_(processes.total(load))


def summarise(loads: list[Tensor]) -> dict[str, float]:
    """Sum up how evenly the experts are used, averaged over the layers.

    Args:
        loads: tokens per expert, int64 (E,), one per MoE layer.

    Returns:
        `routing/entropy` (of the shares, divided by log E: 0 to 1, 1 is even),
        `routing/max_share` (largest share of all choices) and `routing/active` (fraction of the
        experts with a token); empty for a dense model.
    """
    if not loads:
        return {}
    entropy = max_share = active = 0.0
    for load in loads:
        share = load.double() / max(int(load.sum()), 1)
        nonzero = share[share > 0]
        if len(load) > 1:
            entropy -= float((nonzero * nonzero.log()).sum() / torch.tensor(len(load)).log())
        max_share += float(share.max())
        active += float((load > 0).double().mean())
    names = ("routing/entropy", "routing/max_share", "routing/active")
    return dict(zip(names, (x / len(loads) for x in (entropy, max_share, active)), strict=True))


@torch.no_grad()
def choices(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> list[Tensor]:
    """Record which experts some tokens choose, in evaluation mode.

    Args:
        model: converted or dense; its mode is restored.
        batches: keyword arguments of the model, on its device.

    Returns:
        bool (T, E) per MoE layer, padding left out; empty for a dense model.
    """
    layers, training = moe_layers(model), model.training
    if not layers:
        return []
    model.eval()
    seen: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        model(**batch)
        for layer, found in zip(layers, seen, strict=True):
            routing = layer.routing
            assert routing is not None
            index_TK = routing.index if routing.mask is None else routing.index[routing.mask]
            chosen_TE = torch.zeros(len(index_TK), layer.experts.num_experts, dtype=torch.bool)
            found.append(chosen_TE.scatter(1, index_TK.cpu(), True))
    model.train(training)
    return [torch.cat(found) for found in seen]


def changed(before: list[Tensor], after: list[Tensor]) -> float | None:
    """Measure the fraction of choices that are not what they were.

    Args:
        before: result of `choices`.
        after: the same for the same tokens.

    Returns:
        0 to 1, averaged over the layers; None if the model is or was dense.
    """
    if not before or not after:
        return None
    kept = [float((a & b).sum() / a.sum().clamp(min=1)) for a, b in zip(before, after, strict=True)]
    return 1 - sum(kept) / len(kept)
