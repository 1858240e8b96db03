"""The command `python -m moe_runner.kernels`: build the C++ kernel, or say whether it is there."""

from __future__ import annotations

import sys
import time

from moe_runner.kernels.building import BuildError, build, library, why_missing

USAGE = """usage: python -m moe_runner.kernels build | status
  build    compile the kernel for this machine and this torch: about half a minute
  status   say whether it is built; exit code 1 if not"""


def main(words: list[str]) -> int:
    """Carry out a subcommand.

    Args:
        words: the subcommand.

    Returns:
        The exit code: 2 for a mistake of the user or of the machine, else as `USAGE` says.
    """
    if words in (["--help"], ["-h"], []):
        print(USAGE)
        return 0
    if words == ["status"]:
        file = library()
        print(why_missing() if file is None else f"built: {file}")
        return 1 if file is None else 0
    if words != ["build"]:
        print(f"{' '.join(words)} is not a subcommand; use build or status", file=sys.stderr)
        return 2
    started = time.perf_counter()
    try:
        file = build()
    except (BuildError, OSError) as error:
        print(f"the kernel was not built: {error}", file=sys.stderr)
        return 2
    print(f"built in {time.perf_counter() - started:.0f} s: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
