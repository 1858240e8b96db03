"""What may be one cell of a study's table: runs that are repetitions of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_runner.options.errors import ConfigError
from moe_runner.report.repetitions import refuse
from moe_runner.report.study_table import grouped
from moe_runner.runs.run import Run
from moe_runner.sweeps.study_plan import StudyPlan


def check_cells(plans: Sequence[StudyPlan]) -> None:
    """Check that no cell holds two runs of one task, rate and seed that differ in what counts.

    Asked before anything is run.

    Raises:
        ConfigError: one line per cell, with two of its runs and what differs.
    """
    if problems := [problem for plan in plans for problem in problems_of(plan)]:
        raise ConfigError(*problems)


def problems_of(plan: StudyPlan) -> Iterator[str]:
    """Find the cells of a study whose runs are no repetitions."""
    for (row, column), runs in grouped(plan).items():
        seen: dict[tuple[str, str, float | None, int], Run] = {}
        for run in runs:
            key = run.task.suite, run.task.title, run.trainer.learning_rate, run.seed
            try:
                refuse(seen.setdefault(key, run), run, "name it in study.rows or study.columns")
            except ConfigError as error:
                yield f"study={plan.study.name}: in the cell {row} of {column}, {error}"
                break
