"""One of two gloo processes of test_distributed.py: data-parallel training on half of a batch."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moe_runner import auxiliary_loss, convert


def two_steps(model: nn.Module, parallel: nn.Module, batch: dict) -> dict:
    """Train two steps: losses of both, gradients of the second.

    Args:
        model: converted.
        parallel: the model, or what wraps it.
        batch: arguments of the model.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):  # under DDP a parameter without a gradient is an error in the second one
        optimizer.zero_grad()
        loss, extra = parallel(**batch).loss, auxiliary_loss(model)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        losses.append((loss.item(), 0.0 if extra is None else extra.item()))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients}


def work(rank: int, folder: str) -> None:
    """Compute losses and gradients of every case in `cases.pt` and write them to `<rank>.pt`."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cases = torch.load(Path(folder) / "cases.pt", weights_only=False)  # written by the test
    found = {}
    for name, case in cases.items():
        model = getattr(transformers, case["architecture"])(case["config"]).eval()
        convert(model, case["method"])
        model.load_state_dict(case["state"])
        for parameter in case["frozen"]:
            model.get_parameter(parameter).requires_grad_(False)
        parallel = DistributedDataParallel(model)  # every other parameter must get a gradient
        half = {key: value[2 * rank : 2 * rank + 2] for key, value in case["batch"].items()}
        found[name] = two_steps(model, parallel, half)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
