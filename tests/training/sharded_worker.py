"""One of two gloo processes of test_processes.py: a converted model under torch's fully_shard."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from moe_runner import convert, for_inference
from moe_runner.moe.routing import AverageKeyRouter
from moe_runner.training.checkpoint import load_trained, save_trained, trained_state
from tests.methods.distributed_worker import two_steps


@torch.no_grad()
def gates_kept_over_a_load(model: nn.Module, batch: dict, folder: Path) -> tuple[int, int]:
    """Count the routers that keep gate vectors after an inference, and after a load."""
    routers = [module for module in model.modules() if isinstance(module, AverageKeyRouter)]
    for_inference(model)(**batch)
    before = sum(router.kept is not None for router in routers)
    load_trained(model, folder)
    return before, sum(router.kept is not None for router in routers)


def work(rank: int, folder: str) -> None:
    """Shard and train every case of `cases.pt`, each process on half of the batch.

    Writes losses, the names of the parameters that are not sharded, and the state that a checkpoint
    would hold, before training and loaded again after it, to `<rank>.pt`.
    """
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    cases = torch.load(Path(folder) / "cases.pt", weights_only=False)  # written by the test
    found = {}
    for name, case in cases.items():
        model = getattr(transformers, case["architecture"])(case["config"]).eval()
        convert(model, case["method"])
        model.load_state_dict(case["state"])
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        plain = [n for n, p in model.named_parameters() if not isinstance(p, DTensor)]
        half = {key: value[2 * rank : 2 * rank + 2] for key, value in case["batch"].items()}
        losses = [loss for loss, _ in two_steps(model, model, half)["losses"]]
        trained = trained_state(model)  # by both; the first process has it
        save_trained(model, Path(folder))  # gathered by both, written by the first
        dist.barrier()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_trained(model, Path(folder))
        loaded = trained_state(model)
        kept = gates_kept_over_a_load(model, half, Path(folder))
        found[name] = {
            "losses": losses, "plain": plain, "trained": trained, "loaded": loaded, "kept": kept,
        }  # fmt: skip
        dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
