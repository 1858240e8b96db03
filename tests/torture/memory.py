"""Give a run too little memory: it fails with the reason, and the next call goes on."""

from __future__ import annotations

import resource
import signal
from collections import Counter
from pathlib import Path

from tests.torture import commands, runs

NAMES = ("emoe bert_tiny rte", "hypermoe bert_tiny rte", "emoe gpt2_tiny language")
# MiB more than the process has; below 64 a run does not begin (`files.check_room`)
ROOM = (4, 16, 48, 64, 68, 72, 76, 80, 84, 88, 92, 96, 104, 112, 120, 128, 160, 192, 256)
WORDS = ("memory", "allocate", "MemoryError")
BLAMED = ("cannot be loaded", "damaged", "cannot be read")  # files that are whole


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Carry out runs with ever more room for addresses.

    Args:
        folder: an empty one.
        only: so many limits instead of all.
        seed: not used; nothing is random.

    Returns:
        The figures.

    Raises:
        AssertionError: if a run fails without naming memory, or the next call has other numbers.
    """
    del seed
    tally: Counter[str] = Counter()
    for name in NAMES[:only]:
        quiet = folder / "quiet" / name
        quiet.mkdir(parents=True)
        done = commands.forked("moe-run", *runs.words(name, quiet), folder=quiet).wait()
        assert done.code == 0, done.err
        expected = runs.numbers(runs.store_of(quiet))
        for room in ROOM[:only]:
            there = folder / f"{name} {room}"
            there.mkdir()
            limited = commands.forked(
                "moe-run", *runs.words(name, there), folder=there, prepare=lambda r=room: limit(r)
            ).wait()
            print(f"  {name}, {room} MiB: code {limited.code}", flush=True)
            tally[ending(limited, f"{name} with {room} MiB")] += 1
            again = commands.forked("moe-run", *runs.words(name, there), folder=there).wait()
            assert again.code == 0, again.err
            assert runs.numbers(runs.store_of(there)) == expected
    return {"runs under a limit": sum(tally.values()), **dict(sorted(tally.items()))}


def limit(room: int) -> None:
    """Let this process have so many MiB of addresses more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def ending(done: commands.Done, what: str) -> str:
    """Name how a run with little memory ended; what is no good end is an error."""
    screen = done.out + done.err
    assert not done.has_traceback, f"{what}: {screen}"
    if done.code == 0:
        return "had enough"
    ends = (1, 2, -signal.SIGABRT)  # libraries in Rust, as tokenizers, end the process themselves
    assert done.code in ends, f"{what}: code {done.code}: {screen}"
    assert any(word in screen for word in WORDS), f"{what}: {screen}"
    assert not any(word in screen for word in BLAMED), f"{what}: {screen}"
    return "failed and named memory" if done.code > 0 else "aborted by a library, named memory"
