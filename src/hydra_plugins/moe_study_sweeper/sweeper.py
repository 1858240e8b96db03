"""The sweeper `moe_study`: a study becomes jobs for whatever launcher is configured.

Without a study it is Hydra's basic sweeper.
"""

# No postponed annotations: Hydra imports plugins in a way in which a dataclass cannot resolve them.
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf


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
            SystemExit: after a study, with the exit code.
        """
        assert self.config is not None
        study = OmegaConf.select(self.config, "hydra.runtime.choices.study")
        if study is None:
            return super().sweep(arguments)
        from moe_runner.studies import carry_out_study

        assert self.launcher is not None
        raise SystemExit(carry_out_study(study, self.config, self.launcher.launch, arguments))
