"""The subcommands of `moe-report` about runs of one's own: runs, show, compare, page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_runner.console import wide_console
from moe_runner.files import write_atomic
from moe_runner.metrics import scaled, shown
from moe_runner.options.errors import ConfigError, not_an_option, show
from moe_runner.report.labels import HASHES
from moe_runner.report.render import FORMATS, render
from moe_runner.report.repetitions import OOD
from moe_runner.report.sheet import NOT_AVAILABLE, Entry, Sheet, to_csv, to_rich
from moe_runner.report.store_commands import read_words
from moe_runner.report.stored import (
    DAMAGED,
    Row,
    chosen,
    differing,
    one_each,
    ordered,
    row_of,
    rows_of,
    run_sheet,
    share_a_name,
    varied,
    with_models,
)
from moe_runner.report.study_sheet import print_study
from moe_runner.runs.result import Result, Scored
from moe_runner.runs.run import read_run
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import OWN, Study
from moe_runner.sweeps.study_plan import Job, StudyPlan


def runs(words: Sequence[str]) -> None:
    """List the runs of a store, what differs between them first.

    output=outputs   the folder of the runs
    method=emoe      only such runs; also task, model, seed, state, any option (method.top_k=16);
                     several values with commas
    sort=started     or score, seconds, id, any of the above; -score: the largest first
    to=<file>.csv    written there as well, with every setting and metric

    Args:
        words: key=value.

    Raises:
        ConfigError: for an unknown key or value.
    """
    given, wanted = split("runs", words, output="outputs", sort="started", to="")
    rows = select(given, wanted)
    if not rows:
        print(f"no runs in {given['output']}" + (" with these values" if wanted else ""))
        return
    wide_console().print(to_rich(run_sheet(rows, f"{len(rows)} runs in {given['output']}")))
    for row in rows:
        if row.state == DAMAGED:
            print(f"damaged: {row.problem}")
    if given["to"]:
        write_atomic(Path(given["to"]), to_csv(whole_sheet(rows)))
        print(given["to"])


def show_run(words: Sequence[str]) -> None:
    """Show one run: settings, scores, sizes, where its files are.

    moe-report show <id> [output=outputs]     the first digits of the id are enough

    Args:
        words: the id, and key=value.

    Raises:
        ConfigError: for an unknown key or value.
        StoreError: if there is no such run.
    """
    given, ids = with_ids("show", words, least=1, most=1)
    store = Store(Path(given["output"]))
    row = row_of(store, store.find(ids[0]))
    if row.state == DAMAGED:
        print(f"damaged: {row.problem}")
        return
    facts = {**row.axes, **row.settings}
    wide_console().print(to_rich(columns("settings", facts, {row.id: facts}, first="option")))
    if row.result is not None:
        wide_console().print(to_rich(score_sheet([row])))
        result = row.result
        sizes = result.parameters
        print(
            f"parameters {sizes.total:,} ({sizes.active_per_token:,} active per token, "
            f"{sizes.trainable:,} train); {result.updates} updates in {result.wall_seconds:.0f} s "
            f"on {result.device}"
        )
    print(f"{row.state}; files: {store.folder(row.id)}")


def compare(words: Sequence[str]) -> None:
    """Compare runs: the settings that differ, scores, and the score over training.

    moe-report compare <id> <id> ... [output=outputs]

    Args:
        words: ids, and key=value.

    Raises:
        ConfigError: for an unknown key or value.
        StoreError: if there is no such run.
    """
    given, ids = with_ids("compare", words, least=2)
    store = Store(Path(given["output"]))
    rows = with_models([row_of(store, store.find(run_id)) for run_id in ids], store)
    for row in rows:
        if row.state == DAMAGED:
            print(f"damaged: {row.problem}")
    facts = {row.id: row.facts for row in rows}
    console = wide_console()
    differ = dict.fromkeys(differing(rows) + one_sided(rows))
    console.print(to_rich(columns("what differs", differ, facts, first="option")))
    if any(row.result for row in rows):
        console.print(to_rich(score_sheet(rows)))
        console.print(to_rich(curve_sheet(rows)))


def page(words: Sequence[str]) -> None:
    """Render runs of one's own as a study: verdicts, a table, plots and a page.

    runs=<id>,<id>   or all (the default); the first digits are enough
    method=emoe      only such runs, as in moe-report runs
    title=...        of the page
    format=md,latex,csv,html
    output=outputs   the folder of the runs
    to=<output>/reports/own

    Args:
        words: key=value.

    Raises:
        ConfigError: for an unknown key or value.
        StoreError: if there is no such run, or a result is damaged.
    """
    given, wanted = split(
        "page", words, output="outputs", runs="all", title="runs of this store",
        format=",".join(FORMATS), to="",
    )  # fmt: skip
    formats = given["format"].split(",")
    if wrong := [name for name in formats if name not in FORMATS]:
        raise ConfigError(not_an_option(f"format={wrong[0]}", "", wrong[0], FORMATS))
    rows = [row for row in select(given, wanted) if row.axes]
    if not rows:
        print(f"no runs in {given['output']}" + (" with these values" if wanted else ""))
        return
    store = Store(Path(given["output"]))
    plan = plan_of(rows, store, given["title"])
    print_study(plan, {row.id: row.result for row in rows if row.result is not None})
    out = Path(given["to"] or Path(given["output"]) / "reports" / "own")
    for file in render([plan], store, out, formats):
        print(file)


def plan_of(rows: Sequence[Row], store: Store, title: str) -> StudyPlan:
    """Make a study of stored runs: a row for what differs, a column for each model and task.

    Other weights or data are other columns; other out-of-domain sets are no other run.

    Args:
        rows: of the runs, none damaged.
        store: of the runs.
        title: of the study.

    Raises:
        ConfigError: if a config.yaml is damaged.
    """
    axes = [key for key in ("tuning", "protocol") if len({row.axes[key] for row in rows}) > 1]
    rows = one_each(rows)
    options = varied(rows)
    of_columns = ["suite"] if share_a_name(rows) else []
    of_columns += [key for key in options if key in HASHES]
    study = Study(
        name="own", title=title, paper="ours",
        rows=("method", *axes, *(key for key in options if key not in (*HASHES, OOD))),
        columns=("model", "task", *of_columns),
    )  # fmt: skip
    first = sorted(rows, key=lambda row: row.axes["method"] != "dense")
    jobs = [Job(read_run(store.folder(row.id) / "config.yaml"), {}, ()) for row in first]
    return StudyPlan(study, OWN, tuple(jobs), ())


def select(given: Mapping[str, str], wanted: Mapping[str, str]) -> list[Row]:
    """Read the runs that a command names, filtered and sorted."""
    store = Store(Path(given["output"]))
    named = given.get("runs", "all")
    ids = None if named == "all" else [store.find(run_id) for run_id in named.split(",")]
    of_model = any(key.startswith("model.") for key in wanted)
    rows = chosen(with_models(rows_of(store, ids), store, wanted=of_model), wanted)
    return ordered(rows, given.get("sort", "started")) if rows else []


def split(
    command: str, words: Sequence[str], **defaults: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Separate the keys of a command from values that runs are filtered by.

    Raises:
        ConfigError: for a word without a value, or a value of a key that is not valid.
    """
    own = [word for word in words if "=" not in word or word.partition("=")[0] in defaults]
    given = read_words(command, own, **defaults)
    filters = dict(word.split("=", 1) for word in words if word not in own)
    return given, filters


def with_ids(
    command: str, words: Sequence[str], least: int, most: int | None = None
) -> tuple[dict[str, str], list[str]]:
    """Separate ids from the keys of a command.

    Raises:
        ConfigError: for a wrong number of ids, or an unknown key.
    """
    ids = [word for word in words if "=" not in word]
    given = read_words(command, [word for word in words if "=" in word], output="outputs")
    if len(ids) < least or (most is not None and len(ids) > most):
        number = "one id" if most == least else f"{least} ids or more"
        given_ids = " ".join(ids) or "none"
        raise ConfigError(
            f"moe-report {command} takes {number}, not {given_ids}; moe-report runs lists them"
        )
    return given, ids


def one_sided(rows: Sequence[Row]) -> list[str]:
    """List the settings that some runs have and others do not: method.top_k of dense."""
    every = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in every if not all(key in row.settings for row in rows)]


def columns(
    title: str, keys: Mapping[str, object], facts: Mapping[str, Mapping[str, object]], first: str
) -> Sheet:
    """Lay out one line for each key and one column for each run."""
    lines = [
        (Entry(key), *(Entry(show(of[key]) if key in of else "") for of in facts.values()))
        for key in keys
    ]
    return Sheet(title=title, header=(first, *facts), rows=tuple(lines), caption="")


def score_sheet(rows: Sequence[Row]) -> Sheet:
    """Lay out the metrics of every set, a column for each run."""
    found = {row.id: figures(row.result) if row.result else {} for row in rows}
    keys = dict.fromkeys(key for of in found.values() for key in of)
    lines = [(Entry(key), *(Entry(of.get(key, "")) for of in found.values())) for key in keys]
    return Sheet(
        title="scores",
        header=("set and metric", *found),
        rows=tuple(lines),
        caption="percent (perplexity: as it is)",
    )


def figures(result: Result) -> dict[str, str]:
    """Write the metrics of a run by set and name."""

    def of_sets(sets: Scored, where: str) -> dict[str, str]:
        written = {}
        for name, scores in sets.items():
            if scores is None:
                written[f"{where}{name}"] = NOT_AVAILABLE
                continue
            written |= {
                f"{where}{name} {metric}": shown(value, [metric])
                for metric, value in scores.metrics.items()
                if "/" not in metric
            }
        return written

    return {
        "primary": shown(result.primary, result.metrics),
        **of_sets(result.id_metrics, ""),
        **of_sets(result.ood_metrics, "out of domain: "),
    }


def curve_sheet(rows: Sequence[Row]) -> Sheet:
    """Lay out the primary number at every evaluation, a column for each run."""
    found: dict[str, dict[int, str]] = {}
    for row in rows:
        curve = row.result.learning_curve if row.result else ()
        metrics = row.result.metrics if row.result else ()
        found[row.id] = {point.step: shown(point.primary, metrics) for point in curve}
    steps = sorted({step for curve in found.values() for step in curve})
    lines = [
        (Entry(str(step)), *(Entry(curve.get(step, "")) for curve in found.values()))
        for step in steps
    ]
    return Sheet(title="over training", header=("updates", *found), rows=tuple(lines), caption="")


def whole_sheet(rows: Sequence[Row]) -> Sheet:
    """Lay out runs with every axis, setting and figure, for a csv file."""
    keys = dict.fromkeys(key for row in rows for key in (*row.axes, *row.settings, *row.further))
    scores = {row.id: raw_figures(row.result) if row.result else {} for row in rows}
    names = list(dict.fromkeys(name for of in scores.values() for name in of))
    lines = []
    for row in rows:
        values = [row.value(key) for key in keys]
        words = ["" if value is None else show(value) for value in values]
        numbers = [str(scores[row.id].get(name, "")) for name in names]
        lines.append(tuple(map(Entry, (row.id, row.state, row.started, *words, *numbers))))
    return Sheet(
        title="", header=("id", "state", "started", *keys, *names), rows=tuple(lines), caption=""
    )


def raw_figures(result: Result) -> dict[str, float]:
    """Give the numbers of a run as people read them: percent, or as they are."""
    found = {"primary": scaled(result.primary, result.metrics), "seconds": result.wall_seconds}
    for where, sets in (("", result.id_metrics), ("ood/", result.ood_metrics)):
        for name, scores in sets.items():
            for metric, value in (scores.metrics if scores else {}).items():
                found[f"{where}{name}/{metric}"] = scaled(value, [metric])
    return found | {"parameters": dataclasses.asdict(result.parameters)["total"]}
