"""What each row of a study is compared with: the same run without the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_runner.report.labels import values_of
from moe_runner.report.study_table import StudyTable, grouped, row_runs
from moe_runner.sweeps.study_plan import StudyPlan

DENSE, EQUATIONS = "dense", "paper"  # a method, a protocol


def baselines(plan: StudyPlan, table: StudyTable) -> dict[str, str]:
    """Find the row that each row is compared with.

    That of `protocol=reference` is the same row under the equations. Another is the dense row that
    is tuned alike: that agrees in all that is no option of the method, such as tuning or length.
    Without one, and for a dense row, it is the first row.

    Args:
        plan: of the study.
        table: of its cells.

    Returns:
        By label, without the rows that there is nothing for.
    """
    runs = row_runs(grouped(plan))
    rows = {name: values_of(runs[name], plan.study.rows) for name in table.rows}
    found = {}
    for name, values in rows.items():
        of_equations = {**values, "protocol": EQUATIONS} if "protocol" in values else values
        own = next((other for other, of in rows.items() if of == of_equations), name)
        if own == name and runs[name].method.name != DENSE:
            alike = _tuning(values)
            dense = (other for other in rows if runs[other].method.name == DENSE)
            own = next((other for other in dense if _agree(_tuning(rows[other]), alike)), name)
        found[name] = table.rows[0] if own == name else own
    return {name: other for name, other in found.items() if name != other}


def _tuning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what is no option of the method."""
    return {key: value for key, value in values.items() if key.partition(".")[0] != "method"}


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two rows have one value for each key that both have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())
