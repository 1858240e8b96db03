"""Build the C++ kernel into the user's cache, and find what was built; no torch is loaded to look.

A build is good for one version of torch, one source and one processor: a folder of that name. What
was built for others stays beside it, so that machines that share a home do not disturb each other.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from moe_runner.files import replacing, write_atomic

SOURCE = Path(__file__).with_name("experts.cpp")
LIBRARY = "experts.so"
FACTS = "build.json"
COMMAND = "python -m moe_runner.kernels build"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")


class BuildError(Exception):
    """The kernel cannot be built here; the message says why in one line."""


def cache_folder() -> Path:
    """Give the folder of all builds: `$XDG_CACHE_HOME/moe-runner/kernels`, else in `~/.cache`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "moe-runner" / "kernels"


@functools.cache
def processor() -> str:
    """Describe the processor by what its compiled code depends on: a hash of its flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU part")
    found = sorted({line for line in lines if line.split("\t")[0].strip() in names})
    return f"{platform.machine()} {hashlib.sha256(chr(10).join(found).encode()).hexdigest()[:12]}"


def facts() -> dict[str, str]:
    """Tell what a build depends on, by its name."""
    source = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode())
    return {"torch": version("torch"), "source": source.hexdigest()[:12], "processor": processor()}


def folder_of(wanted: dict[str, str]) -> Path:
    """Name the folder of a build by a hash of what it depends on."""
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / key


def library() -> Path | None:
    """Find the build for this torch, source and processor; None if there is none."""
    file = folder_of(facts()) / LIBRARY
    return file if file.is_file() else None


def has_others() -> bool:
    """Tell whether something was built, for whatever torch, source and processor."""
    return bool(differences())


def differences() -> list[list[str]]:
    """List, for each build that is there, what it was made for other than what is here."""
    wanted = facts()
    found = []
    for file in sorted(cache_folder().glob(f"*/{FACTS}")):
        try:
            built = json.loads(file.read_text(encoding="utf-8"))
            found.append([name for name in wanted if built[name] != wanted[name]])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged description: as if it were not there
    return found


def why_missing() -> str:
    """Say in one line why there is no build for what is here, and what to do."""
    others = differences()
    if not others:
        return f"the C++ kernel is not built; `{COMMAND}` makes experts on a CPU faster"
    nearest = min(others, key=len)
    causes = {
        "torch": "another version of torch",
        "source": "another version of its source",
        "processor": "another processor",
    }
    cause = " and ".join(causes[name] for name in nearest) or "these, but its file is gone"
    return f"the C++ kernel was built for {cause}; build it anew: {COMMAND}"


def refusal(given: str, instead: str) -> str:
    """Say in one line that an option needs the kernel, which is missing, and what else to do."""
    return f"{given}: {why_missing()}; or use {instead}"


def build() -> Path:
    """Compile the kernel with the C++ compiler `$CXX`, else g++; what is there is replaced.

    Returns:
        The library.

    Raises:
        BuildError: without a compiler, if it fails, or if its result cannot be loaded.
        OSError: if the folder cannot be written.
    """
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise BuildError(
            f"there is no C++ compiler `{compiler}`; install g++, or name another one by CXX="
        )
    wanted = facts()
    folder = folder_of(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / LIBRARY) as file:
        words = [compiler, *FLAGS, str(SOURCE), "-o", str(file)]
        words += [f"-I{path}" for path in include_paths()]
        words += [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-lc10"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            said = (lines or done.stderr.splitlines() or ["it says nothing"])[0]
            raise BuildError(f"{compiler} ended with code {done.returncode}: {said}")
        loads = "import sys, torch; torch.ops.load_library(sys.argv[1])"
        tried = subprocess.run(
            [sys.executable, "-c", loads, str(file)], capture_output=True, text=True, check=False
        )
        if tried.returncode != 0:
            said = (tried.stderr.splitlines() or ["it says nothing"])[-1]
            raise BuildError(f"what {compiler} made cannot be loaded: {said}")
    write_atomic(folder / FACTS, json.dumps(wanted, indent=1) + "\n")
    return folder / LIBRARY
