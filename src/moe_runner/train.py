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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from moe_runner import tasks
from moe_runner.arguments import add_only, check_arguments, complete_search, parse_config
from moe_runner.handover import runs_here
from moe_runner.metrics import lower_is_better, named
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.options.settings import Settings
from moe_runner.report.summary import headline, print_results, print_table
from moe_runner.runs import processes
from moe_runner.runs.environment import environment
from moe_runner.runs.log import logged_to
from moe_runner.runs.result import PrimaryOnly, Result
from moe_runner.runs.run import Run, read_run
from moe_runner.runs.store import RunBusy, RunDone, RunFolder, Store, StoreError
from moe_runner.sweeps.plan import Plan, make_plan, show_plan, stored_baselines

log = logging.getLogger("moe_runner.train")  # also when run as __main__

GO, SKIP = "go", "skip"  # what the leader of several processes tells of a run


@dataclass
class Session:
    """What the jobs of one command did, for the last table and the exit code."""

    results: list[Result] = field(default_factory=list)
    gaps: dict[str, str] = field(default_factory=dict)
    jobs: int = 0
    failed: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    where: str = ""  # the results lie
    table_at_end: bool = False

    def exit_code(self) -> int:
        """2 for a mistake of the user, 1 for a failed run, else 0."""
        return 2 if self.mistakes else 1 if self.failed else 0


def main() -> None:
    """Check the arguments, let Hydra run the jobs, print what is left to say, exit."""
    problems = check_arguments(sys.argv[1:], CONF)
    if problems:
        say("\n".join(problems), file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = add_only(complete_search(sys.argv[1:]))
    session = Session()

    def job(cfg: DictConfig) -> float:
        session.jobs += 1
        return run_job(cfg, session)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    processes.disconnect()
    if session.table_at_end and processes.is_leader():
        print_results(session.results, session.gaps)
        print(session.where)
    for line in session.failed:
        say(f"failed: {line}", file=sys.stderr)
    sys.exit(session.exit_code())


def say(*words: str, **kwargs: Any) -> None:
    """Print, if this process is the leader."""
    if processes.is_leader():
        print(*words, **kwargs)


def run_job(cfg: DictConfig, session: Session) -> float:
    """Carry out one composed config: a suite, a search, or one run.

    Args:
        cfg: Hydra's config.
        session: what happens is noted here.

    Returns:
        The mean primary metric of the runs, for a sweeper that optimises it; NaN if one failed.
    """
    debug = bool(cfg.get("debug"))
    if cfg.get("quiet"):
        for handler in logging.getLogger().handlers:  # the run's own run.log is on our logger
            handler.setLevel(logging.ERROR)
    if not processes.is_leader():
        logging.getLogger("moe_runner").setLevel(logging.ERROR)
    try:
        settings = parse_config(cfg)
        check_launch(settings)
        if settings.evaluate is not None:
            return evaluate_stored(settings)
        plan = make_plan(settings)
        check_direction(plan)
        if settings.dry_run:
            if processes.is_leader():
                show_plan(plan, Store(Path(settings.paths.output)))
            if direction() is not None:
                say("the trials after the first depend on its score; nothing is run")
                sys.exit(0)
            return math.nan
        processes.connect(settings.device)
        return run_plan(plan, settings, session)
    except (ConfigError, StoreError) as error:
        if debug:
            traceback.print_exc()
        session.mistakes += str(error).splitlines()
        say(str(error), file=sys.stderr)
        if direction() is not None:
            sys.exit(2)  # a search cannot do without its trials
        return math.nan


def check_launch(settings: Settings) -> None:
    """Check that a study is with its sweeper, and several processes with what they can do.

    Raises:
        ConfigError: if not.
    """
    if HydraConfig.initialized() and (study := HydraConfig.get().runtime.choices.get("study")):
        raise ConfigError(
            f"study={study} is a sweep of its own; leave out hydra/sweeper and hydra.mode"
        )
    if processes.world_size() == 1:
        return
    several = f"WORLD_SIZE={processes.world_size()}"
    if settings.evaluate is not None:
        raise ConfigError(f"evaluate=<id> is for one process, not {several}; start it alone")
    if HydraConfig.initialized() and not runs_here(HydraConfig.get()):
        raise ConfigError(
            f"{several} and a launcher exclude each other; use hydra/launcher=basic with torchrun"
        )


def direction() -> str | None:
    """Tell what the sweeper does to the figure that a job returns; None: it does not look at it."""
    node = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
    found = node.get("direction")  # an enum, or a list of several
    return None if found is None else str(getattr(found, "name", found))


def check_direction(plan: Plan) -> None:
    """Check that a sweeper that optimises looks for what is better.

    Raises:
        ConfigError: if it does not.
    """
    chosen = direction()
    for run in plan.runs if chosen is not None else ():
        metrics = tasks.spec(run.task.suite, run.task_name).metrics
        better = "minimize" if lower_is_better(metrics) else "maximize"
        if chosen != better:
            raise ConfigError(
                f"hydra.sweeper.direction={chosen} does not suit {run.task.suite}/{run.task_name}, "
                f"scored by {named(metrics)}; use hydra.sweeper.direction={better}"
            )


def run_plan(plan: Plan, settings: Settings, session: Session) -> float:
    """Carry out the runs of a plan one after the other and print their table."""
    store = Store(Path(settings.paths.output))
    primaries: list[float] = []
    results: list[Result] = []
    for number, run in enumerate(plan.runs, start=1):
        log.info("[%d/%d] %s  (%s)", number, len(plan.runs), run.label, run.id)
        result = attempt(run, settings, store, session)
        if result is not None:
            primaries.append(result.primary)
        if isinstance(result, Result):  # else the leader has it
            results.append(result)
    session.results += results
    session.gaps |= plan.gaps
    session.where = f"results: {store.root}/<id>/result.json"
    session.table_at_end = one_of_many_jobs()
    if not session.table_at_end and not settings.quiet and processes.is_leader():
        baselines, hint = stored_baselines(plan, store)
        print_results([*baselines, *results], plan.gaps)
        print("\n".join(line for line in (hint, session.where) if line))
    complete = len(primaries) == len(plan.runs)
    return math.fsum(primaries) / len(primaries) if complete else math.nan


def one_of_many_jobs() -> bool:
    """Tell whether one table for all jobs comes at the end: from this process, or from `Handover`.

    Other sweepers, such as Optuna's, with a launcher of other processes leave it to each job.
    """
    if not HydraConfig.initialized():
        return False
    node = HydraConfig.get()
    ours = str(node.sweeper.get("_target_", "")).endswith("MoEStudySweeper")
    numbered = not OmegaConf.is_missing(node.job, "num")  # of a sweep
    return numbered and (ours or runs_here(node))


def attempt(
    run: Run, settings: Settings, store: Store, session: Session
) -> Result | PrimaryOnly | None:
    """Carry out one run; an error in it is noted and does not stop the others.

    Of several processes one alone cannot go on: the error ends this one, and torchrun the others.
    """
    try:
        return execute(run, settings, store)
    except RunBusy as error:
        reason = str(error)
    except ConfigError:
        raise
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        where = store.folder(run.id) / "error.txt"
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if where.exists():
            reason = f"{reason} (see {where})"
    log.error("  failed: %s", reason)
    session.failed.append(f"{run.label}: {reason}")
    if processes.world_size() > 1:
        print(f"failed: {session.failed[-1]}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the others may be waiting for this one in a collective operation
    return None


def execute(run: Run, settings: Settings, store: Store) -> Result | PrimaryOnly:
    """Carry out one run, or return its result if it is done.

    Of several processes the leader decides and tells the others, once per run.
    """
    if not processes.is_leader():
        return follow(run, settings, store)
    if settings.rerun:
        store.forget(run.id)
    result = store.result(run.id)
    if result is not None:
        processes.tell(SKIP)
        log.info("  done before: %s", headline(result))
        if settings.keep_model == "best" and not RunFolder(store.folder(run.id)).best.is_dir():
            log.warning("  its weights were not kept; add rerun=true to train and keep them")
        exported = RunFolder(store.folder(run.id)).export
        if settings.export != "none":
            if exported.is_dir():
                log.info("  exported before: %s", exported)
            else:
                log.warning("  it was not exported; add rerun=true to train and export it")
        return result
    import torch  # seconds

    from moe_runner.training.fit import carry_out

    resources = find_resources(settings)
    software = environment(settings.threads or torch.get_num_threads())
    try:
        with (
            store.claim(run.id, config_yaml=run.to_yaml(), environment=software) as folder,
            logged_to(folder.path / "run.log"),
        ):
            processes.tell(GO)
            found = carry_out(run, folder, resources)
            assert isinstance(found, Result)  # of the leader
            result = folder.finish(found)
            folder.discard_checkpoint(keep_best=settings.keep_model == "best")
            log.info("  %s", headline(result))
    except RunDone:  # by another command, since we looked
        processes.tell(SKIP)
        result = store.result(run.id)
        assert result is not None
    return result


def follow(run: Run, settings: Settings, store: Store) -> Result | PrimaryOnly:
    """Carry out one run beside the leader, if it says so; write nothing."""
    if processes.tell() == SKIP:
        return PrimaryOnly(math.nan)
    from moe_runner.training.fit import carry_out

    return carry_out(run, RunFolder(store.folder(run.id)), find_resources(settings))


def find_resources(settings: Settings) -> Any:
    """Choose device, threads and caches; imports torch."""
    from moe_runner.training.device import choose_device
    from moe_runner.training.fit import Resources

    return Resources(
        device=choose_device(settings.device),
        threads=settings.threads,
        cluster_cache=Path(settings.paths.cache) / "clusters",
        logger=settings.logger,
        keep_model=settings.keep_model == "best",
        export=settings.export,
        quiet=settings.quiet,
        data_cache=Path(settings.paths.cache),
    )


def evaluate_stored(settings: Settings) -> float:
    """Evaluate a finished run that was kept on the OOD sets of `task.ood`; train nothing."""
    assert settings.evaluate is not None
    store = Store(Path(settings.paths.output))
    run_id = store.find(settings.evaluate)
    stored = read_run(store.folder(run_id) / "config.yaml")
    from moe_runner.training.evaluate import evaluate_kept  # torch: seconds

    found = evaluate_kept(stored, settings, store, find_resources(settings))
    result = store.result(run_id)
    assert result is not None
    print_table([replace(result, ood_metrics=found)], {}, f"{run_id} evaluated again")
    print(f"results: {store.folder(run_id)}/ood.json")
    return float(result.primary)


if __name__ == "__main__":
    main()
