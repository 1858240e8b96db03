"""The store: a folder per run, its lock, its state, and the results of all runs.

A run is done when its `result.json` is there, and only then. Who works on it holds `.lock`, which
the system frees however the process ends. Where locks do not reach from host to host, the mtime
of `status.json` is the heartbeat, compared with the file system's own clock and never a host's.
"""

import difflib
import logging
import os
import shutil
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from moe_runner.files import (
    append_line,
    masked,
    one_line,
    read_lines,
    unfinished,
    write_atomic,
    write_json,
    write_lines,
)
from moe_runner.runs.objects import StoreError, read_object
from moe_runner.runs.processes import cluster_job, was_this_job
from moe_runner.runs.result import Result, read_result, write_result
from moe_runner.runs.types import mismatch

log = logging.getLogger(__name__)

State = Literal["pending", "running", "done", "failed", "interrupted"]

HEARTBEAT_SECONDS = 15.0
MISSED_HEARTBEATS = 10  # after so many, a run of another host counts as killed
LOCK_SECONDS = 0.2  # a claim waits so long, since `status` holds a free lock for an instant


class RunBusy(StoreError):
    """Another live process works on the run."""

    def __init__(self, run_id: str, host: str | None, pid: int | None, age: float | None):
        super().__init__(run_id, host, pid, age)  # all arguments: pickled between processes
        self.run_id, self.host, self.pid, self.age = run_id, host, pid, age

    def __str__(self) -> str:
        if self.age is None:
            return f"run {self.run_id} is busy: another process has just claimed it; wait for it"
        return (
            f"run {self.run_id} is busy: pid {self.pid} on {self.host}, "
            f"last heartbeat {self.age:.0f} s ago; wait for it, or end that process"
        )


class RunDone(StoreError):
    """The run was finished, perhaps by another process since one last looked."""

    def __init__(self, run_id: str):
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"run {self.run_id} is done; use its result, or rerun=true to repeat it"


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known about the state of a run; the times and process are of the last attempt."""

    state: State = "pending"
    attempts: int = 0
    host: str | None = None
    pid: int | None = None
    started: str | None = None  # ISO 8601, UTC
    job: str | None = None  # of a Slurm cluster: 12_3
    restart: int = 0  # how often Slurm had started that job again


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, for the process that has claimed it."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where training keeps what it needs to go on."""
        return self.path / "checkpoint"

    @property
    def best(self) -> Path:
        """Where the weights of the best epoch are, with keep_model=best."""
        return self.checkpoint / "best"

    @property
    def export(self) -> Path:
        """Where the exported Hugging Face folder is, with export=dense, moe or hf."""
        return self.path / "model"

    def log_metrics(self, obj: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            TypeError: if `obj` holds something JSON has no word for, such as a tensor.
        """
        append_line(self.path / "metrics.jsonl", obj)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, oldest first.

        Raises:
            ValueError: if a line was damaged by somebody else.
        """
        path = self.path / "metrics.jsonl"
        return read_lines(path) if path.exists() else []

    def truncate_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again.

        Args:
            keep: tells of a line whether it is at or before the checkpoint resumed from.

        Raises:
            ValueError: if a line was damaged by somebody else.
        """
        path = self.path / "metrics.jsonl"
        if path.exists():
            write_lines(path, [line for line in self.metrics() if keep(line)])

    def discard_checkpoint(self, keep_best: bool = False) -> None:
        """Remove the checkpoint folder if there is one, or all of it but the best weights."""
        for path in self.discardable(keep_best):
            _remove(path)

    def discardable(self, keep_best: bool) -> list[Path]:
        """List what of the checkpoint a finished run can do without; behind a link, nothing."""
        if self.checkpoint.is_symlink() or not self.checkpoint.is_dir():
            return []
        if not keep_best:
            return [self.checkpoint]
        return sorted(path for path in self.checkpoint.iterdir() if path != self.best)

    def finish(self, result: Result) -> Result:
        """Write result.json, which makes the run done, and return the result.

        The error.txt of an earlier attempt goes first, so that the result is written last.

        Raises:
            StoreError: if a score is not a number, or the result is another run's.
            TypeError: if `result` holds something JSON has no word for, such as a tensor.
        """
        _remove(self.path / "error.txt")
        write_result(self.path / "result.json", result)
        return result


class Store:
    """All runs below one output folder.

    Args:
        output: the output folder; runs are in `<output>/runs`, which is made when needed.
        heartbeat: seconds between two signs of life of a claimed run; the same on every host.
    """

    def __init__(self, output: Path, heartbeat: float = HEARTBEAT_SECONDS):
        self.root = output / "runs"
        self.heartbeat = heartbeat

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run, there or not."""
        return self.root / run_id

    def ids(self) -> list[str]:
        """Return the ids of all runs that were ever claimed, sorted."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if _is_folder(entry))
        except FileNotFoundError:
            return []

    def result(self, run_id: str) -> Result | None:
        """Return the result of a run, or None if it is not done.

        Raises:
            StoreError: see `read_result`.
        """
        return read_result(self.folder(run_id) / "result.json")

    def results(self) -> Iterator[Result]:
        """Yield the results of all finished runs, in the order of their ids.

        Raises:
            StoreError: see `read_result`.
        """
        for run_id in self.ids():
            if (result := self.result(run_id)) is not None:
                yield result

    def results_of(self, run_ids: Iterable[str]) -> dict[str, Result]:
        """Return the results of those of some runs that are done, by id.

        Raises:
            StoreError: with a line for every one that is damaged.
        """
        found, problems = {}, []
        for run_id in dict.fromkeys(run_ids):
            try:
                if (result := self.result(run_id)) is not None:
                    found[run_id] = result
            except StoreError as error:
                problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))
        return found

    def find(self, prefix: str) -> str:
        """Return the one run whose id starts with the given digits.

        Raises:
            StoreError: if there is no such run, or more than one.
        """
        ids = self.ids()
        matches = [run_id for run_id in ids if run_id.startswith(prefix)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise StoreError(
                f"{prefix!r} is the start of {len(matches)} runs: {', '.join(matches[:5])}"
                f"{', ...' if len(matches) > 5 else ''}; give more digits"
            )
        if not ids:
            raise StoreError(f"{prefix!r} is not a run: {self.root} has none yet")

        def likeness(run_id: str) -> float:
            return difflib.SequenceMatcher(None, prefix, run_id[: len(prefix)]).ratio()

        nearest = sorted(ids, key=likeness, reverse=True)[:3]
        raise StoreError(f"{prefix!r} is not a run in {self.root}; nearest: {', '.join(nearest)}")

    def status(self, run_id: str) -> Status:
        """Return the state of a run as it is, whatever its last process managed to write.

        Raises:
            StoreError: if status.json is damaged.
        """
        folder, status = self.folder(run_id), self._written_status(run_id)
        if (folder / "result.json").exists():
            return replace(status, state="done")
        if status.state == "done":
            return replace(status, state="pending")  # its result was taken away
        if status.state == "running" and not self._is_alive(run_id, status):
            if self._written_status(run_id) != status:  # it came to its end while we looked
                return self.status(run_id)
            return replace(status, state="interrupted")
        return status

    @contextmanager
    def claim(
        self, run_id: str, *, config_yaml: str, environment: dict[str, Any]
    ) -> Iterator[RunFolder]:
        """Work on a run that is not done: nobody else will until the block is left.

        On the way in the folder gets config.yaml, environment.json and state `running`; on the
        way out state `done` if there is a result, `failed` with error.txt after an error, else
        `interrupted` (KeyboardInterrupt, SystemExit, or the block ended without a result).
        The error itself is raised again. Failed and interrupted runs may be claimed again, and
        find their checkpoint and metrics as they were left.

        Args:
            run_id: the run.
            config_yaml: its resolved configuration, text of config.yaml.
            environment: content of environment.json; see `environment`.

        Yields:
            The folder of the run.

        Raises:
            RunBusy: if another live process has it, on this host or another.
            RunDone: if it has a result; read it, or `forget` it first.
        """
        self.folder(run_id).mkdir(parents=True, exist_ok=True)
        with self._lock(run_id):
            folder = RunFolder(self.folder(run_id))
            for path in unfinished(folder.path):
                _remove(path)
            if (folder.path / "result.json").exists():
                self._tell_done(run_id)
                raise RunDone(run_id)
            job, restart = cluster_job()
            status = Status(
                state="running",
                job=job,
                restart=restart,
                attempts=self._written_status(run_id).attempts + 1,
                host=socket.gethostname(),
                pid=os.getpid(),
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self._write_status(run_id, status)
            state: State = "interrupted"
            try:
                with self._beating(run_id):
                    write_atomic(folder.path / "config.yaml", config_yaml)
                    write_json(folder.path / "environment.json", environment)
                    folder.truncate_metrics(keep=lambda line: True)  # drops a torn last line
                    yield folder
            except Exception as error:
                state = "failed"
                write_atomic(folder.path / "error.txt", masked(with_reason(error)))
                raise
            finally:
                if (folder.path / "result.json").exists():
                    state = "done"
                self._write_status(run_id, replace(status, state=state))

    def left_over(self, run_id: str) -> list[Path]:
        """List what a run can do without: the checkpoint of a finished one, files of killed writes.

        Raises:
            StoreError: if status.json is damaged, or the run's folder is a link.
        """
        folder = RunFolder(self.folder(run_id))
        if folder.path.is_symlink():
            raise StoreError(f"{folder.path} is a link; what it leads to is not this store's")
        return [] if self.status(run_id).state == "running" else self._left_over(folder)

    def _left_over(self, folder: RunFolder) -> list[Path]:
        done = (folder.path / "result.json").exists()
        checkpoint = folder.discardable(folder.best.is_dir()) if done else []
        return [*checkpoint, *unfinished(folder.path)]

    def remove_left_over(self, run_id: str, paths: Sequence[Path]) -> None:
        """Remove files and folders of a run that nobody works on, and write that it is done if so.

        Args:
            run_id: the run.
            paths: of `left_over`.

        Raises:
            RunBusy: if somebody has claimed it meanwhile.
        """
        with self._lock(run_id):
            still = set(self._left_over(RunFolder(self.folder(run_id))))  # it may have run again
            for path in paths:
                if path in still:
                    _remove(path)
            self._tell_done(run_id)

    def _tell_done(self, run_id: str) -> None:
        """Let status.json say done where a process was killed between result and status."""
        written = self._written_status(run_id)
        if (self.folder(run_id) / "result.json").exists() and written.state != "done":
            self._write_status(run_id, replace(written, state="done"))

    def forget(self, run_id: str) -> None:
        """Remove all that earlier attempts computed, so that the run starts from nothing.

        Raises:
            RunBusy: if a live process works on the run.
        """
        folder = self.folder(run_id)
        if not folder.exists():
            return
        with self._lock(run_id):
            # The result goes last: cut short, the run is still done and can be forgotten again.
            old = ("checkpoint", "model", "error.txt", "metrics.jsonl", "ood.json", "result.json")
            for name in old:
                _remove(folder / name)
            self._write_status(run_id, replace(self._written_status(run_id), state="pending"))

    @contextmanager
    def _lock(self, run_id: str) -> Iterator[None]:
        """Keep everybody else from a run; raise RunBusy if somebody has it."""
        status = self._written_status(run_id)
        dead = status.state == "running" and was_this_job(status.job, status.restart)
        patience = MISSED_HEARTBEATS * self.heartbeat if dead else LOCK_SECONDS
        try:
            lock = FileLock(self.folder(run_id) / ".lock", timeout=patience).acquire()
        except Timeout:
            raise self._busy(run_id) from None
        with lock:
            status = self._written_status(run_id)
            elsewhere = status.state == "running" and status.host != socket.gethostname()
            if elsewhere and not dead and self._has_heartbeat(run_id):
                raise self._busy(run_id)
            yield

    def release(self, run_id: str, job: str) -> None:
        """Write that a run is interrupted if a cluster job that has ended still has it.

        Args:
            run_id: the run.
            job: that is known to have ended, as `Status.job`.

        Raises:
            StoreError: if status.json is damaged.
        """
        if self._written_status(run_id).job != job:
            return
        with ExitStack() as held:
            with suppress(Timeout):  # a file server keeps the dead job's lock for a while
                held.enter_context(FileLock(self.folder(run_id) / ".lock", timeout=LOCK_SECONDS))
            status = self._written_status(run_id)
            if status.state == "running" and status.job == job:
                done = (self.folder(run_id) / "result.json").exists()
                self._write_status(run_id, replace(status, state="done" if done else "interrupted"))

    def _busy(self, run_id: str) -> RunBusy:
        status = self._written_status(run_id)
        if status.state != "running":  # it has the lock, and has not come to write its status
            return RunBusy(run_id, None, None, None)
        return RunBusy(run_id, status.host, status.pid, self._heartbeat_age(run_id))

    def _is_alive(self, run_id: str, status: Status) -> bool:
        """Tell whether the process behind a status of `running` still lives."""
        if status.host != socket.gethostname():
            return self._has_heartbeat(run_id)
        try:
            with FileLock(self.folder(run_id) / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    def _has_heartbeat(self, run_id: str) -> bool:
        return self._heartbeat_age(run_id) < MISSED_HEARTBEATS * self.heartbeat

    def _heartbeat_age(self, run_id: str) -> float:
        """Return the seconds since the last heartbeat, by the clock of the file system."""
        folder = self.folder(run_id)
        with tempfile.TemporaryFile(dir=folder) as file:
            now = os.fstat(file.fileno()).st_mtime
        return now - (folder / "status.json").stat().st_mtime

    @contextmanager
    def _beating(self, run_id: str) -> Iterator[None]:
        path = self.folder(run_id) / "status.json"
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.heartbeat):
                try:
                    os.utime(path)
                except OSError as error:  # a network file system may be back at the next beat
                    log.warning("no heartbeat of run %s: %s", run_id, error)

        thread = threading.Thread(target=beat, name=f"heartbeat-{run_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _written_status(self, run_id: str) -> Status:
        path = self.folder(run_id) / "status.json"
        remedy = "delete it; the run is kept"
        try:
            status = Status(**(read_object(path, remedy) or {}))
        except TypeError as error:  # a key of another version
            raise StoreError(f"{path} cannot be understood ({error}); {remedy}") from error
        if (words := mismatch(status, Status, "")) is not None:
            raise StoreError(f"{path} cannot be understood ({words}); {remedy}")
        return status

    def _write_status(self, run_id: str, status: Status) -> None:
        write_json(self.folder(run_id) / "status.json", asdict(status))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: whoever reads it says so
        return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def with_reason(error: Exception) -> str:
    """Write out the traceback of an error; its last line is what a person is told of it."""
    frames = "".join(traceback.format_exception(error)).rstrip()
    reason = f"{type(error).__name__}: {one_line(error).partition(chr(10))[0]}"
    return f"{frames}\n" if frames.endswith(f"\n{reason}") else f"{frames}\n{reason}\n"
