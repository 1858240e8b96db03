"""The device, the threads and the seeds of a run."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch
from transformers import set_seed

from moe_runner.config import ConfigError, Trainer


def choose_device(name: str) -> torch.device:
    """Choose the device of all runs of this process, and check that it is there.

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda` or `cuda:<n>`.

    Returns:
        The device.

    Raises:
        ConfigError: if this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    index = re.fullmatch(r"cuda:(\d+)", name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name} is not on this machine; use device=cpu")
    if index and int(index[1]) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name} is not on this machine; use cuda:0 to "
            f"cuda:{torch.cuda.device_count() - 1}"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps is not on this machine; use device=cpu")
    return torch.device(name)


def check_precision(options: Trainer, device: torch.device) -> None:
    """Check that the device computes in the precision asked for; it is never chosen silently.

    Raises:
        ConfigError: if it does not.
    """
    if options.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"trainer.precision=fp16 needs a CUDA device and this is {device.type}; "
            "use bf16 or fp32"
        )
    if options.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision=bf16 is not supported by this GPU; use fp16 or fp32")


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
