"""A copy of a run for a tracker, beside what transformers' own callback sends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from moe_runner.files import masked, share
from moe_runner.options.settings import Logger
from moe_runner.runs import processes
from moe_runner.runs.result import Scored
from moe_runner.runs.run import Run
from moe_runner.runs.store import RunFolder


class Tracker:
    """The tracker of a run; this one, of `logger=none`, is told everything and keeps nothing."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the routing figures of an evaluation.

        Args:
            step: updates done.
            figures: by name: "routing/entropy".
        """

    def trained(self, trainer: Trainer) -> None:
        """Take notice that what the trainer evaluates from here on is no part of training."""

    def finished(self, scores: Scored) -> None:
        """Take the scores of the best epoch.

        Args:
            scores: in and out of domain.
        """


class Wandb(Tracker):
    """The Weights & Biases run that is open."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures."""
        import wandb

        if figures:
            wandb.log({**figures, "train/global_step": step})

    def trained(self, trainer: Trainer) -> None:
        """Take transformers' callback away, which logs every set's metrics as `train/_accuracy`."""
        from transformers.integrations import WandbCallback

        trainer.remove_callback(WandbCallback)

    def finished(self, scores: Scored) -> None:
        """Log a table of sets and metrics, and each as `set/metric` in the summary."""
        import wandb

        rows = [
            (name, metric, float(value))
            for name, found in scores.items()
            for metric, value in (found.figures() if found is not None else {}).items()
        ]
        wandb.log({"results": wandb.Table(columns=["set", "metric", "value"], data=rows)})
        wandb.summary.update({f"{name}/{metric}": value for name, metric, value in rows})


@contextmanager
def tracker(run: Run, folder: RunFolder, options: Logger) -> Iterator[Tracker]:
    """Open and close the tracker of one run; with `logger=none` nothing leaves the run's folder.

    Args:
        run: its id is the tracker's, so that a resumed run goes on there.
        folder: of the run; the tracker's files are in it.
        options: which tracker, and how it groups runs.
    """
    if options.name == "none" or not processes.is_leader():
        yield Tracker()
        return
    # wandb reports on itself to its makers unless told before its import, offline too
    os.environ["WANDB_MODE"] = options.mode
    if options.mode == "offline":
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb  # slow to import, and only wanted here

    os.environ["WANDB_DATA_DIR"] = str(folder.path / "wandb")  # else tables are staged in the home
    settings: dict[str, Any] = {**run.axes(), **run.settings()}
    with masked_arguments():
        wandb.init(
            project=masked(options.project),
            group=None if options.group is None else masked(options.group),
            name=run.label,
            id=run.id,
            dir=folder.path,
            mode=options.mode,
            config=settings,
            resume="allow",
            # no git: it is that of the working folder, not this project's, with its addresses
            settings=wandb.Settings(silent=True, disable_git=True),
        )
    try:
        yield Wandb()
    finally:
        wandb.finish()
        share(folder.path / "wandb", "**/*")  # some are for their owner alone


@contextmanager
def masked_arguments() -> Iterator[None]:
    """Keep secrets out of the command line, which wandb takes down when it starts."""
    words = sys.argv
    sys.argv = [masked(word) for word in words]
    try:
        yield
    finally:
        sys.argv = words
