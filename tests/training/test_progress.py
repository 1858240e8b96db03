"""What a person sees of a run: in a terminal, and in a log file."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest

from moe_runner.training import callbacks
from moe_runner.training.callbacks import ShowProgress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def state(step: int, best: float | None = None):
    return SimpleNamespace(
        global_step=step, max_steps=20, best_metric=best, is_world_process_zero=True
    )


def test_a_log_has_a_line_for_every_tenth_of_a_run_and_for_long_evaluations(clock, caplog):
    caplog.set_level(logging.INFO)
    progress, batches = ShowProgress("a label", ("accuracy",)), range(100)
    progress.on_train_begin(None, state(0), None)
    for step in range(1, 21):
        clock.seconds += 2
        progress.on_log(None, state(step), None, logs={"loss": 0.5})
        progress.on_step_end(None, state(step), None)
        if step == 10:
            for _ in range(100):
                clock.seconds += 1
                progress.on_prediction_step(None, state(step), None, eval_dataloader=batches)
            progress.on_evaluate(None, state(step), None, metrics={"eval_primary": 0.66})
    lines = [record.message for record in caplog.records]
    evaluations = [line for line in lines if "evaluating" in line]
    assert len(lines) - len(evaluations) == callbacks.LINES_PER_RUN
    assert lines[0] == "  2/20  loss 0.500  36 s left"
    assert lines[-1] == "  20/20  loss 0.500  best accuracy 66.0  0 s left"
    assert evaluations == [
        "  evaluating 31/100  69 s left",
        "  evaluating 61/100  39 s left",
        "  evaluating 91/100  9 s left",
    ]


@pytest.mark.parametrize("width", [80, 40])
def test_a_terminal_shows_updates_and_evaluations_in_lines_that_fit(width, clock, monkeypatch):
    shown = []

    class Screen:
        def __init__(self, **_):
            self.console = SimpleNamespace(width=width)

        def start(self):
            pass

        def update(self, text):
            shown.append(text.plain)

        def stop(self):
            shown.append("")

    monkeypatch.setattr(callbacks, "Live", Screen)
    monkeypatch.setattr(callbacks.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    progress = ShowProgress("a label", ("accuracy",))
    progress.on_train_begin(None, state(0), None)
    progress.on_log(None, state(0), None, logs={"loss": 0.5})
    progress.on_evaluate(None, state(0), None, metrics={"eval_primary": 0.66})
    clock.seconds = 1000
    progress.on_step_end(None, state(10), None)
    assert " ".join(shown[-1].split()) == "10/20 loss 0.500 best accuracy 66.0 17 min left"
    batches = range(4)
    progress.on_prediction_step(None, state(10), None, eval_dataloader=batches)
    clock.seconds += 5
    progress.on_prediction_step(None, state(10), None, eval_dataloader=batches)
    assert " ".join(shown[-1].split()) == "10/20 evaluating 2/4 10 s left"
    progress.close()
    assert shown[-1] == ""
    assert max(len(line) for text in shown for line in text.splitlines()) <= width
    progress.on_prediction_step(None, state(20), None, eval_dataloader=range(9))  # after training
    assert shown[-1] == "  evaluating 1/9"


def test_a_quiet_run_shows_nothing(clock, monkeypatch, caplog):
    monkeypatch.setattr(callbacks.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    progress = ShowProgress("a label", ("accuracy",), quiet=True)
    progress.on_train_begin(None, state(0), None)
    clock.seconds = 100
    progress.on_prediction_step(None, state(0), None, eval_dataloader=range(9))
    assert progress.live is None
