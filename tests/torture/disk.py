"""Fill the disk for one write, each write in turn: the next call ends with undisturbed numbers."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from tests.torture import commands, kills, runs

RUN = "emoe bert_tiny rte"
SHORTER = ("trainer.max_steps=4", "trainer.save_steps=2", "task.limit=16", "task.eval_limit=8")
REPORT = ("tables", "study=emoe_gates")


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Fail every change of a file that a run and a report make, one per command.

    Args:
        folder: an empty one.
        only: so many changes instead of all, spread over them.
        seed: not used; nothing is random.

    Returns:
        The figures.

    Raises:
        AssertionError: if a failed command shows a traceback or no reason, or the next one does not
            end with the undisturbed numbers.
    """
    del seed
    quiet = folder / "quiet"
    quiet.mkdir()
    counted = attempt(quiet, 0, commands.COUNT)
    assert counted.code == 0, counted.err
    expected = runs.numbers(runs.store_of(quiet))
    tally: Counter[str] = Counter()
    for number in spread(counted.changes, only):
        there = folder / "there"
        there.mkdir()
        failed = attempt(there, number, commands.FAIL)
        what = f"change {number} of {counted.changes}, {failed.struck}"
        tally[outcome(failed, there, what)] += 1
        again = attempt(there, 0, commands.COUNT)
        assert again.code == 0, f"after {what}: {again.err}"
        assert runs.numbers(runs.store_of(there)) == expected, f"other numbers after {what}"
        left = [path for path in there.rglob(".*.tmp") if "cache" not in path.parts]
        assert not left, f"left over after {what}: {left}"
        shutil.rmtree(there)
        print(f"  {what}: code {failed.code}", flush=True)
    return {
        "changes of files in a run": counted.changes,
        "failed, one a command": sum(tally.values()),
        **dict(sorted(tally.items())),
        "other numbers": 0,
        "changes failed in a report": reports(folder / "reports", only),
    }


def attempt(folder: Path, number: int, mode: int) -> commands.Done:
    """Run the command, its changes of files counted or one failed."""
    words = [*runs.words(RUN, folder), *SHORTER]
    strike = commands.Strike(folder, number, mode)
    return commands.forked("moe-run", *words, folder=folder, strike=strike).wait()


def spread(number: int, only: int | None) -> list[int]:
    """Choose changes, from 1: all, or so many at equal distances."""
    every = range(1, number + 1)
    return list(every if only is None else every[:: max(1, number // only)][:only])


def outcome(done: commands.Done, folder: Path, what: str) -> str:
    """Name how a command with a failed write ended; what is no good end is an error."""
    screen = done.out + done.err
    assert not done.has_traceback, f"{what}: {screen}"
    assert done.code in (0, 1, 2), f"{what}: code {done.code}: {screen}"
    if done.code == 0:
        return "went on without it"
    full = "No space left on device", "is the disk full?"  # torch's writer does not know
    assert any(words in screen for words in full), f"{what}: {screen}"
    return "named the path" if str(folder) in done.err else "named no path"


def reports(folder: Path, only: int | None) -> int:
    """Fail every change of a file that the rendering of a study makes; how many there were."""
    folder.mkdir()
    kills.fill(folder / "outputs")
    words = (*REPORT, f"output={folder}/outputs")
    quiet, loud = folder / "quiet", folder / "loud"

    def rendered(to: Path, number: int, mode: int) -> commands.Done:
        strike = commands.Strike(folder, number, mode)
        return commands.forked(
            "moe-report", *words, f"to={to}", folder=folder, strike=strike
        ).wait()

    counted = rendered(quiet, 0, commands.COUNT)
    assert counted.code == 0, counted.err
    chosen = spread(counted.changes, only)
    for number in chosen:
        failed = rendered(loud, number, commands.FAIL)
        outcome(failed, folder, f"report, change {number}, {failed.struck}")
    assert rendered(loud, 0, commands.COUNT).code == 0
    assert kills.contents(loud) == kills.contents(quiet)
    return len(chosen)
