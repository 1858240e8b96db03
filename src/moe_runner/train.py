"""The entrypoint: arguments -> settings -> plan -> runs -> table. Read this first.

`moe-run` and `python -m moe_runner.train` are the same. Nothing here imports torch until a run has
to be carried out.

Under torchrun or accelerate launch every process goes through the same plan; the leader claims the
runs, writes and prints, and the others follow it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from moe_runner.cli.arguments import as_meant, check_arguments, for_hydra
from moe_runner.cli.completion import completed
from moe_runner.cli.ending import Command
from moe_runner.cli.help import chosen_files, register_help, versions
from moe_runner.cli.launching import (
    JobLost,
    check_direction,
    check_launch,
    direction,
    is_left_alone,
    one_of_many_jobs,
)
from moe_runner.cli.sweeping import tally_of
from moe_runner.cli.values import parse_config
from moe_runner.console import (
    READER_GONE,
    reader_is_gone,
    spell_plainly,
    until_the_reader_leaves,
)
from moe_runner.files import masked, one_line
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.options.settings import Settings
from moe_runner.report.summary import print_table
from moe_runner.runs import processes, stopping
from moe_runner.runs.result import Result
from moe_runner.runs.run import stored_run
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.plan import Plan, make_plan, show_plan
from moe_runner.training.execute import attempt, find_resources

log = logging.getLogger("moe_runner.train")  # also when run as __main__


def main() -> None:
    """Carry out the command, until the reader of its output, such as head, has enough."""
    spell_plainly()
    with until_the_reader_leaves():
        carry_out_command()


def carry_out_command() -> None:
    """Check the arguments, let Hydra run the jobs, tell what became of them, exit."""
    if "--version" in sys.argv[1:]:
        say(versions())
        return
    sys.argv[1:] = as_meant(sys.argv[1:])
    problems = check_arguments(sys.argv[1:])
    if problems:
        say("\n".join(problems), file=sys.stderr)
        sys.exit(2)
    if text := chosen_files(sys.argv[1:]):
        say(text)
        return
    if (text := completed(sys.argv[1:])) is not None:
        say(text)
        return
    sys.argv[1:] = for_hydra(sys.argv[1:])
    register_help()
    command = Command()

    def job(cfg: DictConfig) -> float:
        return run_job(cfg, command)

    wants_frames = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints frames, and nothing gets here
    try:
        with stopping.listening():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
            processes.disconnect()
            code = command.end()
            stopping.raise_if_asked()  # of a search in other processes
    except (KeyboardInterrupt, stopping.Stopped) as stop:
        word = str(stop) or "interrupted"
        say(f"{word}; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(stop.code if isinstance(stop, stopping.Stopped) else 130)
    except JobLost as error:
        say(error, file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # around the jobs: in Hydra, its folders, a launcher
        if wants_frames or (isinstance(error, BrokenPipeError) and reader_is_gone()):
            raise
        say(around_jobs(error), file=sys.stderr)
        sys.exit(2)
    sys.exit(code)


def around_jobs(error: Exception) -> str:
    """Word an error that came before or between the jobs."""
    if isinstance(error, OSError | HydraException | ConfigError):
        return one_line(error)
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    shown = ": ".join(f"{type(each).__name__}: {each}" for each in causes)
    return f"{shown} (HYDRA_FULL_ERROR=1 shows where)"


def say(*words: object, **kwargs: Any) -> None:
    """Print, if this process is the leader; secrets are left out."""
    if processes.is_leader():
        print(*map(masked, map(str, words)), **kwargs)


def run_job(cfg: DictConfig, command: Command) -> float:
    """Carry out one composed config: a suite, a search, or one run.

    Args:
        cfg: Hydra's config.
        command: what is to be told at its end is noted here.

    Returns:
        The mean primary metric of the runs, for a sweeper that optimises it; NaN if one failed.
    """
    set_log_levels(quiet=bool(cfg.get("quiet")))
    stopping.work_for_launcher()
    try:
        with stopping.at_once():
            return run_config(cfg, command)
    except stopping.Stopped:
        if not stopping.is_worker():
            raise
        return math.nan  # the launcher hands no further job to this process, or they end here, too


def run_config(cfg: DictConfig, command: Command) -> float:
    """Carry out one composed config, and tell what the user did wrong in it; see `run_job`."""
    try:
        settings = parse_config(cfg)
        check_launch(settings)
        if settings.evaluate is not None:
            return evaluate_stored(settings)
        plan = make_plan(settings)
        check_direction(plan)
        if settings.dry_run:
            if processes.is_leader():
                show_plan(plan, Store(Path(settings.paths.output)), settings.device)
            if direction() is not None:
                say("the trials after the first depend on its score; nothing is run")
                sys.exit(0)
            return math.nan
        processes.connect(settings.device)
        return run_plan(plan, settings, command)
    except (ConfigError, StoreError, OSError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            sys.exit(READER_GONE)
        if cfg.get("debug"):
            traceback.print_exc()
        command.mistakes += 1
        say(one_line(error), file=sys.stderr)
        if direction() is not None:
            sys.exit(2)  # a search cannot do without its trials
        return math.nan


def run_plan(plan: Plan, settings: Settings, command: Command) -> float:
    """Carry out the runs of a plan one after the other."""
    store = Store(Path(settings.paths.output))
    results = []
    tally = tally_of(plan, settings)
    for run in plan.runs:
        for line in tally.begin(run).splitlines():
            log.info("%s", line)
        results.append(found := attempt(run, settings, store, command.reasons))
        tally.end(found.wall_seconds if isinstance(found, Result) else None)
    if is_left_alone():
        Command([(plan, store)], command.reasons, quiet=settings.quiet).end()
    else:
        command.plans.append((plan, store))
        command.together, command.quiet = one_of_many_jobs(), settings.quiet
    scores = [result.primary for result in results if result is not None]
    return math.fsum(scores) / len(scores) if len(scores) == len(results) else math.nan


def set_log_levels(*, quiet: bool) -> None:
    """Write errors only where that was asked for, and in the processes that follow the leader."""
    if quiet:
        for handler in logging.getLogger().handlers:  # the run's own run.log is on our logger
            handler.setLevel(logging.ERROR)
    if not processes.is_leader():
        logging.getLogger("moe_runner").setLevel(logging.ERROR)


def evaluate_stored(settings: Settings) -> float:
    """Evaluate a finished run that was kept on the OOD sets of `task.ood`; train nothing."""
    assert settings.evaluate is not None
    store = Store(Path(settings.paths.output))
    run_id = store.find(settings.evaluate)
    stored = stored_run(store.folder(run_id), f"evaluate={run_id}")
    from moe_runner.training.evaluate import evaluate_kept  # torch: seconds

    found = evaluate_kept(stored, settings, store, find_resources(settings))
    result = store.result(run_id)
    assert result is not None
    print_table([replace(result, ood_metrics=found)], {}, f"{run_id} evaluated again")
    print(f"results: {store.folder(run_id)}/ood.json")
    return result.primary


if __name__ == "__main__":
    main()
