"""A sweep whose jobs run one after the other: which of how many, how long yet.

Hydra hands a job nothing but its config, so what is known of the others is kept here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moe_runner.cli.launching import in_a_sweep, runs_here
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import Folders
from moe_runner.options.settings import Settings
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store, StoreError
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import Inventory, Plan, list_runs
from moe_runner.sweeps.tally import Tally

_announced: list[Tally] = []  # of the sweep that runs; at most one


def announce(jobs: Sequence[Sequence[str]], folders: Folders) -> None:
    """Count the runs of a sweep before its first job begins.

    With an interpolation that Hydra alone can resolve, nothing is counted: each job counts its own.

    Args:
        jobs: overrides of each.
        folders: of option files.
    """
    runs: dict[str, Run] = {}
    settled: set[str] = set()
    inventory: Inventory | None = None
    _announced.clear()
    for job in jobs:
        if (choices := resolved(as_choices(job))) is None:
            return
        try:
            settings = compose_settings(folders, choices)
            inventory = inventory or Inventory(Path(settings.paths.cache) / "hashes.json")
            found = {run.id: run for run in list_runs(settings, inventory).runs}
        except (ConfigError, OSError):  # the job tells it
            continue
        runs |= found
        settled |= done_of(found, settings)
    if runs:
        _announced[:] = [Tally(runs, settled)]


def tally_of(plan: Plan, settings: Settings) -> Tally:
    """Give the count of the sweep that runs, or make that of an only job."""
    if in_a_sweep() and searches(HydraConfig.get()):
        return tally_of_search(HydraConfig.get(), plan, settings)
    if _announced and all(run.id in _announced[0].runs for run in plan.runs):
        return _announced[0]
    runs = {run.id: run for run in plan.runs}
    return Tally(runs, done_of(runs, settings))


def tally_of_search(node: Any, plan: Plan, settings: Settings) -> Tally:
    """Give the count of a search, which chooses its trials one by one; see `tally_of`.

    Args:
        node: Hydra's own config, of a job.
        plan: of a trial.
        settings: of it.
    """
    runs = {run.id: run for run in plan.runs}
    settled = done_of(runs, settings)
    total = trials_of(node) * len(runs)
    before = node.job.num * len(runs)
    if not runs_here(node):
        return Tally(runs, settled, total, before, alone=False)
    if not before or not _announced:
        _announced[:] = [Tally({}, set(), total, before)]
    _announced[0].learn(runs, settled)
    return _announced[0]


def searches(node: Any) -> bool:
    """Tell whether a sweeper of Hydra's own config chooses a trial by the scores of others."""
    return "n_trials" in node.sweeper


def trials_of(node: Any) -> int:
    """Count the trials of a search; 0: of a grid, which may have fewer than it is allowed."""
    sampler = str((node.sweeper.get("sampler") or {}).get("_target_", ""))
    return 0 if sampler.endswith("GridSampler") else int(node.sweeper.n_trials)


def done_of(runs: Iterable[str], settings: Settings) -> set[str]:
    """Find the ids of those runs that are not carried out again."""
    if settings.rerun:
        return set()
    store = Store(Path(settings.paths.output))
    done = set()
    for run_id in runs:
        try:
            if store.result(run_id) is not None:
                done.add(run_id)
        except StoreError:  # carrying it out tells it
            continue
    return done


def resolved(choices: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Resolve the interpolations of choices.

    Returns:
        The choices; None if one needs more than the environment, such as the rest of the config.
    """
    parts = re.findall(r"\$\{(?:oc\.env:)?", str(choices))
    if not parts:
        return choices
    if "${" in parts:
        return None
    try:
        found = OmegaConf.to_container(OmegaConf.create(dict(choices)), resolve=True)
    except OmegaConfBaseException:  # a variable that is not there: the job tells it
        return None
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def as_choices(words: Iterable[str]) -> Mapping[str, Any]:
    """Read the overrides of a job: option or value by group or key."""
    parser = OverridesParser.create()
    overrides = [parser.parse_override(word) for word in words]
    return {each.key_or_group: each.value() for each in overrides}
