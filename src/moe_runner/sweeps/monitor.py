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
from rich.text import Text

from moe_runner.console import duration, fitted_lines, spell_plainly
from moe_runner.files import read_lines
from moe_runner.metrics import named, shown
from moe_runner.runs.objects import StoreError
from moe_runner.runs.run import Run
from moe_runner.runs.store import State, Status, Store
from moe_runner.sweeps.naming import names_of, shared_by

POLL_SECONDS = 1.0
FINAL = ("done", "failed", "interrupted")


class Monitor:
    """A context in which the progress of runs is shown on the standard error.

    A line for every run that ends: which of how many, what differs from the others, score, seconds,
    and the time left for all. On a terminal below them what runs, and a summary. Elsewhere the
    first runs are told when they begin, so that a log shows that there is something to wait for.

    Args:
        runs: that are to be done, by id.
        store: where they are done.
    """

    def __init__(self, runs: Mapping[str, Run], store: Store) -> None:
        self.runs, self.store = runs, store
        self.names = names_of(runs)
        self.before = {run_id: attempt_of(store.status(run_id)) for run_id in runs}
        self.states: dict[str, State] = {}
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="sweep-monitor", daemon=True)
        self.live: Live | None = None

    def __enter__(self) -> Monitor:
        spell_plainly()
        if sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=2)
            self.live.start()
        if len(self.runs) > 1:
            self.show([shared_by(self.runs)])
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
        for run_id in self.runs:
            if self.states.get(run_id) == "done":
                continue
            status = self.store.status(run_id)
            tried = attempt_of(status) != self.before[run_id]  # else it is of an earlier sweep
            state: State = status.state if tried else "pending"
            if state != self.states.get(run_id, "pending"):
                self.states[run_id] = state
                self.tell(run_id, state)
        if self.live is not None:
            self.live.update(self.picture(self.live.console.width))

    def tell(self, run_id: str, state: State) -> None:
        """Print a line, or as many as it takes, about a run whose state has changed."""
        if state not in FINAL and (state == "pending" or self.live is not None or self.ended()):
            return
        parts = [f"[{self.ended()}/{len(self.runs)}]", state, self.names[run_id]]
        parts += self.figures(run_id) if state == "done" else [f"({run_id})"]
        parts += [self.time_left()] if self.ended() < len(self.runs) else []
        self.show(parts)

    def show(self, parts: list[str]) -> None:
        """Print parts, above what is live."""
        if self.live is None:
            print(*fitted_lines(parts, None), file=sys.stderr, flush=True)
            return
        for line in fitted_lines(parts, self.live.console.width):
            self.live.console.print(Text(line))

    def figures(self, run_id: str) -> list[str]:
        """Write the score and the seconds of a run that is done."""
        try:
            result = self.store.result(run_id)
        except StoreError:  # the end of the command tells it
            return []
        if result is None:
            return []
        score = f"{named(result.metrics, '+')} {shown(result.primary, result.metrics)}"
        return [score, duration(result.wall_seconds)]

    def ended(self) -> int:
        """Count the runs that have come to their end, in whatever way."""
        return sum(state in FINAL for state in self.states.values())

    def time_left(self) -> str:
        """Estimate the time left from the runs that ended; "" before the first."""
        if not (ended := self.ended()):
            return ""
        seconds = (time.monotonic() - self.started) / ended * (len(self.runs) - ended)
        return f"{duration(seconds)} left"

    def picture(self, width: int) -> Group:
        """Draw what runs, and how far the sweep is, in lines of a width."""
        count = Counter(self.states.values())
        unsuccessful = count["failed"] + count["interrupted"]
        parts = [
            f"[{self.ended()}/{len(self.runs)}]",
            f"{count['running']} running",
            f"{unsuccessful} failed" if unsuccessful else "",
            self.time_left() or "time left not known yet",
        ]
        running = [run_id for run_id, state in self.states.items() if state == "running"]
        lines = [line for run_id in running for line in fitted_lines(self.parts(run_id), width)]
        lines += fitted_lines(parts, width)
        return Group(*(Text(line, no_wrap=True) for line in lines))

    def parts(self, run_id: str) -> list[str]:
        """Describe a running run by its last evaluation."""
        file = self.store.folder(run_id) / "metrics.jsonl"
        try:
            lines = read_lines(file)
        except (OSError, ValueError):  # none yet, or a line is being written
            lines = []
        run, name = self.runs[run_id], f"  {self.names[run_id]}"
        if not lines or not {"epoch", "step", "loss"} <= lines[-1].keys():
            return [name, "started"]
        steps, last = run.trainer.max_steps, lines[-1]
        length = f"epoch {last['epoch']:g} of {run.trainer.epochs}"
        place = length if steps is None else f"update {last['step']} of {steps}"
        return [name, place, f"loss {last['loss']:.3f}"]


def attempt_of(status: Status) -> tuple[int, str | None]:
    """Tell attempts apart; a run that is done anew (rerun=true) begins to count again."""
    return status.attempts, status.started
