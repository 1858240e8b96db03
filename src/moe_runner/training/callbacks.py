"""Callbacks of the Trainer: the progress a person sees, the metrics file, extra checkpoints."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_runner import metrics as metrics_of
from moe_runner.console import duration, fitted_lines
from moe_runner.runs import processes, stopping

log = logging.getLogger(__name__)

LINES_PER_RUN = 10  # off a terminal: a line of progress every tenth of a run
EVALUATION_SECONDS = 30.0  # off a terminal: between two lines of a long evaluation
AGREE_EVERY = 10  # updates between two looks of several processes for a signal to end


class ShowProgress(TrainerCallback):
    """Updates, loss, best metric and the time left, and how far an evaluation is.

    On a terminal in a line that is written anew, or two where it is narrow; elsewhere a line now
    and then.
    """

    def __init__(self, label: str, metric_names: tuple[str, ...], quiet: bool = False) -> None:
        self.quiet = quiet
        self.label, self.metric_names = label, metric_names
        self.loss = self.best = ""
        self.live: Live | None = None
        self.training: list[str] = []  # what is shown of training; nothing outside of it
        self.started, self.first_step = 0.0, 0
        self.loader: Any = None  # of the evaluation that runs
        self.batches, self.evaluated_from, self.told = 0, 0.0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin at the step that training goes on from."""
        self.started, self.first_step = time.monotonic(), state.global_step
        self.show_training(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move on by one update."""
        self.show_training(state)
        if self.live is None and state.is_world_process_zero and self.is_due(state):
            log.info("  %s", "  ".join(self.training))

    def is_due(self, state: TrainerState) -> bool:
        """Tell whether an update gets a line where there is no terminal."""
        return state.global_step % max(1, state.max_steps // LINES_PER_RUN) == 0

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

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Move on by one batch of an evaluation, during training or after it."""
        now = time.monotonic()
        if eval_dataloader is not self.loader:
            self.loader, self.batches, self.evaluated_from, self.told = eval_dataloader, 0, now, now
        self.batches += 1
        if not state.is_world_process_zero:
            return
        every = len(eval_dataloader)
        parts = [f"evaluating {self.batches}/{every}"]
        if self.batches > 1:  # the first has started the clock
            rate = (now - self.evaluated_from) / (self.batches - 1)
            parts.append(f"{duration(rate * (every - self.batches))} left")
        self.show([*self.training[:1], *parts])
        if self.live is None and not self.quiet and now - self.told >= EVALUATION_SECONDS:
            self.told = now
            log.info("  %s", "  ".join(parts))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the best metric so far."""
        self.loader = None
        value = (metrics or {}).get("eval_primary")
        if value is not None:
            better = min if metrics_of.lower_is_better(self.metric_names) else max
            best = better(value, state.best_metric if state.best_metric is not None else value)
            name = metrics_of.named(self.metric_names, "+")
            self.best = f"best {name} {metrics_of.shown(best, self.metric_names)}"
        self.show(self.training)

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *_: Any,
        **__: Any,
    ) -> None:
        """End what an evaluation after training has shown."""
        self.close()

    def show_training(self, state: TrainerState) -> None:
        """Take down how far training is, and show it."""
        done = state.global_step - self.first_step
        parts = [f"{state.global_step}/{state.max_steps}", self.loss, self.best]
        if done:
            rate = (time.monotonic() - self.started) / done
            parts.append(f"{duration(rate * (state.max_steps - state.global_step))} left")
        self.training = [part for part in parts if part]
        if state.is_world_process_zero:
            self.show(self.training)

    def show(self, parts: Sequence[str]) -> None:
        """Write parts in place of what was shown, if there is a terminal."""
        if self.quiet or not parts or not sys.stderr.isatty():
            return
        if self.live is None:
            console = Console(file=sys.stderr, markup=False, highlight=False)
            self.live = Live(console=console, transient=True, refresh_per_second=4)
            self.live.start()
        lines = fitted_lines([f"  {parts[0]}", *parts[1:]], self.live.console.width)
        self.live.update(Text("\n".join(lines), no_wrap=True))

    def close(self) -> None:
        """Take away what is shown, also after an error."""
        self.loader, self.training = None, []
        if self.live is not None:
            self.live.stop()
            self.live = None


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
