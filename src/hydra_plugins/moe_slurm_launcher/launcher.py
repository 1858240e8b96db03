"""The launcher behind hydra/launcher=slurm: an array of jobs, watched until the last one has ended.

The package hydra-submitit-launcher (extra `slurm`) writes the script for sbatch and carries a job's
function to its node. What it leaves open is done here and in `moe_runner.cli.slurm`: the user is
told what the jobs wait for and which of them are lost, and a job that is asked to end does so with
a checkpoint and is started again.
"""

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class MoESlurmLauncher(Launcher):
    """Submit the jobs of a sweep to Slurm as an array, and wait for them.

    Args:
        **options: of conf/hydra/launcher/slurm.yaml.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {
            key: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in options.items()
        }
        self.inner: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Remember what a job needs; see Hydra."""
        # not at the start: Hydra imports this module also where the extra is not installed
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

        self.inner = SlurmLauncher(**self.options)
        self.inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Submit jobs, and wait until all have ended.

        Args:
            job_overrides: of each job.
            initial_job_idx: number of the first.

        Returns:
            What the jobs returned; a `LostJob` for each that ended without an answer.

        Raises:
            ConfigError: if Slurm is not there, or refuses the jobs.
            Stopped: after a signal to this process; the jobs go on.
        """
        from moe_runner.cli.slurm.submitting import submit
        from moe_runner.cli.slurm.watching import watch

        state = Singleton.get_state()
        jobs = [
            (list(overrides), number, state)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        return watch(submit(self, jobs, self.options))

    def __call__(self, overrides: Sequence[str], number: int, state: dict[type, Any]) -> JobReturn:
        """Carry out one job, on its node.

        Args:
            overrides: of the job.
            number: of the job in the sweep.
            state: of Hydra's singletons where the job was submitted.

        Returns:
            Hydra's account of the job.

        Raises:
            Stopped: after a signal to end; the job is then started again, if that is due.
        """
        from moe_runner.cli.slurm.job import restart_if_due
        from moe_runner.runs import stopping

        stopping.work_for_launcher()  # instead of submitit, which ignores SIGTERM
        # the job's folder, id and config as its package makes them
        found = self.inner(overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", state)
        stopped = found.status is not JobStatus.COMPLETED or math.isnan(found.return_value)
        if stopped and stopping.asked() is not None:
            restart_if_due(self.options["max_num_timeout"])
            stopping.raise_if_asked()
        return found
