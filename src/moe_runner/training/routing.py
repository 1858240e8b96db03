"""What the MoE layers of a model did with the tokens of a data set, or of an update."""

# T tokens, E experts, K selected experts

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_runner.conversion.counts import moe_layers
from moe_runner.moe.hypernet import HyperExpert
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.runs import processes

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of trainer.precision
MOST_RATIO = 3.0  # of a HyperExpert's output to the experts': beyond, a run is near collapse


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

    def last(layer: MoEFeedForward) -> Tensor:
        assert layer.routing is not None
        return layer.routing.load(layer.experts.num_experts)

    with added_up(layers, loads, last):
        yield loads


@contextmanager
def added_up(
    layers: Sequence[MoEFeedForward],
    sums: Sequence[Tensor],
    last: Callable[[MoEFeedForward], Tensor],
) -> Iterator[None]:
    """Add up a figure of layers over all forward passes within the block, then over all processes.

    Args:
        layers: of a model.
        sums: one per layer, zeros on the CPU; filled in place.
        last: gives the figure of a layer's last forward pass, of the shape of its sum.
    """

    def add(layer: MoEFeedForward, own: Tensor) -> None:
        own += last(layer).cpu()

    handles = [
        layer.register_forward_hook(lambda layer, args, output, own=own: add(layer, own))
        for layer, own in zip(layers, sums, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for own in sums:
        own.copy_(processes.total(own))


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


@contextmanager
def sum_norms(model: nn.Module) -> Iterator[list[Tensor]]:
    """Add up `output_norms` of each layer over all forward passes within the block.

    Args:
        model: converted or dense.

    Yields:
        One float64 (3,) per MoE layer with something beside its experts; see `count_load`.
    """
    layers = [layer for layer in moe_layers(model) if layer.beside is not None]
    sums = [torch.zeros(3, dtype=torch.float64) for _ in layers]

    def last(layer: MoEFeedForward) -> Tensor:
        assert layer.routing is not None
        assert layer.routing.norms is not None
        return layer.routing.norms

    with added_up(layers, sums, last):
        yield sums


def compare_norms(sums: Sequence[Tensor]) -> dict[str, float]:
    """Compare the output of the experts with that of what stands beside them.

    Args:
        sums: see `output_norms`, one per MoE layer with something beside its experts.

    Returns:
        `routing/experts_norm` and `routing/beside_norm`: mean length of a token's output, averaged
        over the layers. `routing/beside_ratio`: the second divided by the first, of the layer where
        that is largest. Empty if there is no such layer or no token.
    """
    known = [own.tolist() for own in sums if float(own[2]) > 0]
    if not known:
        return {}
    return {
        "routing/experts_norm": sum(experts / tokens for experts, _, tokens in known) / len(known),
        "routing/beside_norm": sum(beside / tokens for _, beside, tokens in known) / len(known),
        "routing/beside_ratio": max(beside / max(experts, 1e-9) for experts, beside, _ in known),
    }


def last_norms(model: nn.Module) -> dict[str, float]:
    """Compare the norms of the last forward pass, of this process; see `compare_norms`."""
    routings = [layer.routing for layer in moe_layers(model)]
    return compare_norms([r.norms for r in routings if r is not None and r.norms is not None])


def is_near_collapse(model: nn.Module, figures: Mapping[str, float], step: int) -> bool:
    """Tell whether a HyperExpert outgrows the experts, and warn if so.

    Args:
        model: with HyperExperts or without.
        figures: of `compare_norms`.
        step: updates done.
    """
    ratio = figures.get("routing/beside_ratio", 0.0)
    made = any(isinstance(layer.beside, HyperExpert) for layer in moe_layers(model))
    if not made or ratio <= MOST_RATIO:
        return False
    log.warning(
        "  after %d updates a HyperExpert's output is %.1f times as large as the experts' (more "
        "than %g): training may collapse; use method.hypernet_lr_scale=auto, or a smaller number",
        step,
        ratio,
        MOST_RATIO,
    )
    return True


@contextmanager
def same_noise(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Draw the same noise in every evaluation, where there is any (`jitter_in_evaluation`).

    So the figures do not depend on whether training was killed and went on before, and training
    does not depend on how often it is evaluated.

    Args:
        model: converted or dense; without such noise nothing is done.
        seed: of the noise.
    """
    noisy = any(getattr(module, "jitter_in_evaluation", False) for module in model.modules())
    if not noisy:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def choices(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], precision: str = "fp32"
) -> list[Tensor]:
    """Record which experts some tokens choose, in evaluation mode.

    Args:
        model: converted or dense; its mode is restored.
        batches: keyword arguments of the model, on its device.
        precision: fp32, bf16 or fp16, as in training: rounding is no change.

    Returns:
        bool (T, E) per MoE layer, padding left out; empty for a dense model.
    """
    layers, training = moe_layers(model), model.training
    if not layers:
        return []
    model.eval()
    seen: list[list[Tensor]] = [[] for _ in layers]
    dtype = DTYPES.get(precision)
    device = next(model.parameters()).device.type
    with same_noise(model), torch.autocast(device, dtype, enabled=dtype is not None):
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
