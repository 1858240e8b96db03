"""Callbacks of the Trainer: the progress a person sees, the metrics file, extra checkpoints."""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_runner import metrics as metrics_of
from moe_runner.runs import processes, stopping

log = logging.getLogger(__name__)

LINES_PER_RUN = 10  # off a terminal: a line of progress every tenth of a run
AGREE_EVERY = 10  # updates between two looks of several processes for a signal to end


class ShowProgress(TrainerCallback):
    """A live bar with loss, best metric and the time left; off a terminal a line now and then."""

    def __init__(self, label: str, metric_names: tuple[str, ...], quiet: bool = False) -> None:
        self.quiet = quiet
        self.label, self.metric_names = label, metric_names
        self.loss = "loss -"
        self.best = ""
        self.bar: Progress | None = None
        self.started, self.first_step = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar at the step that training goes on from."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.quiet or not state.is_world_process_zero or not sys.stderr.isatty():
            return
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]} {task.fields[best]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(
            self.label, total=state.max_steps, completed=state.global_step, loss="", best=""
        )
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move on by one update."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, loss=self.loss, best=self.best)
        elif state.is_world_process_zero and state.global_step % self.interval(state) == 0:
            done = state.global_step - self.first_step
            rate = (time.monotonic() - self.started) / max(done, 1)
            left = rate * (state.max_steps - state.global_step)
            log.info(
                "  %d/%d  %s %s  %.0f s left",
                state.global_step,
                state.max_steps,
                self.loss,
                self.best,
                left,
            )

    def interval(self, state: TrainerState) -> int:
        """Count the updates between two lines."""
        return max(1, state.max_steps // LINES_PER_RUN)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the latest loss."""
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the best metric so far."""
        value = (metrics or {}).get("eval_primary")
        if value is not None:
            better = min if metrics_of.lower_is_better(self.metric_names) else max
            best = better(value, state.best_metric if state.best_metric is not None else value)
            name = metrics_of.named(self.metric_names, "+")
            self.best = f"{name} {metrics_of.shown(best, self.metric_names)}"

    def close(self) -> None:
        """Take the bar away, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class SaveAndStop(TrainerCallback):
    """Save a checkpoint and end, once this process was asked to; no update is left half done.

    Of several processes all end after the same update: they agree on it now and then.
    """

    def __init__(self, eval_steps: int | None) -> None:
        self.eval_steps = eval_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint; where one comes anyway, it is that one."""
        if state.global_step % self.interval() == 0 and self.is_asked():
            control.should_save |= not saves_anyway(state, self.eval_steps)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End, now that nothing is lost.

        Raises:
            Stopped: if this process was asked to end.
        """
        if self.is_asked():
            log.info("  asked to end: the checkpoint of update %d is saved", state.global_step)
            stopping.raise_if_asked()
            raise stopping.Stopped(signal.SIGTERM)  # another one of several was asked

    def interval(self) -> int:
        """Count the updates between two looks: an exchange between processes takes time."""
        return 1 if processes.world_size() == 1 else AGREE_EVERY

    def is_asked(self) -> bool:
        """Tell whether this process, or of several any, was asked to end."""
        asked = stopping.asked() is not None
        return (
            bool(processes.total(torch.tensor(int(asked)))) if processes.world_size() > 1 else asked
        )


def saves_anyway(state: TrainerState, eval_steps: int | None) -> bool:
    """Tell whether an evaluation follows this update, and after it a checkpoint.

    One before the evaluation would make a resumed run leave it out.
    """
    evaluated = state.epoch is None or float(state.epoch).is_integer()
    if eval_steps is not None:
        evaluated = state.global_step % eval_steps == 0
    return evaluated or state.global_step >= state.max_steps


class SaveEvery(TrainerCallback):
    """Save a checkpoint every so many updates, besides the one of every evaluation."""

    def __init__(self, steps: int, eval_steps: int | None) -> None:
        self.steps, self.eval_steps = steps, eval_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint, but not before an evaluation: its own comes after it."""
        if state.global_step % self.steps == 0 and not saves_anyway(state, self.eval_steps):
            control.should_save = True


class EvaluateAtEnd(TrainerCallback):
    """Evaluate and save after the last update too, where evaluations come every so many."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for both at the last update."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
