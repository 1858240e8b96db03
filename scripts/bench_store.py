"""Measure planning and reporting at scale: thousands of runs planned, of finished runs rendered.

`python scripts/bench_store.py`           10,000 finished runs
`python scripts/bench_store.py --quick`   1,000

The store is synthetic: the runs of all studies in all profiles, with made-up scores, repeated with
further seeds until there are enough. Nothing is trained. Reports are a page per profile, as
`moe-report tables` makes them; plots are drawn once and kept until a result changes. The baseline
is the time of reading every result.json once.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import Row, median_seconds, parser, save, set_threads, show
from moe_runner import tasks
from moe_runner.options.folders import option_folders
from moe_runner.report.render import FORMATS, render
from moe_runner.runs.result import (
    Accuracy,
    Axes,
    Checkpoint,
    Flops,
    Parameters,
    Result,
    Scores,
    Speed,
    write_result,
)
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import PROFILES, read_study, study_names
from moe_runner.sweeps.study_plan import StudyPlan, plan_study


def main() -> None:
    """Make the store, measure, print and write."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    set_threads(options.threads)
    size = 1_000 if options.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        plans = plan_all(folder)
        every = {job.run.id: job.run for of in plans.values() for plan in of for job in plan.jobs}
        for run in padded(list(every.values()), size):
            write_result(made(store.folder(run.id)) / "result.json", result_of(run))

        def reports(formats: Sequence[str]) -> None:
            for profile, of_profile in plans.items():
                render(of_profile, store, Path(folder) / "reports" / profile, formats)

        started = time.perf_counter()
        reports(FORMATS)
        first = time.perf_counter() - started
        functions = {
            "read every result": lambda: sum(1 for _ in store.results()),
            f"plan {len(every)} runs": lambda: plan_all(folder),
            "tables": lambda: reports(FORMATS[:3]),
            "tables, plots and page, again": lambda: reports(FORMATS),
        }
        seconds = median_seconds(functions, 1) | {"tables, plots and page, the first time": first}
    baseline = seconds["read every result"]
    rows = [
        Row(f"{size} finished runs", name, "", value, baseline / value)
        for name, value in seconds.items()
    ]
    show("The store at scale", rows)
    save("store", rows)


def plan_all(folder: str) -> dict[str, list[StudyPlan]]:
    """Plan every study in every profile that it has."""
    common = {"paths.output": folder, "paths.cache": f"{folder}/cache"}
    folders = option_folders()
    studies = [read_study(folders, name) for name in study_names(folders)]
    return {
        profile: [
            plan_study(folders, study, profile, common)
            for study in studies
            if profile in study.grids
        ]
        for profile in PROFILES
    }


def padded(runs: list[Run], size: int) -> Iterator[Run]:
    """Give the runs, then the same with further seeds, until there are enough."""
    for number in range(size):
        run = runs[number % len(runs)]
        repeated = number // len(runs)
        yield run if not repeated else dataclasses.replace(run, seed=run.seed + 1000 * repeated)


def made(folder: Path) -> Path:
    """Make a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def result_of(run: Run) -> Result:
    """Make up a result."""
    rng = random.Random(run.id)
    score = rng.uniform(0.4, 0.9)
    domains: dict[str, Accuracy] = {}
    if run.form == "domain_generalisation":
        held_out = run.task_name.rpartition("/")[2].split("+")
        domains = {name: Accuracy(score, score) for name in (*held_out, "other")}
    names = tasks.spec(run.task, run.task_name).metrics  # those that published figures are of
    own, far = dict.fromkeys(names, score), dict.fromkeys(names, score / 2)
    routing = {f"routing/{name}": 0.5 for name in ("entropy", "max_share", "active")}
    return Result(
        id=run.id,
        axes=Axes(**run.axes()),
        settings=run.settings(),
        metrics=names,
        id_metrics={"validation": Scores(own, score, 0.5, 100, routing)},
        primary=score,
        ood_metrics={"other": Scores(far, score / 2, 0.5, 100, routing)},
        best_epoch=1.0,
        selection="best epoch on validation, the set that is reported",
        learning_curve=tuple(
            Checkpoint(10 * n, float(n), 1 / n, score, domains) for n in range(1, 11)
        ),
        parameters=Parameters(100, 100, 100, 0, 100),
        flops_per_token=Flops(200, 200),
        converted_layers=("encoder:2",),
        clusters=None,
        routing={**routing, "routing/changed": 0.1},
        speed=Speed(1.0, 10.0, 0.1),
        wall_seconds=10.0,
        resumed_at_update=0,
        updates=100,
        peak_memory_bytes=2**20,
        device="cpu",
        threads=1,
        data=run.data,
        skipped={},
        weights=run.weights,
    )


if __name__ == "__main__":
    main()
