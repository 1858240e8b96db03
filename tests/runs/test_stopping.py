"""Signals to end: raised at once, or noted and raised later, and passed on to other processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from moe_runner.runs import stopping


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _fresh():
    handlers = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    stopping._state.__init__()


def command(*steps) -> None:
    """Be a command that does some steps."""
    with stopping.listening():
        for step in steps:
            step()


def in_deferred(*steps, others=tuple) -> None:
    with stopping.deferred(others):
        for step in steps:
            step()


def fail() -> None:
    raise RuntimeError("its own")


def test_a_command_is_ended_where_the_signal_arrives():
    reached = []
    with pytest.raises(stopping.Stopped) as caught:
        command(send, lambda: reached.append(1))
    assert reached == []
    assert caught.value.code == 143
    assert str(caught.value) == "stopped by SIGTERM"


def test_what_is_deferred_is_raised_at_the_end_of_the_block():
    reached = []
    steps = (lambda: send(signal.SIGUSR2), lambda: reached.append(stopping.asked()))
    with pytest.raises(stopping.Stopped) as caught:
        command(lambda: in_deferred(*steps), lambda: reached.append("after"))
    assert reached == [signal.SIGUSR2]
    assert caught.value.code == 128 + signal.SIGUSR2


def test_a_signal_does_not_disturb_what_cleans_up_after_the_first():
    cleaned = []

    def work() -> None:
        try:
            send()
        finally:
            send()
            cleaned.append(True)

    with pytest.raises(stopping.Stopped):
        command(work)
    assert cleaned == [True]


def test_an_error_that_a_signal_has_caused_is_the_signal_and_any_other_stays_itself():
    with pytest.raises(stopping.Stopped):
        command(lambda: in_deferred(send, fail))
    with pytest.raises(RuntimeError, match="its own"):
        command(lambda: in_deferred(fail))


def test_handlers_are_as_before_after_a_command():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.listening():
        assert signal.getsignal(signal.SIGTERM) is not before
        assert stopping.asked() is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_notes_between_jobs_and_ends_every_job_after():
    stopping.work_for_launcher()
    assert stopping.is_worker()
    send()  # between two jobs: nothing happens
    for _ in range(2):
        with pytest.raises(stopping.Stopped), stopping.at_once():
            pytest.fail("began")


def test_a_process_of_a_command_is_no_worker():
    with stopping.listening():
        stopping.work_for_launcher()
        assert not stopping.is_worker()


def test_in_another_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stopping.work_for_launcher)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stopping.is_worker()


def test_a_deferred_signal_is_passed_on_to_living_processes():
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    codes = []
    steps = (send, lambda: codes.append(sleeping.wait(timeout=20)))
    with pytest.raises(stopping.Stopped):
        command(lambda: in_deferred(*steps, others=lambda: [gone.pid, sleeping.pid]))
    assert codes == [-signal.SIGTERM]


def test_it_can_be_pickled():
    found = pickle.loads(pickle.dumps(stopping.Stopped(signal.SIGTERM)))
    assert (found.code, found.number) == (143, signal.SIGTERM)
