"""Show how a sweep goes on, whoever carries it out: the store is all that is looked at."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from moe_runner.files import read_lines
from moe_runner.runs.run import Run
from moe_runner.runs.store import State, Store

POLL_SECONDS = 1.0
FINAL = ("done", "failed", "interrupted")


class Monitor:
    """A context in which the progress of runs is shown on the standard error.

    On a terminal: a bar with done, failed and left and the time left, and a line per running run.
    Elsewhere: a line per event.

    Args:
        runs: that are to be done, by id.
        store: where they are done.
    """

    def __init__(self, runs: Mapping[str, Run], store: Store) -> None:
        self.runs, self.store = runs, store
        self.labels = Counter(run.label for run in runs.values())
        self.before = {run_id: store.status(run_id).attempts for run_id in runs}
        self.states: dict[str, State] = {}
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="sweep-monitor", daemon=True)
        self.live: Live | None = None

    def __enter__(self) -> Monitor:
        if sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=2)
            self.live.start()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join()
        self.look()
        if self.live is not None:
            self.live.stop()

    def watch(self) -> None:
        """Look at the store until the end."""
        while not self.stop.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """Note every change since the last look, and show it."""
        for run_id, run in self.runs.items():
            if self.states.get(run_id) == "done":
                continue
            status = self.store.status(run_id)
            tried = status.attempts > self.before[run_id]  # else the state is of an earlier sweep
            state: State = status.state if tried or status.state == "done" else "pending"
            if state != self.states.get(run_id, "pending"):
                self.states[run_id] = state
                if self.live is None and state != "pending":
                    print(f"{self.count()}  {state}: {run.label}  ({run_id})", file=sys.stderr)
        if self.live is not None:
            self.live.update(self.picture())

    def count(self) -> str:
        """Write done and all: "[3/24]"."""
        done = sum(state == "done" for state in self.states.values())
        return f"[{done}/{len(self.runs)}]"

    def time_left(self) -> str:
        """Estimate the time left from the runs that ended."""
        ended = sum(state in FINAL for state in self.states.values())
        if not ended:
            return "time left unknown"
        seconds = (time.monotonic() - self.started) / ended * (len(self.runs) - ended)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def picture(self) -> Group:
        """Draw the bar and the running runs."""
        done = sum(state == "done" for state in self.states.values())
        failed = sum(state == "failed" for state in self.states.values())
        bar = Progress(
            TextColumn("sweep"),
            BarColumn(bar_width=20),  # with the words, 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
        )
        left = len(self.runs) - done - failed
        bar.add_task(
            f"done, {failed} failed, {left} left, {self.time_left()}",
            total=len(self.runs),
            completed=done,
        )
        running = [run_id for run_id, state in self.states.items() if state == "running"]
        lines = (Text(f"  {self.line(run_id)}", "", no_wrap=True) for run_id in running)
        return Group(*lines, bar)

    def line(self, run_id: str) -> str:
        """Describe a running run by its last evaluation."""
        file = self.store.folder(run_id) / "metrics.jsonl"
        try:
            lines = read_lines(file)
        except (OSError, ValueError):  # none yet, or a line is being written
            lines = []
        run = self.runs[run_id]
        name = f"{run.label} ({run_id[:8]})" if self.labels[run.label] > 1 else run.label
        if not lines or not {"epoch", "step", "loss"} <= lines[-1].keys():
            return f"{name}: started"
        steps, last = run.trainer.max_steps, lines[-1]
        length = f"epoch {last['epoch']:g} of {run.trainer.epochs}"
        place = length if steps is None else f"update {last['step']} of {steps}"
        return f"{name}: {place}, loss {last['loss']:.3f}"
