"""Commands as a user starts them: cold, in a folder of their own, under a guard of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARD = Path(__file__).parent / "guard"
MODULES = {"moe-run": "moe_runner.train", "moe-report": "moe_runner.report.command"}
SHORT = (
    "task=glue_mini/rte", "trainer.max_steps=2", "task.limit=16", "task.eval_limit=8", "threads=1",
)  # fmt: skip
HUB = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # a user has none of them


@cache
def without_network() -> tuple[str, ...]:
    """Word the start of a command that puts it into a network of its own, which leads nowhere.

    Returns:
        No words where the system refuses that (no root, no user namespaces).
    """
    words = ("unshare", "--net", "--")
    try:
        done = subprocess.run([*words, "true"], capture_output=True)
    except FileNotFoundError:
        return ()
    return words if done.returncode == 0 else ()


def call(
    words: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        words: moe-run or moe-report, and the arguments.
        folder: where it runs; its home and its folder of temporary files are in it.
        environment: more variables.
        umask: of the process; -1: as here.
        before: words before it, such as `unshare`.
    """
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    known = {name: value for name, value in os.environ.items() if name not in HUB}
    program, *arguments = words
    return subprocess.run(
        [*before, sys.executable, "-m", MODULES[program], *arguments],
        cwd=folder, capture_output=True, text=True, umask=umask, stdin=subprocess.DEVNULL,
        env={
            **known, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(GUARD), str(ROOT / "src")]),
            "NETWORK_LOG": str(folder / "network.log"), "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
    )  # fmt: skip
