"""How far a sweep is that runs in this process, one run after the other."""

from __future__ import annotations

from collections.abc import Mapping

from moe_runner.console import duration
from moe_runner.runs.run import Run
from moe_runner.sweeps.naming import names_of, shared_by

LIKE = ("model", "suite", "task")  # what the time of a run depends on most


class Tally:
    """Counts runs, and estimates the time left from those that were carried out here.

    Args:
        runs: of the whole sweep, by id, in their order; of a search those that it has chosen.
        settled: the ids of those that are done already: they take no time.
        total: how many runs a search will have carried out at its end; 0: nobody knows; None: it is
            no search.
        before: how many runs of a search came before these.
        alone: whether nobody else carries out runs of a search; else no time is estimated.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        settled: set[str],
        total: int | None = None,
        before: int = 0,
        alone: bool = True,
    ) -> None:
        self.runs: dict[str, Run] = {}
        self.left: list[str] = []
        self.seconds: dict[str, float] = {}
        self.total = before + len(runs) if total is None else total
        self.estimates = alone and self.total > 0
        self.unknown, self.number = self.total - before, before
        self.running: str | None = None
        self.learn(runs, settled)

    def learn(self, runs: Mapping[str, Run], settled: set[str]) -> None:
        """Take in runs that a search has chosen; see the class."""
        self.unknown = max(0, self.unknown - len(runs))
        self.left += [run_id for run_id in runs if run_id not in {*settled, *self.runs}]
        self.runs |= runs
        self.names = names_of(self.runs)

    def begin(self, run: Run) -> str:
        """Note that a run begins; say which of how many, and the time left for all.

        Before the first of several a line says what they have in common.
        """
        self.number += 1
        self.running = run.id
        left = self.time_left()
        of = f"/{max(self.total, self.number)}" if self.total else ""
        count = f"[{self.number}{of}]"
        first = f"{shared_by(self.runs)}\n" if self.number == 1 and len(self.runs) > 1 else ""
        return f"{first}{count} {self.names.get(run.id, run.label)}  ({run.id})" + (
            f"  {duration(left)} left" if left is not None else ""
        )

    def end(self, seconds: float | None = None) -> None:
        """Note that the run that began has ended.

        Args:
            seconds: that it took by itself, without what only the first run of a process has to
                do; None: it failed, which tells nothing of the others.
        """
        assert self.running is not None
        if self.running in self.left:
            self.left.remove(self.running)
            if seconds is not None:
                self.seconds[self.running] = seconds
        self.running = None

    def time_left(self) -> float | None:
        """Estimate the seconds until the last run has ended; None: there is nothing to tell by.

        A run takes as long as those of its model and task took, else as all did on average.
        """
        if not self.seconds or not self.estimates:
            return None
        mean = sum(self.seconds.values()) / len(self.seconds)
        return sum(self.expected(run_id, mean) for run_id in self.left) + self.unknown * mean

    def expected(self, run_id: str, mean: float) -> float:
        """Estimate the seconds of a run."""
        kind = self.kind(run_id)
        alike = [taken for other, taken in self.seconds.items() if self.kind(other) == kind]
        return sum(alike) / len(alike) if alike else mean

    def kind(self, run_id: str) -> tuple[str, ...]:
        """Give the axes by which runs take alike."""
        axes = self.runs[run_id].axes()
        return tuple(str(axes[axis]) for axis in LIKE)
