"""How fast a tuned model is in use, measured in turns with the backbone that it comes from."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from moe_runner.backbones.lora import merge_lora
from moe_runner.moe import kernel_experts
from moe_runner.moe.layer import for_inference
from moe_runner.runs.result import Inference

PASSES = 7  # of each; the median counts


@torch.no_grad()
def time_inference(tuned: nn.Module, dense: nn.Module, batch: Mapping[str, Tensor]) -> Inference:
    """Time forward passes of a tuned model and of its dense backbone, in turns.

    Whatever else the machine does hits both alike, so that their ratio is worth more than either.

    Args:
        tuned: converted, with LoRA or without; a copy of it is made ready by `for_inference`.
        dense: the backbone as it came; put into evaluation mode.
        batch: inputs of both.

    Returns:
        Medians of `PASSES` passes each, after one that does not count.
    """
    ours = copy.deepcopy(tuned)
    merge_lora(ours)
    for_inference(ours)
    dense.eval()
    device = next(iter(batch.values())).device
    weights = next(ours.parameters())
    by_kernel = device.type == "cpu" and weights.dtype == torch.float32 and kernel_experts.load()
    seconds: dict[str, list[float]] = {"ours": [], "dense": []}
    for number in range(PASSES + 1):
        for name, model in (("ours", ours), ("dense", dense)):
            taken = timed(partial(model, **batch), device)
            if number:
                seconds[name].append(taken)
    return Inference(
        statistics.median(seconds["ours"]), statistics.median(seconds["dense"]), tokens_of(batch),
        "kernel" if by_kernel else "torch",
    )  # fmt: skip


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
