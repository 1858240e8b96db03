"""The subcommands of `moe-report` that read the store: tables, status, clean."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.table import Table

from moe_runner.console import Output
from moe_runner.files import blocked, no_place, one_line
from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.folders import Folders, option_folders
from moe_runner.options.training import Trainer
from moe_runner.report.cells import check_cells
from moe_runner.report.gather import finished, has_results, with_others
from moe_runner.report.pairs import check_pairings
from moe_runner.report.render import FORMATS, render
from moe_runner.report.study_sheet import print_study
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import State, Store
from moe_runner.sweeps.study import ONLY, PROFILES, SEVERAL, Profile, as_overrides, read_studies
from moe_runner.sweeps.study_plan import StudyPlan, noted, plan_study, restrict

STATES: tuple[State, ...] = ("done", "running", "failed", "interrupted", "pending")
DAMAGED = "damaged"  # of files of a run that cannot be read; no state of its own
FOR_ALL = ("trainer.precision",)  # may be given for every run of a study, which is another report
PRECISIONS = get_args(get_type_hints(Trainer)["precision"])
NOTHING = """no study of profile={profile} has results in {output} ({done} finished runs in all)
run one:     moe-run study=emoe_gates profile={profile}     moe-report status lists them
own runs:    moe-report runs output={output}     the published figures: study=<name>"""
PLAN_KEYS = {
    "config_dir": "",
    "data": "",
    "models": "",
    **dict.fromkeys(FOR_ALL, ""),
    **{f"study.only.{axis}": "" for axis in ONLY},
}


def tables(words: Sequence[str]) -> None:
    """Render the tables of studies from what is in the store; nothing is run.

    study=all are those with results. The page and the files in their usual place always hold every
    study of the profile with results, whichever are named here.

    study=all        or published, or names of conf/study, separated by commas
    profile=mini     small or paper
    format=md,latex,csv,html   files to write; format=none only prints
    output=outputs   the folder of the runs
    data=  models=   paths.data and paths.models of the runs, if they were given
    to=<output>/reports/<profile>
    trainer.precision=bf16     the runs of moe-run study=... trainer.precision=bf16
    study.only.method=emoe     only such runs; dense,emoe: of both; also task, seed, ...
    config_dir=my_conf         with the option files of --config-dir

    Args:
        words: key=value.

    Raises:
        ConfigError: for an unknown key or value.
    """
    given = read_words(
        "tables", words, study="all", profile="mini", format="md,latex,csv,html", output="outputs",
        to="", **PLAN_KEYS,
    )  # fmt: skip
    formats = [] if given["format"] == "none" else given["format"].split(",")
    if wrong := [name for name in formats if name not in FORMATS]:
        raise ConfigError(not_an_option(f"format={wrong[0]}", "", wrong[0], [*FORMATS, "none"]))
    planning, store = planning_of(given), Store(Path(given["output"]))
    done = finished(store)
    plans: list[StudyPlan] = []
    if done or given["study"] not in SEVERAL:  # planning all studies takes seconds
        plans, _ = plans_of(given)
    if given["study"] in SEVERAL:
        plans = [plan for plan in plans if has_results(plan, done)]
    if not plans:
        print(NOTHING.format(output=given["output"], profile=given["profile"], done=len(done)))
        return
    for_all, only = for_all_of(given), only_of(given)
    named = given["study"] != "all" and not given["to"] and not only and not for_all
    every = with_others(plans, *planning, store) if named else plans
    results = store.results_of(job.run.id for plan in every for job in plan.jobs)
    for plan in plans:
        own = [job.run.id for job in plan.jobs if job.run.id in results]
        print_study(plan, {run_id: results[run_id] for run_id in own})
    if formats:
        usual = report_folder(Path(given["output"]), given["profile"], only, for_all)
        for file in render(every, store, Path(given["to"] or usual), formats):
            print(file)


def status(words: Sequence[str]) -> None:
    """Show how far studies are: how many runs are done, running, failed.

    What is damaged in the store is counted and named, each with what to do.

    study=all        or published, or names of conf/study, separated by commas
    profile=mini     small or paper
    output=outputs   the folder of the runs
    data=  models=   paths.data and paths.models of the runs, if they were given
    trainer.precision=bf16     the runs of moe-run study=... trainer.precision=bf16
    study.only.method=emoe     only such runs; dense,emoe: of both; also task, seed, ...
    config_dir=my_conf         with the option files of --config-dir

    Args:
        words: key=value.

    Raises:
        ConfigError: for an unknown key or value.
    """
    given = read_words("status", words, study="all", profile="mini", output="outputs", **PLAN_KEYS)
    plans, store = plans_of(given)
    labels = {job.run.id: job.run.label for plan in plans for job in plan.jobs}
    states: dict[str, str] = {}
    damaged: dict[str, str] = {}
    for run_id in labels:
        try:
            states[run_id] = store.status(run_id).state
            store.result(run_id)
        except (StoreError, OSError) as error:
            states[run_id], damaged[run_id] = DAMAGED, one_line(error)
    columns = (*STATES, *([DAMAGED] if damaged else []))
    table = Table()
    for name in ("study", *columns):
        table.add_column(name, justify="left" if name == "study" else "right")
    for plan in plans:
        counts = Counter(states[job.run.id] for job in plan.jobs)
        table.add_row(plan.study.name, *(str(counts[state] or "") for state in columns))
    table.add_section()
    counts = Counter(states.values())
    table.add_row("distinct runs", *(str(counts[state] or "") for state in columns))
    Output(markup=False).print(table)
    for run_id, state in states.items():
        if state == "running":
            found = store.status(run_id)
            place = f"pid {found.pid} on {found.host}, since {found.started}"
            print(f"running: {labels[run_id]} ({run_id}), {place}")
        elif state == "failed":
            print(f"failed: {labels[run_id]} ({run_id}): {last_line(store, run_id)}")
        elif state == DAMAGED:
            print(f"damaged: {labels[run_id]} ({run_id}): {damaged[run_id]}")


def clean(words: Sequence[str]) -> None:
    """Remove the checkpoints of finished runs and what killed writes left, but no kept weights.

    output=outputs   the folder of the runs
    dry_run=false    true: only say what would be removed
    yes=false        true: do not ask (without a terminal nobody is asked)

    What lies behind a link is never touched.

    Args:
        words: key=value.

    Raises:
        ConfigError: for an unknown key or value.
    """
    given = read_words("clean", words, output="outputs", dry_run="false", yes="false")
    dry_run, yes = (read_boolean(f"{key}={given[key]}") for key in ("dry_run", "yes"))
    store = Store(Path(given["output"]))
    found: dict[str, tuple[list[Path], int]] = {}
    for run_id in store.ids():
        try:
            left = store.left_over(run_id)
        except (StoreError, OSError) as error:
            print(f"left alone: {one_line(error)}")
            continue
        if left:
            found[run_id] = left, sum(map(size_of, left))
            shown = ", ".join(path.name for path in left[:3])
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            print(f"{run_id}  {found[run_id][1] / 2**20:9.1f} MiB  {shown}{more}")
    total = f"{sum(size for _, size in found.values()) / 2**20:.1f} MiB of {len(found)} runs"
    if dry_run or not found:
        print(f"{total} would be removed" if dry_run else f"{total} removed")
        return
    if not yes and sys.stdin.isatty() and input(f"remove {total}? [y/N] ").lower() != "y":
        print("nothing removed")
        return
    freed = 0
    for run_id, (left, size) in found.items():
        try:
            store.remove_left_over(run_id, left)
        except (StoreError, OSError) as error:
            print(f"left alone: {run_id}: {one_line(error)}")
        else:
            freed += size
    print(f"{freed / 2**20:.1f} MiB removed")


def read_boolean(word: str) -> bool:
    """Read key=value as Hydra reads a boolean.

    Raises:
        ConfigError: for another value.
    """
    value = word.partition("=")[2]
    if value.lower() in ("true", "yes", "on", "y", "1"):
        return True
    if value.lower() in ("false", "no", "off", "n", "0"):
        return False
    raise ConfigError(f"{word} is not valid; use true or false")


def size_of(path: Path) -> int:
    """Count the bytes of a file, or of all files in a folder; a link counts nothing."""
    total = 0
    files = (Path(at) / name for at, _, names in os.walk(path) for name in names)
    for file in files if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(FileNotFoundError):  # another process has removed it
            total += 0 if file.is_symlink() else file.stat().st_size
    return total


def read_words(command: str, words: Sequence[str], **defaults: str) -> dict[str, str]:
    """Read key=value words.

    Args:
        command: for messages.
        words: of the command line.
        **defaults: the keys that there are.

    Raises:
        ConfigError: with every problem, one line each.
    """
    given, problems = dict(defaults), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in defaults:
            problems.append(not_an_option(word, f" of moe-report {command}", key, list(defaults)))
        else:
            given[key] = value
    if "output" in given and not problems:
        output = Path(given["output"])
        line = no_place("output", given["output"]) or (
            f"output={output}: {reason}" if (reason := blocked(output)) else None
        )
        problems += [line] if line else []
    if problems:
        raise ConfigError(*problems)
    return given


def plans_of(given: Mapping[str, str]) -> tuple[list[StudyPlan], Store]:
    """Plan the studies that a command names."""
    folders, profile, common = planning_of(given)
    studies = read_studies(folders, given["study"].split(","), profile)
    plans = [plan_study(folders, study, profile, common) for study in studies]
    check_pairings(plans)
    check_cells(plans)
    if for_all := for_all_of(given):
        plans = [noted(plan, " ".join(as_overrides(for_all))) for plan in plans]
    return restrict(plans, only_of(given)), Store(Path(given["output"]))


def planning_of(given: Mapping[str, str]) -> tuple[Folders, Profile, dict[str, Any]]:
    """Read what studies are planned with: option files, profile, paths, values for every run.

    Raises:
        ConfigError: if there is no such profile, or no such value.
    """
    profile = next((name for name in PROFILES if name == given["profile"]), None)
    if profile is None:
        raise ConfigError(
            not_an_option(f"profile={given['profile']}", "", given["profile"], PROFILES)
        )
    output = given["output"]
    common = {
        "paths.output": output, "paths.cache": f"{output}/cache",
        "paths.data": given["data"] or None, "paths.models": given["models"] or None,
        **for_all_of(given),
    }  # fmt: skip
    return option_folders(given["config_dir"] or None), profile, common


def for_all_of(given: Mapping[str, str]) -> dict[str, str]:
    """Read what was given for every run in place of the study's.

    Raises:
        ConfigError: for a value that there is not.
    """
    found = {key: given[key] for key in FOR_ALL if given[key]}
    for key, value in found.items():
        if value not in PRECISIONS:
            raise ConfigError(not_an_option(f"{key}={value}", "", value, PRECISIONS))
    return found


def only_of(given: Mapping[str, str]) -> dict[str, list[str]]:
    """Read what studies are restricted to: allowed values by axis."""
    values = {axis: given.get(f"study.only.{axis}", "") for axis in ONLY}
    return {axis: value.strip("[]").split(",") for axis, value in values.items() if value}


def report_folder(
    output: Path, profile: str, only: Mapping[str, Any], for_all: Mapping[str, Any] | None = None
) -> Path:
    """Choose where studies are rendered: what is not all of them, as published, has its own folder.

    Args:
        output: the folder of the runs.
        profile: of the studies.
        only: what they are restricted to.
        for_all: values for every run that were given in place of the study's.
    """
    words = [profile, *(["part"] if only else []), *map(str, (for_all or {}).values())]
    return output / "reports" / "-".join(words)


def last_line(store: Store, run_id: str) -> str:
    """Give the last line of a run's error.txt: the error itself."""
    file = store.folder(run_id) / "error.txt"
    try:
        lines = file.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines()
    except OSError as error:  # none, a folder, no permission
        return "no error.txt" if isinstance(error, FileNotFoundError) else one_line(error)
    return lines[-1] if lines else f"{file} is empty"
