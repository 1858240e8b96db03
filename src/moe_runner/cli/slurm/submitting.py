"""Submitting an array of jobs: what is asked of Slurm is checked and told."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_runner.cli.slurm.commands import tell
from moe_runner.options.errors import ConfigError

COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
OURS = ("submitit_folder", "max_num_timeout")  # options that are not sbatch's
NAMES = {  # of options, where the executor has sbatch's
    "name": "job_name",
    "timeout_min": "time",
    "mem_gb": "mem",
    "tasks_per_node": "ntasks_per_node",
}
SIZES = ("nodes", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Args:
        id: `12_3`, of a single job `12`.
        overrides: what it carries out.
        answer: the file that holds what it returned, once it has ended.
        log: what it prints.
    """

    id: str
    overrides: Sequence[str]
    answer: Path
    log: Path

    @property
    def array(self) -> str:
        """Return the id of its array."""
        return self.id.partition("_")[0]


def submit(
    function: Callable[..., Any],
    arguments: Sequence[Sequence[Any]],
    options: Mapping[str, Any],
) -> list[Job]:
    """Submit a job for each set of arguments, all in one array.

    Args:
        function: is pickled, and called on the nodes.
        arguments: of each job; its overrides are the first.
        options: of conf/hydra/launcher/slurm.yaml.

    Returns:
        The jobs, in the order of the arguments.

    Raises:
        ConfigError: if an option does not suit, Slurm is not there, or refuses.
    """
    if problems := check(options):
        raise ConfigError(*problems)
    import submitit  # an extra

    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns of sacct, which we do not need
    executor = submitit.SlurmExecutor(folder=options["submitit_folder"])
    wanted = {
        NAMES.get(key, key): value
        for key, value in options.items()
        if key not in OURS and value is not None
    }
    if "mem" in wanted:
        wanted["mem"] = f"{round(1024 * wanted['mem'])}MB"
    extra = {"requeue": True, "signal": f"USR2@{wanted['signal_delay_s']}"}
    wanted["additional_parameters"] = extra | wanted.get("additional_parameters", {})
    if cpus := options["cpus_per_task"]:
        wanted["srun_args"] = [f"--cpus-per-task={cpus}"]  # srun has not taken it over since 22.05
    try:
        executor.update_parameters(**wanted)
        found = executor.map_array(function, *zip(*arguments, strict=True))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"Slurm refuses the jobs: {lines[-1] if lines else error}; asked for {sizes(options)}"
        ) from None
    stream = "stdout" if options["stderr_to_stdout"] else "stderr"
    jobs = [
        Job(job.job_id, each[0], job.paths.result_pickle, getattr(job.paths, stream))
        for job, each in zip(found, arguments, strict=True)
    ]
    announce(jobs, options)
    return jobs


def check(options: Mapping[str, Any]) -> list[str]:
    """Find what cannot work in the options of the launcher, one line per problem."""
    problems = []
    for key in ("nodes", "tasks_per_node"):
        if options[key] != 1:
            problems.append(
                f"hydra.launcher.{key}={options[key]} is not valid; a job is one process: use 1"
            )
    limit, delay = options["timeout_min"], options["signal_delay_s"]
    if not 0 < delay < 60 * limit:
        problems.append(
            f"hydra.launcher.signal_delay_s={delay} does not fit timeout_min={limit}: the signal "
            f"to save comes so many seconds before the limit; use 1 to {60 * limit - 1}"
        )
    if (restarts := options["max_num_timeout"]) < 0:
        problems.append(f"hydra.launcher.max_num_timeout={restarts} is not valid; use 0 or more")
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        problems.append(
            f"hydra/launcher=slurm needs Slurm's commands, and {', '.join(missing)} is not on this "
            "machine; start it on a login node, or use hydra/launcher=joblib"
        )
    return problems


def sizes(options: Mapping[str, Any]) -> str:
    """Write what a job asks for, by option."""
    return " ".join(f"hydra.launcher.{key}={options[key]}" for key in SIZES if options[key])


def announce(jobs: Sequence[Job], options: Mapping[str, Any]) -> None:
    """Say what was submitted, where its logs are, and how to look and to end it."""
    array, number = jobs[0].array, len(jobs)
    partition = options["partition"] or "the default partition"
    most = min(number, options["array_parallelism"])
    tell(
        f"array {array}: {number} job{'s' * (number > 1)} in {partition}, at most {most} at once, "
        f"each with {sizes(options)}"
    )
    folder = Path(os.path.relpath(jobs[0].log.parent.parent))
    log = jobs[0].log.relative_to(jobs[0].log.parent.parent)
    name = str(log).replace(jobs[0].id, f"{array}_<number>" if number > 1 else array)
    tell(f"logs: {folder / name}; squeue -j {array} shows the jobs, scancel {array} ends them")
