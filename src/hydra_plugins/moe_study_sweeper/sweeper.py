"""The sweeper `moe_study`: a study becomes jobs for whatever launcher is configured.

Without a study it is Hydra's basic sweeper.
"""

# No postponed annotations: Hydra imports plugins in a way in which a dataclass cannot resolve them.
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf


@dataclass
class MoEStudySweeperConf:
    """Hydra's configuration of the sweeper."""

    _target_: str = "hydra_plugins.moe_study_sweeper.sweeper.MoEStudySweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="moe_study", node=MoEStudySweeperConf, provider="moe_runner"
)


class MoEStudySweeper(BasicSweeper):
    """Plan a study, hand the runs that are not done to the launcher, print its tables."""

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out a study, or an ordinary sweep.

        Args:
            arguments: overrides of the command line.

        Raises:
            SystemExit: after a study, and a sweep in other processes, with the exit code.
        """
        assert self.config is not None
        study = OmegaConf.select(self.config, "hydra.runtime.choices.study")
        assert self.launcher is not None
        # joblib renews a worker that has grown, between two jobs; one that dies is an error
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        if study is None:
            from moe_runner.cli.handover import Handover
            from moe_runner.cli.launching import Cleaned, runs_here, writes_logs

            self.launcher = Cleaned(self.launcher, Path(self.config.hydra.sweep.dir))
            if runs_here(self.config.hydra):
                return super().sweep(arguments)
            logs = writes_logs(self.config.hydra)
            self.launcher = handover = Handover(self.launcher, self.compose, logs=logs)
            super().sweep(arguments)
            raise SystemExit(handover.command.end())
        from moe_runner.cli.launching import folders_of
        from moe_runner.cli.studies import carry_out_study

        folders, launch = folders_of(self.config.hydra), self.launcher.launch
        raise SystemExit(carry_out_study(folders, study, self.config, launch, arguments))

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> Any:
        """List the jobs of a sweep in batches; each has the options of its method and suite."""
        from moe_runner.cli.fitting import fitted
        from moe_runner.cli.launching import folders_of, runs_here
        from moe_runner.cli.sweeping import announce
        from moe_runner.options.files import OptionFiles

        assert self.config is not None
        batches = super().split_arguments(overrides, None)
        files = OptionFiles.find(folders_of(self.config.hydra))
        jobs, lines = fitted([job for batch in batches for job in batch], files)
        for line in lines:
            print(line, file=sys.stderr)
        if runs_here(self.config.hydra):
            announce(jobs, folders_of(self.config.hydra))
        size = max_batch_size or len(jobs)
        return [jobs[start : start + size] for start in range(0, len(jobs), size)]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the config of a job of a sweep."""
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
