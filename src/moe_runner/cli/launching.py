"""Who runs the jobs of a command: what sweeper and launcher allow, and who tells the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from moe_runner import tasks
from moe_runner.files import masked, read_yaml, write_atomic
from moe_runner.metrics import lower_is_better, named
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import option_file
from moe_runner.options.folders import Folders, option_folders
from moe_runner.options.settings import Settings
from moe_runner.runs import processes
from moe_runner.sweeps.plan import Plan


class JobLost(Exception):
    """A job of a sweep came to no end, for a reason that its run does not know."""


class LostJob(JobReturn):
    """What a launcher returns for a job that came to no end; to ask for its value is an error.

    Args:
        overrides: of the job.
        reason: what became of it.
        job: its id on a cluster, as in `Status.job`, where its runs carry that.
    """

    def __init__(self, overrides: Sequence[str], reason: str, job: str | None = None) -> None:
        super().__init__(overrides=overrides, status=JobStatus.FAILED)
        self.reason, self.job = reason, job
        self.return_value = JobLost(f"failed: {' '.join(overrides)}: {reason}")


def check_launch(settings: Settings) -> None:
    """Check that a study is with its sweeper, and several processes with what they can do.

    Raises:
        ConfigError: if not.
    """
    if HydraConfig.initialized() and (study := HydraConfig.get().runtime.choices.get("study")):
        raise ConfigError(not_swept(study, HydraConfig.get()))
    if processes.world_size() == 1:
        return
    several = f"WORLD_SIZE={processes.world_size()}"
    if settings.evaluate is not None:
        raise ConfigError(f"evaluate=<id> is for one process, not {several}; start it alone")
    if HydraConfig.initialized() and not runs_here(HydraConfig.get()):
        raise ConfigError(
            f"{several} and a launcher exclude each other; use hydra/launcher=basic with torchrun"
        )


def not_swept(study: str, node: Any) -> str:
    """Say why a study came to a job of Hydra instead of its sweeper.

    Args:
        study: its name.
        node: Hydra's own config.
    """
    file = option_file(folders_of(node), "study", study)
    own = read_yaml(file).get("hydra")
    if isinstance(own, Mapping) and own.get("mode") == "MULTIRUN":
        return f"study={study} is a sweep of its own; leave out hydra/sweeper and hydra.mode"
    return f"{file} does not say that it is a sweep; add the line hydra: {{mode: MULTIRUN}}"


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
        metrics = tasks.spec(run.task, run.task_name).metrics
        better = "minimize" if lower_is_better(metrics) else "maximize"
        if chosen != better:
            raise ConfigError(
                f"hydra.sweeper.direction={chosen} does not suit {run.task.suite}/{run.task_name}, "
                f"scored by {named(metrics)}; use hydra.sweeper.direction={better}"
            )


def runs_here(node: Any) -> bool:
    """Tell whether Hydra's launcher runs the jobs in this process.

    Args:
        node: Hydra's own config.
    """
    return str(node.launcher.get("_target_", "")).endswith("BasicLauncher")


def writes_logs(node: Any) -> bool:
    """Tell whether each job of Hydra's launcher has a log of its own, as on Slurm.

    Args:
        node: Hydra's own config.
    """
    launcher = str(node.launcher.get("_target_", "")).lower()
    return "slurm" in launcher or "submitit" in launcher


class Cleaned:
    """Stands before a launcher: takes secrets out of what Hydra has written about the sweep.

    Args:
        launcher: of Hydra.
        folder: of the sweep.
    """

    def __init__(self, launcher: Any, folder: Path) -> None:
        self.launcher, self.file = launcher, folder / "multirun.yaml"

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        """Launch the jobs."""
        if self.file.is_file():
            text = self.file.read_text(encoding="utf-8")
            if (clean := masked(text)) != text:
                write_atomic(self.file, clean)
        return self.launcher.launch(batch, initial_job_idx=initial_job_idx)


def one_of_many_jobs() -> bool:
    """Tell whether one table for all jobs comes at the end, here or from `Handover`."""
    if not in_a_sweep():
        return False
    node = HydraConfig.get()
    ours = str(node.sweeper.get("_target_", "")).endswith("MoEStudySweeper")
    return ours or runs_here(node)


def is_left_alone() -> bool:
    """Tell whether a job has to tell its end itself.

    Other sweepers, such as Optuna's, with a launcher of other processes leave it to each job.
    """
    return in_a_sweep() and not one_of_many_jobs()


def in_a_sweep() -> bool:
    """Tell whether the job that runs is one of a sweep: these are numbered."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def folders_of(node: Any) -> Folders:
    """List the folders of option files of a command that Hydra carries out.

    Args:
        node: Hydra's own config.
    """
    sources = [each.path for each in node.runtime.config_sources if each.provider == "command-line"]
    return option_folders(Path(sources[0]) if sources else None)
