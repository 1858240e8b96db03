"""What may stand beside a published figure: the same metric, hence the same direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_runner import tasks
from moe_runner.metrics import NAMES, RAW
from moe_runner.options.errors import ConfigError, join
from moe_runner.report.beside import columns_of
from moe_runner.report.published import PublishedTable, published_tables
from moe_runner.report.study_table import StudyTable, grouped, tabulate
from moe_runner.sweeps.study import Pairing
from moe_runner.sweeps.study_plan import StudyPlan


def check_pairings(plans: Sequence[StudyPlan]) -> None:
    """Check that studies set nothing beside a published figure that is of another metric.

    Asked before anything is run. Of out-of-domain sets the metrics are known with the results
    only: `check_figures` asks for them.

    Raises:
        ConfigError: one line per pair, and per name that the published table does not have.
    """
    problems = dict.fromkeys(
        f"study={plan.study.name}: {problem}"
        for plan in plans
        for pairing in plan.study.beside
        for problem in planned_problems(plan, pairing)
    )
    if problems:
        raise ConfigError(*problems)


def planned_problems(plan: StudyPlan, pairing: Pairing) -> Iterator[str]:
    """Find what is wrong with a pairing, as far as the plan tells."""
    published = published_tables().get(pairing.table)
    if published is None:
        yield f"study.beside.table={pairing.table} is not in published.yaml"
        return
    for kind, ours, there in (
        ("rows", pairing.rows, list(published.rows)),
        ("columns", pairing.columns, list(published.columns)),
    ):
        for name in ours.values():
            if name not in there:
                yield (
                    f"study.beside.{kind} names {name}, which {published.id} does not have; use "
                    f"{join(there)}"
                )
    table, cells = tabulate(plan, {}), grouped(plan)
    for key, theirs in pairing.columns.items():
        columns = columns_of(table, key)
        names = [
            name
            for (row, column), runs in cells.items()
            if row in pairing.rows and column in columns
            for run in runs
            for name in tasks.spec(run.task, run.task_name).metrics
        ]
        unknown = " > " in key  # of a set
        if theirs in published.columns:
            yield from mismatches(published, key, theirs, [] if unknown else names)


def check_figures(table: StudyTable, published: PublishedTable, pairing: Pairing) -> None:
    """Check the metrics of the results that are to stand beside a published table.

    Args:
        table: ours.
        published: theirs.
        pairing: which of our rows and columns are which of theirs.

    Raises:
        ConfigError: one line per figure of another metric or direction: no difference is shown.
    """
    problems: dict[str, None] = {}
    for key, theirs in pairing.columns.items():
        ood = key.partition(" > ")[2]
        for row in pairing.rows:
            for column in columns_of(table, key):
                found = table.cells.get((row, column))
                if found is None or found.cell is None:
                    continue
                names = found.cell.set_metrics.get(ood, ()) if ood else found.cell.metrics
                problems |= dict.fromkeys(mismatches(published, key, theirs, names))
    if problems:
        raise ConfigError(*problems)


def mismatches(
    published: PublishedTable, key: str, theirs: str, names: Sequence[str]
) -> Iterator[str]:
    """Say how ours differs from a published column.

    Args:
        published: the table.
        key: of our columns, see `Pairing`.
        theirs: the published column.
        names: of the metrics behind ours; none: not known.
    """
    measure = published.measure(theirs)
    ours = measured_as(key, names)
    if ours is None or fits(measure, ours):
        return
    shown = " + ".join(sorted(ours))
    yield (
        f"study.beside: ours of `{key}` is {shown} and `{theirs}` of {published.id} is "
        f"{'no score' if measure == 'none' else measure}: these are not compared; name what has "
        "the same metric (a set: `<column> > <set>`, a rank: `<column> rank`), or take it out"
    )


def measured_as(key: str, names: Sequence[str]) -> frozenset[str] | None:
    """Name what a figure of ours is; None if that is not known."""
    if key.endswith(" rank"):
        return frozenset({"rank"})
    parts = frozenset(part for name in names for part in name.split("/") if part in NAMES)
    return parts or None


def fits(measure: str, ours: frozenset[str]) -> bool:
    """Tell whether a figure may stand beside a published one.

    Args:
        measure: of the published one, see `PublishedTable`.
        ours: names of metrics, or `rank`.
    """
    if measure == "score":
        return not ours & {*RAW, "rank"}
    return ours == set(measure.split(" + "))
