"""Give the program what it cannot use: a clear line, the right exit code, soon, nothing left."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from tests.torture import commands, generated, runs
from tests.torture.bad import data, kept, models, options, reports
from tests.torture.bad.case import Case

SECONDS = 10.0  # to the message, imports included
NO_HARM = ("outputs/hydra", "outputs/runs", "cache")  # looked at apart; logs; checksums
MADE_UP = 1000  # command lines
COLD = 12  # every so many, in a new interpreter
QUICK = (
    "threads=1", "device=cpu", "trainer.max_steps=2", "trainer.batch_size=4",
    "trainer.eval_batch_size=8", "task.limit=16", "task.eval_limit=8",
)  # fmt: skip
KINDS = {
    "options": options.cases,
    "data": data.cases,
    "models": models.cases,
    "checkpoints, caches and stores": kept.cases,
    "reports": reports.cases,
}


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Carry out every case.

    Args:
        folder: an empty one.
        only: so many cases of each kind instead of all.
        seed: of the command lines that hypothesis makes up.

    Returns:
        The figures.

    Raises:
        AssertionError: at the end, with every case that did not go as expected.
    """
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    wanted = os.environ.get("TORTURE_INPUTS", "")  # a part of the names: only such, to look at some
    for kind, listed in KINDS.items():
        cases = [case for case in listed() if wanted in f"{kind}: {case.name}"]
        assert len({case.name for case in cases}) == len(cases), f"{kind}: two of one name"
        chosen = cases if only is None else cases[:: max(1, len(cases) // only)][:only]
        for number, case in enumerate(chosen):
            try:
                try:
                    seconds = carry_out(case, folder / "case", cold=number % COLD == 0)
                except TooSlow:  # whatever else the machine did: it may try once more
                    seconds = carry_out(case, folder / "case", cold=number % COLD == 0)
                slowest = max(slowest, seconds)
            except (AssertionError, TimeoutError) as error:
                wrong.append(f"{kind}: {case.name}: {error}")
                print(f"  WRONG {wrong[-1]}", flush=True)
            tally[kind] += 1
        print(f"  {kind}: {tally[kind]}", flush=True)
    assert not wrong, f"{len(wrong)} went wrong:\n" + "\n".join(wrong)
    made_up = generated.try_many(MADE_UP if only is None else only, seed)
    return {
        "bad inputs": sum(tally.values()),
        **tally,
        "command lines made up": made_up,
        "seconds to the slowest message": round(slowest, 1),
    }


class TooSlow(AssertionError):
    """The message came too late."""


def carry_out(case: Case, folder: Path, *, cold: bool) -> float:
    """Carry out one case in an empty folder; the seconds to its end.

    Raises:
        AssertionError: if anything is not as expected.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if case.build is not None:
        case.build(folder)
    listing = names(folder)
    start = commands.cold if cold else commands.forked
    words = placed(case.words, folder, quick=case.program == "moe-run")
    done = start(case.program, *words, folder=folder).wait(120)
    screen = done.out + done.err
    assert not done.has_traceback, screen
    assert done.code == case.code, f"code {done.code}: {screen[-1500:]}"
    for said in case.says:
        assert said.replace("HERE", str(folder)) in screen, f"says nothing of {said}: {screen}"
    if case.code == 2 and not case.left:
        left = [name for name in names(folder) - listing if not name.startswith(NO_HARM)]
        assert not left, f"left {left}"
    if case.code in (1, 2) and case.build is not None and not case.left:
        store = runs.store_of(folder)  # a run that was begun says that it failed
        assert {store.status(i).state for i in store.ids()} <= {"failed"}
        assert all((store.folder(i) / "error.txt").is_file() for i in store.ids())
    if case.numbers is not None:
        found = runs.numbers(runs.store_of(folder))
        assert found == case.numbers(), f"other numbers: {screen}"
    if case.code == 2 and done.seconds >= SECONDS:
        raise TooSlow(f"{done.seconds:.1f} s")
    return done.seconds if case.code == 2 else 0.0


def placed(words: tuple[str, ...], folder: Path, *, quick: bool = False) -> list[str]:
    """Put the folder into the words of a case; store and cache are below it."""
    given = [word.replace("HERE", str(folder)) for word in words]
    own = [
        f"paths.{name}={folder}/{place}"
        for name, place in (("output", "outputs"), ("cache", "cache"))
        if quick and f"paths.{name}" not in " ".join(words)
    ]
    keys = {word.partition("=")[0] for word in given}
    plain = quick and "study" not in keys  # a study has its own settings
    quickly = [word for word in QUICK if plain and word.partition("=")[0] not in keys]
    return [*quickly, *own, *given]


def names(folder: Path) -> set[str]:
    """List what is in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "outputs"}
