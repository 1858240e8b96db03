"""The command of the campaigns: `python -m tests.torture [campaign ...] [--only N]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import commands

CAMPAIGNS = ("kills", "inputs", "crowds", "disk", "memory", "shown")
OUTPUT = commands.ROOT / "outputs" / "torture"


def main() -> None:
    """Carry out campaigns, one after the other; the first that fails ends it with its reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="campaign", help=", ".join(CAMPAIGNS))
    parser.add_argument("--only", type=int, help="so many runs, kills, ... instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    options = parser.parse_args()
    chosen = options.campaigns or list(CAMPAIGNS)
    if wrong := [name for name in chosen if name not in CAMPAIGNS]:
        parser.error(f"{wrong[0]} is not a campaign; use some of {', '.join(CAMPAIGNS)}")
    preload()
    commands.warm_up()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        start = time.monotonic()
        print(f"{name}:", flush=True)
        module = __import__(f"tests.torture.{name}", fromlist=["campaign"])
        with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
            figures = module.campaign(Path(folder), only=options.only, seed=options.seed)
        figures["minutes"] = round((time.monotonic() - start) / 60, 1)
        (OUTPUT / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        for key, value in figures.items():
            print(f"  {key}: {value}", flush=True)


def preload() -> None:
    """Start this process again with the layer of faults.c between it and its files."""
    if commands.LIBRARY in os.environ.get("LD_PRELOAD", ""):
        return
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    library = commands.build_faults(folder)
    environment = {**os.environ, **commands.QUIET, "LD_PRELOAD": str(library)}
    words = [sys.executable, "-m", "tests.torture", *sys.argv[1:]]
    os.chdir(commands.ROOT)
    os.execve(sys.executable, words, environment)


if __name__ == "__main__":
    main()
