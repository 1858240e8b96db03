"""Record what a run was computed with: software, code version, machine."""

import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "moe-runner",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "hydra-core",
    "omegaconf",
)


def environment(threads: int | None) -> dict[str, Any]:
    """Describe software and machine without importing anything heavy.

    Args:
        threads: number of threads the run computes with; None if it is left to the libraries.

    Returns:
        What goes into environment.json. `git` is None if the code is not in a repository;
        a package that is not installed has version None; `memory_bytes` is the machine's.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(Path(__file__)),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(file: Path) -> dict[str, Any] | None:
    """Return commit and dirty flag of the repository that tracks a file; None if there is none."""
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    # A wheel in a virtualenv inside somebody's repository is not that repository's code.
    tracked = [*git, "ls-files", "--error-unmatch", file.name]
    status = [*git, "status", "--porcelain=v2", "--branch"]
    try:
        subprocess.run(tracked, capture_output=True, timeout=5, check=True)
        answer = subprocess.run(status, capture_output=True, timeout=5, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.splitlines()
    (commit,) = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
