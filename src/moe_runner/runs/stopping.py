"""Signals that ask a process to end: a run then saves what it has, and goes on another time.

SIGTERM comes from `kill`, a shutting down machine or a cancelled cluster job, SIGUSR2 from a
cluster before its time limit (`conf/hydra/launcher/slurm.yaml`). Either ends the process by
`Stopped`: at once, or, while a run trains, after the step and its checkpoint. Ctrl-C has its own
way: at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stopped(SystemExit):
    """This process was asked to end; its exit code is 128 and the signal's number, as in a shell.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)  # all arguments: pickled between processes
        self.code = 128 + number
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@dataclass
class _State:
    """What this process knows of the signals it got."""

    installed: bool = False
    worker: bool = False
    at_once: bool = True  # raise where the signal arrives
    asked: int | None = None
    raised: bool = False  # once is enough: what cleans up must not be disturbed
    others: Callable[[], Iterable[int]] = tuple  # process ids that are to get the signal too


_state = _State()


def asked() -> int | None:
    """Return the number of the signal that asked this process to end, if one did."""
    return _state.asked


def is_worker() -> bool:
    """Tell whether a launcher has started this process for its jobs."""
    return _state.worker


def work_for_launcher() -> None:
    """Listen as a worker until this process ends; nothing happens where somebody listens already.

    Outside of `at_once` a worker only notes a signal, so that it never dies between two jobs.
    """
    if not _state.installed and _install():
        _state.worker, _state.at_once = True, False


@contextmanager
def listening() -> Iterator[None]:
    """Listen as the process of a command, until the block is left."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    installed = _install()
    try:
        yield
    finally:
        if installed:
            for number, handler in before.items():
                signal.signal(number, handler)
            _state.__init__()  # type: ignore[misc]


@contextmanager
def at_once() -> Iterator[None]:
    """Raise where the signal arrives.

    Raises:
        Stopped: also at the start, if there was a signal before.
    """
    with _mode(at_once=True):
        raise_if_asked()
        yield


@contextmanager
def deferred(others: Callable[[], Iterable[int]] = tuple) -> Iterator[None]:
    """Only note a signal; who is in the block looks for it with `asked`.

    Args:
        others: finds the processes to which the signal is passed on.

    Raises:
        Stopped: at the end of the block, where a signal is raised at once outside of it.
    """
    before, _state.others = _state.others, others
    try:
        with _mode(at_once=False):
            yield
    except Exception:
        if _state.at_once:
            raise_if_asked()  # the error comes from processes that have stopped
        raise
    finally:
        _state.others = before
    if _state.at_once:
        raise_if_asked()


def raise_if_asked() -> None:
    """End this process if it was asked to.

    Raises:
        Stopped: if so.
    """
    if _state.asked is not None:
        _state.raised = True
        raise Stopped(_state.asked)


@contextmanager
def _mode(*, at_once: bool) -> Iterator[None]:
    before, _state.at_once = _state.at_once, at_once
    try:
        yield
    finally:
        _state.at_once = before


def _install() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False  # only the main thread may; whoever runs jobs in another one has its own way
    for number in SIGNALS:
        signal.signal(number, _note)
    _state.installed = True
    return True


def _note(number: int, frame: FrameType | None) -> None:
    """Note a signal, pass it on, and raise it where that is the mode."""
    _state.asked = number if _state.asked is None else _state.asked
    if not _state.at_once:
        for pid in _state.others():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    elif not _state.raised:
        raise_if_asked()
