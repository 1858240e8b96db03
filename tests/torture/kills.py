"""Kill commands at random moments, again and again, until all runs are done: nothing may change.

Three kinds of moments: at a random time of a cold process (imports, arguments, planning), at a
random time of a warm one (reading, clustering, training, evaluating), and at a random change of a
file, in the middle of a write (cache, checkpoint, status, result).
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path

from moe_runner.options.folders import option_folders
from moe_runner.runs.result import write_result
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import read_study
from moe_runner.sweeps.study_plan import plan_study
from tests.results import make_result
from tests.torture import commands, runs

EACH = 10  # kills of a run, unless it comes to its end before
LEAST, LEAST_RESUMED = 150, 20  # of a whole campaign
MINUTE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d")
TRIES = 60  # of a run: more means that it does not go on


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Do all runs undisturbed, then under kills, and compare.

    Args:
        folder: an empty one.
        only: so many runs instead of all.
        seed: of the moments.

    Returns:
        The figures.

    Raises:
        AssertionError: if anything is lost, repeated or another number.
    """
    rng = random.Random(seed)
    names = list(runs.RUNS)[:only]
    quiet, loud = folder / "quiet", folder / "loud"
    for path in (quiet, loud):
        path.mkdir()
    lengths = {}
    for name in names:
        done = commands.forked("moe-run", *runs.words(name, quiet), folder=quiet).wait()
        assert done.code == 0, f"{name}: {done.err}"
        lengths[name] = done.seconds
        print(f"  undisturbed {name}: {done.seconds:.1f} s", flush=True)
    changes = {name: count_changes(name, folder / "count") for name in names}
    expected = runs.numbers(runs.store_of(quiet))
    assert len(expected) == len(names), "two of the runs are the same"

    struck: Counter[str] = Counter()
    todo, tries = list(names), Counter[str]()
    while todo:
        name = rng.choice(todo)
        tries[name] += 1
        assert tries[name] <= TRIES, f"{name} does not come to its end"
        kind = "none"
        if struck[name] < EACH:
            kind = rng.choice(["cold", "warm", "warm", "write", "write"])
        moment = rng.uniform(*reach(struck[name]))
        running, kill_after = start(kind, name, loud, lengths[name], changes[name], moment)
        if kill_after is not None:
            wait_or_end(running, kill_after)
            running.kill()
        done = running.wait()
        if done.killed:
            struck[name] += 1
            struck[f"at a {kind} moment"] += 1
        else:
            assert done.code == 0, f"{name}: {done.out}{done.err}"
            assert not done.has_traceback
            todo.remove(name)
        print(f"  {name}: {kind} {'killed' if done.killed else 'done'}", flush=True)
    store = runs.store_of(loud)
    found = runs.numbers(store)
    different = [i for i in expected if found.get(i) != expected[i]]
    assert not different, f"other numbers: {different}"
    assert set(found) == set(expected)
    assert {store.status(run_id).state for run_id in store.ids()} == {"done"}
    struck_all = sum(struck[name] for name in names)
    resumed = sum(result.resumed_at_update > 0 for result in store.results())
    print(f"  {struck_all} kills, {resumed} runs resumed", flush=True)
    assert only is not None or (struck_all >= LEAST and resumed >= LEAST_RESUMED)
    reports = kill_reports(folder / "reports", rng, 20 if only is None else 2)
    return {
        "runs": len(names),
        "kills": struck_all,
        "moments": {key: n for key, n in sorted(struck.items()) if key.startswith("at ")},
        "resumed from a checkpoint": resumed,
        "other numbers": 0,
        "kills of reports": reports,
    }


def count_changes(name: str, folder: Path) -> int:
    """Count the changes of files that a run makes."""
    folder.mkdir(exist_ok=True)
    strike = commands.Strike(folder, -1, commands.COUNT)
    done = commands.forked(
        "moe-run", *runs.words(name, folder), folder=folder, strike=strike
    ).wait()
    assert done.code == 0, done.err
    return done.changes


def reach(struck: int) -> tuple[float, float]:
    """Say in which part of a run it is to be killed, that was killed so often.

    At first in the second half, where a checkpoint has been written; then ever earlier, since what
    is left is short; at last anywhere.
    """
    if struck == 0:
        return 0.5, 0.9
    return (0.0, 1.0) if struck >= EACH - 2 else (0.0, 1 / (struck + 1))


def start(
    kind: str, name: str, folder: Path, seconds: float, changes: int, moment: float
) -> tuple[commands.Running, float | None]:
    """Start a run that is to be killed; with the seconds after which it is, if by the clock."""
    words = runs.words(name, folder)
    if kind == "cold":  # imports take longer than such a run
        return commands.cold("moe-run", *words, folder=folder), moment * (2 * seconds + 5)
    if kind == "write":
        strike = commands.Strike(folder, 1 + int(moment * changes), commands.KILL)
        return commands.forked("moe-run", *words, folder=folder, strike=strike), None
    running = commands.forked("moe-run", *words, folder=folder)
    return running, moment * seconds if kind == "warm" else None


def wait_or_end(running: commands.Running, seconds: float) -> None:
    """Wait so long, or until it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not running.ended():
        time.sleep(0.005)


def kill_reports(folder: Path, rng: random.Random, kills: int) -> int:
    """Kill the rendering of a study at random changes of files; then it is rendered as if never."""
    folder.mkdir()
    fill(folder / "outputs")
    words = ("tables", "study=emoe_gates", f"output={folder}/outputs")
    quiet, loud = folder / "quiet", folder / "loud"
    strike = commands.Strike(folder, -1, commands.COUNT)
    counted = commands.forked(
        "moe-report", *words, f"to={quiet}", folder=folder, strike=strike
    ).wait()
    assert counted.code == 0, counted.err
    struck = 0
    while struck < kills:
        strike = commands.Strike(folder, rng.randint(1, counted.changes), commands.KILL)
        running = commands.forked("moe-report", *words, f"to={loud}", folder=folder, strike=strike)
        struck += running.wait().killed
    done = commands.forked("moe-report", *words, f"to={loud}", folder=folder).wait()
    assert done.code == 0, done.err
    assert contents(loud) == contents(quiet)
    return struck


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder; the minute in which a page was made is left out."""
    return {
        str(path.relative_to(folder)): MINUTE.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill(output: Path) -> None:
    """Write made-up results of all runs of a study."""
    folders = option_folders(None)
    plan = plan_study(folders, read_study(folders, "emoe_gates"), "mini", {})
    store = Store(output)
    for number, job in enumerate(plan.jobs):
        run = job.run
        result = make_result(run.axes(), id=run.id, settings=run.settings(), primary=number / 100)
        store.folder(run.id).mkdir(parents=True)
        write_result(store.folder(run.id) / "result.json", result)
