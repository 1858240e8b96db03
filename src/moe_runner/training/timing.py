"""How fast a tuned model is in use, measured in turns with the backbone that it comes from."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_runner.backbones.lora import merge_lora
from moe_runner.conversion.counts import moe_layers
from moe_runner.moe import kernel_experts
from moe_runner.moe.layer import for_inference
from moe_runner.runs.result import Inference

log = logging.getLogger(__name__)

PASSES = 7  # of each; the median counts


def time_inference(
    tuned: PreTrainedModel, dense: PreTrainedModel, batch: Mapping[str, Tensor]
) -> Inference | None:
    """Time forward passes of a tuned model and of its dense backbone, in turns.

    Whatever else the machine does hits both alike, so that their ratio is worth more than either.

    Args:
        tuned: converted, with LoRA, which is merged, or without; left in evaluation mode and ready
            `for_inference`, its layers with the back end that is fastest.
        dense: the backbone as it came; left in evaluation mode.
        batch: inputs of both.

    Returns:
        Medians of `PASSES` passes each, after one that does not count; None, and a warning, if the
        device has no room for both.
    """
    merge_lora(tuned)
    for_inference(tuned)
    for layer in moe_layers(tuned):
        if layer.backend != "masked":  # which a gate on all activations needs
            layer.backend = "auto"
    dense.eval()
    if hasattr(tuned.config, "use_cache"):
        dense.config.use_cache = tuned.config.use_cache  # the Trainer switches it off
    device = next(iter(batch.values())).device
    calls = kernel_experts.calls
    seconds: dict[str, list[float]] = {"tuned": [], "dense": []}
    try:
        with torch.no_grad():
            for number in range(PASSES + 1):
                for name, model in (("tuned", tuned), ("dense", dense)):
                    taken = timed(partial(model, **batch), device)
                    if number:
                        seconds[name].append(taken)
    except torch.OutOfMemoryError:
        log.warning("  no memory for the tuned and the dense model: inference was not timed")
        return None
    backend = "kernel" if kernel_experts.calls > calls else "torch"
    tuned_seconds, dense_seconds = map(statistics.median, seconds.values())
    return Inference(tuned_seconds, dense_seconds, tokens_of(batch), backend)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Give the seconds of a call, until the device has done its work."""
    started = time.perf_counter()
    call()
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - started


def tokens_of(batch: Mapping[str, Tensor]) -> int:
    """Count the tokens of a batch, padding left out; 0 for images."""
    mask = batch.get("attention_mask", batch.get("input_ids"))
    if mask is None:
        return 0
    return int(mask.sum()) if "attention_mask" in batch else mask.numel()
