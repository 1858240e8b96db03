"""The runs of a store as rows: what they are, their state, their score; filtered, sorted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from moe_runner.files import one_line
from moe_runner.metrics import named, scaled, shown
from moe_runner.options.errors import ConfigError, not_an_option, show
from moe_runner.options.settings import option_keys
from moe_runner.report.labels import HASHES, said
from moe_runner.report.repetitions import (
    FURTHER,
    OOD,
    RATE_AND_SEED,
    further,
    of_data,
    of_model,
    unsaid,
)
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.runs.objects import StoreError
from moe_runner.runs.result import Axes, Result
from moe_runner.runs.run import read_run
from moe_runner.runs.store import Store

AXES = tuple(axis.name for axis in fields(Axes))
ALWAYS = ("method", "model", "task")  # shown whether they differ or not
SPOKEN = {"learning_rate": "lr"}
OF_A_RECIPE = ("model", "suite", "task")  # what null means in trainer and task follows from these
DAMAGED = "damaged"
OF_A_ROW = ("id", "state", "score", "seconds", "started")  # beside axes and settings
SHORT = 8  # digits of an id that are shown; more where they are not enough


@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        id: of the run.
        state: see `Store.status`; or damaged.
        started: when its last attempt began, ISO 8601; "" if it never did.
        axes: method, model, task, ..., see `Run.axes`.
        settings: every other option that can change a number, "method.top_k".
        result: None if it is not done.
        problem: what is damaged, in one line.
        further: what the data are, and after `with_models` the model's options.
    """

    id: str
    state: str
    started: str
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]
    result: Result | None
    problem: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Every axis and setting, those too that are at their neutral value; {} of a damaged run.

        See `repetitions`.
        """
        if not self.axes:
            return {}
        neutral = unsaid(self.axes["method"], self.axes["suite"])
        return {**neutral, **self.further, **self.settings, **self.axes}

    @property
    def score(self) -> float | None:
        """The primary number as people read it: percent, or as it is."""
        return None if self.result is None else scaled(self.result.primary, self.result.metrics)

    def value(self, key: str) -> Any:
        """Give what stands in a column: an axis, a setting, or one of `OF_A_ROW`."""
        own = {
            "id": self.id, "state": self.state, "score": self.score, "started": self.started,
            "seconds": None if self.result is None else self.result.wall_seconds,
        }  # fmt: skip
        return own[key] if key in own else self.facts.get(key)


def rows_of(store: Store, run_ids: Iterable[str] | None = None) -> list[Row]:
    """Read runs; what is damaged has a row that says so.

    Args:
        store: of the runs.
        run_ids: which; None: all.
    """
    return [row_of(store, run_id) for run_id in (store.ids() if run_ids is None else run_ids)]


def row_of(store: Store, run_id: str) -> Row:
    """Read one run."""
    try:
        status = store.status(run_id)
        started, result = status.started or "", store.result(run_id)
        if result is not None:
            axes, settings = asdict(result.axes), dict(result.settings)
            return Row(run_id, "done", started, axes, settings, result, "", of_data(result.data))
        run = read_run(store.folder(run_id) / "config.yaml")
    except (StoreError, ConfigError, OSError) as error:
        return Row(run_id, DAMAGED, "", {}, {}, None, one_line(error).partition("\n")[0])
    axes, settings = run.axes(), run.settings()
    return Row(run_id, status.state, started, axes, settings, None, "", of_data(run.data))


def with_models(rows: Sequence[Row], store: Store, *, wanted: bool = False) -> list[Row]:
    """Add the options of the models of which there are runs that nothing else tells apart.

    A result does not have them, and reading every config.yaml takes long.

    Args:
        rows: of runs; one whose config.yaml cannot be read stays as it is.
        store: of the runs.
        wanted: add them to every row.
    """
    models = {group[0].axes["model"] for group in groups_of(rows) if len(group) > 1 or wanted}
    found = []
    for row in rows:
        if row.axes and row.axes["model"] in models:
            with suppress(ConfigError):
                run = read_run(store.folder(row.id) / "config.yaml")
                row = replace(row, further={**row.further, **of_model(run)})
        found.append(row)
    return found


def groups_of(rows: Sequence[Row], leaving_out: Sequence[str] = ()) -> list[list[Row]]:
    """Sort rows by what they are, but for some keys; damaged ones are left out."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        facts = sorted((k, show(v)) for k, v in row.facts.items() if k not in leaving_out)
        if facts:
            groups.setdefault(tuple(facts), []).append(row)
    return list(groups.values())


def one_each(rows: Sequence[Row]) -> list[Row]:
    """Keep one row of those that differ in out-of-domain sets only: the most sets, or the newest.

    Args:
        rows: of runs, after `with_models`; damaged ones are left out.
    """

    def worth(row: Row) -> tuple[bool, int, str]:
        sets = row.result.ood_metrics.values() if row.result else ()
        return row.result is not None, sum(scores is not None for scores in sets), row.started

    kept = {max(group, key=worth).id for group in groups_of(rows, (OOD,))}
    return [row for row in rows if row.id in kept]


def chosen(rows: Sequence[Row], wanted: Mapping[str, str]) -> list[Row]:
    """Keep the rows that have certain values.

    Args:
        rows: of runs.
        wanted: key (an axis, an option such as method.top_k, or state) -> values, separated by
            commas.

    Raises:
        ConfigError: for a key that no run can have.
    """
    keys = dict.fromkeys(k for row in rows for k in (*row.axes, *row.settings, *row.further))
    known = [*(keys or (*AXES, *option_keys())), "state", "id"]
    if unknown := [key for key in wanted if key not in known and key not in option_keys()]:
        raise ConfigError(
            *(not_an_option(f"{k}={wanted[k]}", " of these runs", k, known) for k in unknown)
        )
    return [row for row in rows if all(same(row.value(key), text) for key, text in wanted.items())]


def same(value: Any, text: str) -> bool:
    """Tell whether a value is one of some words; 1e-3 and 0.001 are alike, a list is one word."""
    words = [text] if text.startswith("[") else text.split(",")
    for word in words:
        try:
            if float(word) == float(value) and not isinstance(value, bool):
                return True
        except (TypeError, ValueError):
            pass
        if show(value) == word:
            return True
    return False


def ordered(rows: Sequence[Row], key: str) -> list[Row]:
    """Sort rows.

    Args:
        rows: of runs.
        key: what `Row.value` knows; with "-" before it the largest first. Rows without it are last.

    Raises:
        ConfigError: for a key that no row has.
    """
    name = key.removeprefix("-")
    known = [*OF_A_ROW, *dict.fromkeys(key for row in rows for key in row.facts)]
    if name not in known:
        raise ConfigError(not_an_option(f"sort={key}", "", name, known))
    have = [row for row in rows if row.value(name) is not None]

    def place(row: Row) -> tuple[bool, Any]:
        value = row.value(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return not number, value if number else show(value)

    lacking = [row for row in rows if row.value(name) is None]
    return sorted(have, key=place, reverse=key.startswith("-")) + lacking


def differing(rows: Sequence[Row]) -> list[str]:
    """List the axes and settings in which rows differ, damaged ones left out.

    A setting that some runs do not have (method.top_k of dense) does not differ for that alone. One
    at its neutral value is there only beside runs of the same method and suite, whose it is.
    """
    whole = [row for row in rows if row.axes]
    named = [{**row.axes, **row.settings, **row.further} for row in whole]
    found = []
    for key in dict.fromkeys(key for each in named for key in each):
        values = [show(each[key]) for each in named if key in each]
        if len(set(values)) > 1 or (len(values) < len(whole) and differs_in_a_kind(whole, key)):
            found.append(key)
    return found


def differs_in_a_kind(rows: Sequence[Row], key: str) -> bool:
    """Tell whether runs of one method and suite differ in a key, neutral values counted."""
    kinds: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if key in row.facts:
            kind = row.axes["method"], row.axes["suite"]
            kinds.setdefault(kind, set()).add(show(row.facts[key]))
    return any(len(values) > 1 for values in kinds.values())


def varied(rows: Sequence[Row]) -> list[str]:
    """List what tells runs of one model on one task apart, beside their axes.

    What a recipe says for each task is left out.

    Args:
        rows: of runs, after `with_models`.

    Returns:
        Keys of settings; then of `FURTHER`, and `OOD`, those that are needed.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.axes.get(key) for key in OF_A_RECIPE), []).append(row)
    found = dict.fromkeys(key for group in groups.values() for key in differing(group))
    settings = [key for key in found if key not in (*AXES, *FURTHER, OOD)]
    facts = [row.facts for row in rows if row.axes]
    return [*settings, *further(facts, [*AXES, *settings], (*FURTHER, OOD))]


def share_a_name(rows: Sequence[Row]) -> bool:
    """Tell whether two suites have a task of one name."""
    tasks = {(row.axes["suite"], row.axes["task"]) for row in rows if row.axes}
    return len({task for _, task in tasks}) < len(tasks)


def run_sheet(rows: Sequence[Row], title: str) -> Sheet:
    """Lay runs out: what differs between them first, then score, state and time.

    Args:
        rows: of runs.
        title: above.
    """
    differ = differing(rows)
    axes = [key for key in ("tuning", "protocol", *RATE_AND_SEED) if key in differ]
    axes = ["suite", *axes] if share_a_name(rows) else axes
    settings = varied(rows)
    digits = shortest([row.id for row in rows])
    lines = []
    for row in rows:
        differs = [f"{SPOKEN.get(key, key)} {show_axis(row, key)}" for key in axes if row.axes]
        differs += [
            said(key, row.facts[key])
            if key in HASHES
            else f"{key.partition('.')[2]}={show(row.facts[key])}"
            for key in settings
            if key in row.facts
        ]
        name = " ".join(show_axis(row, key) for key in ALWAYS)
        seconds = "" if row.result is None else f"{row.result.wall_seconds:.0f}"
        words = (row.id[:digits], name, ", ".join(differs), score_of(row), row.state, seconds)
        lines.append(tuple(map(Entry, words)))
    return Sheet(
        title=title,
        header=("id", "run", "what differs", "score", "state", "s"),
        rows=tuple(lines),
        caption="percent (perplexity: as it is); moe-report show <id> says more",
        words=3,
    )


def show_axis(row: Row, key: str) -> str:
    """Write an axis of a run; "" of a damaged one."""
    value = row.axes.get(key)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def score_of(row: Row) -> str:
    """Write the primary number of a run with its metric, or nothing."""
    if row.result is None:
        return ""
    return f"{named(row.result.metrics, '+')} {shown(row.result.primary, row.result.metrics)}"


def shortest(ids: Sequence[str]) -> int:
    """Find how many digits tell some ids apart, at least `SHORT`."""
    longest = max(map(len, ids), default=SHORT)
    for digits in range(SHORT, longest):
        if len({run_id[:digits] for run_id in ids}) == len(set(ids)):
            return digits
    return longest
