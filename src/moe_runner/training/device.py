"""The device, the threads and the seeds of a run."""

from __future__ import annotations

import functools
import os
import re
import resource
from pathlib import Path

import torch
from transformers import set_seed

from moe_runner.kernels import building
from moe_runner.moe import kernel_experts
from moe_runner.options.checks import kernel_asked, kernel_problems
from moe_runner.options.errors import ConfigError
from moe_runner.options.method import Method
from moe_runner.options.training import Trainer
from moe_runner.runs.processes import world_size

LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # what `accelerate launch` read in its configuration


def choose_device(name: str) -> torch.device:
    """Choose the one device of this process, and check that it is there.

    A GPU is chosen by hiding the others, before CUDA starts: the Trainer takes every GPU that it
    sees, which would multiply the batch. Of several processes each has the GPU of its local rank.

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda` or `cuda:<n>`, counted among
            those of CUDA_VISIBLE_DEVICES.

    Returns:
        The device.

    Raises:
        ConfigError: if this machine does not have it.
    """
    if world_size() > 1:
        return device_of_process(name)
    if name == "auto" or name.startswith("cuda"):
        show_one_gpu(int(name.partition(":")[2] or 0))
        if torch.cuda.is_available():
            return torch.device("cuda")
    if name.startswith("cuda"):
        raise ConfigError(f"device={name} is not on this machine; use device=auto or device=cpu")
    if name in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if name == "mps":
        raise ConfigError("device=mps is not on this machine; use device=auto or device=cpu")
    return torch.device("cpu")


def device_of_process(name: str) -> torch.device:
    """Return the device that accelerate has given to this process, one of several."""
    from accelerate import PartialState

    found = PartialState().device
    if ":" in name or (name != "auto" and found.type != name):
        raise ConfigError(
            f"device={name} with WORLD_SIZE={world_size()}: each process has a device of its own, "
            f"here {found.type}; use device=auto, cuda or cpu"
        )
    return found


@functools.cache  # hidden once, the chosen GPU is number 0 of this process
def show_one_gpu(index: int) -> None:
    """Leave one GPU in CUDA_VISIBLE_DEVICES; an index that is not there leaves none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index)] if visible is None else visible.split(",")[index : index + 1]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)


def check_precision(options: Trainer, device: torch.device) -> None:
    """Check that the device computes in the precision asked for; it is never chosen silently.

    Raises:
        ConfigError: if it does not, or `accelerate launch` was told another one.
    """
    asked = "no" if options.precision == "fp32" else options.precision  # as accelerate says it
    if (launched := os.environ.get(LAUNCHED, asked)) != asked:
        raise ConfigError(
            f"trainer.precision={options.precision} and accelerate's mixed_precision: {launched} "
            f"exclude each other ({LAUNCHED}); write {asked} there"
        )
    if options.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"trainer.precision=fp16 needs a CUDA device and this is {device.type}; "
            "use bf16 or fp32"
        )
    if options.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision=bf16 is not supported by this GPU; use fp16 or fp32")


def check_measuring(options: Trainer) -> None:
    """Check that evaluations can be done as asked: first, timed.

    Raises:
        ConfigError: if a model whose weights are sharded is to be evaluated first, or inference to
            be timed in several processes.
    """
    if options.evaluate_first and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ConfigError(
            "trainer.evaluate_first=true does not go with FSDP, which shards the model when "
            "training begins; use trainer.evaluate_first=false"
        )
    if options.time_inference and world_size() > 1:
        raise ConfigError(
            f"trainer.time_inference=true needs one process, and there are {world_size()}; use "
            "trainer.time_inference=false"
        )


def check_kernel(method: Method, options: Trainer, device: torch.device) -> None:
    """Check that the C++ kernel computes what it was asked for, in training or in evaluations.

    Its sums are its own, so that nothing stands in for it where it is not built.

    Raises:
        ConfigError: if the kernel is not built, or computes no such runs.
    """
    if problems := kernel_problems(device.type, method, options):
        raise ConfigError(*problems)
    asked = kernel_asked(method, options)
    if asked is not None and not kernel_experts.load():
        raise ConfigError(building.refusal(*asked))


def prepare(seed: int, threads: int | None) -> None:
    """Seed every generator, set the number of threads, and forget the peak of the memory.

    Args:
        seed: of Python, NumPy and torch.
        threads: of torch's operators; None: torch's own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    set_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():  # Linux: runs of one process each have their own peak
        clear.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Read the peak memory since `prepare`, in bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
