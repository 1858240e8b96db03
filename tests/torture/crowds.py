"""Many commands at once on one store, two stores on one cache, and clean while others run."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.torture import commands, runs

CROWD = 8
NAMES = (
    "dense bert_tiny rte",
    "emoe bert_tiny rte",
    "gmoe bert_tiny rte",
    "hypermoe bert_tiny rte",
    "emoe lora",
    "emoe gpt2_tiny language",
)
SWEEP = (  # six runs in one command
    "-m", "method=dense,emoe", "seed=0,1,2", *runs.RTE, *runs.SHORT, "trainer.max_steps=6",
)  # fmt: skip


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Let commands crowd, and compare with each alone.

    Args:
        folder: an empty one.
        only: so many runs instead of all.
        seed: of the order in which each command wants the runs.

    Returns:
        The figures.

    Raises:
        AssertionError: if a run is done twice, a number differs, or something is removed that is
            in use.
    """
    rng = random.Random(seed)
    names = NAMES[:only]
    quiet = folder / "quiet"
    quiet.mkdir()
    for name in names:
        done = commands.forked("moe-run", *runs.words(name, quiet), folder=quiet).wait()
        assert done.code == 0, done.err
    expected = runs.numbers(runs.store_of(quiet))
    return {
        "one store": one_store(folder / "one", names, expected, rng),
        "one sweep": one_sweep(folder / "sweep", CROWD if only is None else 2),
        "two stores on one cache": one_cache(folder / "cache", names, expected),
        "clean while running": cleaning(folder / "clean", names, expected),
    }


def one_store(folder: Path, names: tuple[str, ...], expected: dict, rng: random.Random) -> str:
    """Start eight commands at once, again and again, until each run is done: none twice."""
    folder.mkdir()
    store, rounds, refused = runs.store_of(folder), 0, 0
    while set(store.ids()) < set(expected) or any(not store.result(i) for i in expected):
        rounds += 1
        assert rounds < 20
        wanted = [rng.choice(names) for _ in range(CROWD - len(names))] + list(names)
        rng.shuffle(wanted)
        crowd = [
            commands.forked("moe-run", *runs.words(name, folder), folder=folder) for name in wanted
        ]
        for done in [running.wait() for running in crowd]:
            assert not done.has_traceback, done.err
            assert done.code in (0, 1), done.err
            if done.code:
                assert "is busy" in done.err, done.err
                refused += 1
    assert runs.numbers(store) == expected
    attempts = [store.status(run_id).attempts for run_id in expected]
    assert attempts == [1] * len(expected), f"done more than once: {attempts}"
    return f"{CROWD} commands at once, {rounds} rounds, {refused} told that a run is busy"


def one_sweep(folder: Path, crowd: int) -> str:
    """Start the same sweep of six runs eight times at once; every run is done once."""
    folder.mkdir()
    words = (*SWEEP, f"paths.output={folder}/outputs", f"paths.cache={folder}/cache")
    running = [commands.forked("moe-run", *words, folder=folder) for _ in range(crowd)]
    ended = [each.wait() for each in running]
    assert not any(done.has_traceback for done in ended), [done.err for done in ended]
    last = commands.forked("moe-run", *words, folder=folder).wait()
    assert last.code == 0, last.err
    store = runs.store_of(folder)
    attempts = [store.status(run_id).attempts for run_id in store.ids()]
    assert attempts == [1] * 6, attempts
    return f"{crowd} times 6 runs at once, each done once"


def one_cache(folder: Path, names: tuple[str, ...], expected: dict) -> str:
    """Fill an empty cache from two stores at once."""
    folder.mkdir()
    stores = folder / "a", folder / "b"
    for path in stores:
        path.mkdir()
    for name in names:
        shared = f"paths.cache={folder}/cache"
        both = [
            commands.forked("moe-run", *runs.words(name, path), shared, folder=path)
            for path in stores
        ]
        for done in [running.wait() for running in both]:
            assert done.code == 0, done.err
    assert all(runs.numbers(runs.store_of(path)) == expected for path in stores)
    return f"2 times {len(names)} runs, equal"


def cleaning(folder: Path, names: tuple[str, ...], expected: dict) -> str:
    """Clean again and again while runs train: checkpoints in use stay."""
    folder.mkdir()
    (folder / "outputs").mkdir()
    cleaned = 0
    for name in names:
        running = commands.forked("moe-run", *runs.words(name, folder), folder=folder)
        while not running.ended():
            words = ("clean", f"output={folder}/outputs", "yes=true")
            done = commands.forked("moe-report", *words, folder=folder).wait()
            assert done.code == 0, done.err
            cleaned += 1
            time.sleep(0.05)
        ended = running.wait()
        assert ended.code == 0, ended.err
    assert runs.numbers(runs.store_of(folder)) == expected
    return f"{cleaned} times, during {len(names)} runs"
