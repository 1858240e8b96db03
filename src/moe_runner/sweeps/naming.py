"""What to call the runs of a sweep: by what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_runner.options.errors import show
from moe_runner.runs.run import Run

SHORT_ID = 8  # digits
ALWAYS = ("method", "task")  # shown whether they differ or not
BARE = ("method", "model", "tuning", "suite", "task")  # the value says what it is
SPOKEN = {"learning_rate": "lr"}


def names_of(runs: Mapping[str, Run]) -> dict[str, str]:
    """Name runs by method, task, and what else differs between them.

    Args:
        runs: by id.

    Returns:
        Names by id, no two alike; of an only run its label, else "emoe rte seed 1"; settings are
        added, "num_experts=32", where the axes do not tell runs apart, and at last the id.
    """
    if len(runs) == 1:
        return {run_id: run.label for run_id, run in runs.items()}
    axes = {run_id: run.axes() for run_id, run in runs.items()}
    keys = varying(list(axes.values()), ALWAYS)
    names = {
        run_id: " ".join(spoken(key, each[key]) for key in keys) for run_id, each in axes.items()
    }
    for alike in groups(names):
        settings = {run_id: runs[run_id].settings() for run_id in alike}
        more = varying(list(settings.values()))
        for run_id, each in settings.items():
            words = [f"{key.rpartition('.')[2]}={show(each[key])}" for key in more if key in each]
            names[run_id] = " ".join([names[run_id], *words])
    for alike in groups(names):
        for run_id in alike:
            names[run_id] += f" ({run_id[:SHORT_ID]})"
    return names


def shared_by(runs: Mapping[str, Run]) -> str:
    """Say how many runs there are, and the axes that all have alike, which no name repeats."""
    axes = [run.axes() for run in runs.values()]
    differ = varying(axes, ALWAYS)
    alike = [
        spoken(key, value) if key not in BARE else f"{key} {show(value)}"
        for key, value in axes[0].items()
        if key not in differ
    ]
    return f"{len(runs)} runs" + (f", all with {', '.join(alike)}" if alike else "")


def varying(rows: Sequence[Mapping[str, Any]], always: Sequence[str] = ()) -> list[str]:
    """List the keys whose values differ between rows, in the order of the keys."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if key in always or len({show(row.get(key)) for row in rows}) > 1]


def spoken(key: str, value: Any) -> str:
    """Write an axis: "emoe", "lr 0.001", "seed 1"."""
    text = f"{value:g}" if isinstance(value, float) else show(value)
    return text if key in BARE else f"{SPOKEN.get(key, key)} {text}"


def groups(names: Mapping[str, str]) -> list[list[str]]:
    """List the ids that have one name, if more than one has."""
    by_name: dict[str, list[str]] = {}
    for run_id, name in names.items():
        by_name.setdefault(name, []).append(run_id)
    return [ids for ids in by_name.values() if len(ids) > 1]
