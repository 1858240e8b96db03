"""The launcher `moe_ray`: every job of a sweep is a task of a Ray cluster.

Ray itself is an extra, and is imported when there is something to launch.
"""

# No postponed annotations: Hydra imports plugins in a way in which a dataclass cannot resolve them.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class MoERayLauncherConf:
    """Hydra's configuration of the launcher; conf/hydra/launcher/ray_cluster.yaml explains it."""

    _target_: str = "hydra_plugins.moe_ray_launcher.launcher.MoERayLauncher"
    address: str = "auto"
    num_cpus: float = 8
    num_gpus: float = 1
    max_retries: int = 3


ConfigStore.instance().store(
    group="hydra/launcher", name="moe_ray", node=MoERayLauncherConf, provider="moe_runner"
)


class MoERayLauncher(Launcher):
    """Hand the jobs of a sweep to a Ray cluster, and wait for them.

    Args:
        address: auto, `host:port` of the head, or local for a cluster of this machine alone.
        num_cpus: of a run.
        num_gpus: of a run.
        max_retries: how often a run starts again whose node or process died.
    """

    def __init__(self, address: str, num_cpus: float, num_gpus: float, max_retries: int) -> None:
        super().__init__()
        self.options = (address, num_cpus, num_gpus, max_retries)
        self.parts: tuple[HydraContext, TaskFunction, DictConfig] | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra says of the sweep."""
        self.parts = (hydra_context, task_function, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Carry the jobs out on the cluster.

        Args:
            job_overrides: of each job.
            initial_job_idx: number of the first.

        Returns:
            What each job returned, in order; a `LostJob` for one that came to no end.

        Raises:
            ConfigError: if Ray or the cluster is missing, or an option has a wrong value.
        """
        from moe_runner.cli.ray_cluster import Cluster, Request
        from moe_runner.cli.ray_jobs import carry_out
        from moe_runner.runs import stopping

        assert self.parts is not None
        context, task, config = self.parts
        address, num_cpus, num_gpus, max_retries = self.options
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        request = Request(num_cpus, num_gpus, max_retries)
        jobs: dict[int, Any] = dict(enumerate(job_overrides, start=initial_job_idx))
        with stopping.at_once(), Cluster(address) as cluster:  # a signal is as Ctrl-C
            return carry_out(jobs, request, cluster, context, task, config)
