"""Run the program's commands: in processes forked from this one, which imports once, or cold.

A forked command is the real one: `main()` with its own arguments, folder, screen and exit code.
Only the seconds of the imports are saved, without which no campaign of thousands would end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT, FAIL, KILL = range(3)  # see faults.c
LIBRARY = "faults.so"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "120",
    "PYTHONPATH": str(ROOT / "src"),
}


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Args:
        code: exit code; negative: the signal that ended it.
        out: what it printed.
        err: on the standard error.
        seconds: it took.
        changes: of files below the folder of its `Strike`; 0 without one, and if it was killed.
        struck: the call that was failed, "write"; empty if none was.
    """

    code: int
    out: str
    err: str
    seconds: float
    changes: int = 0
    struck: str = ""

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL

    @property
    def has_traceback(self) -> bool:
        """Whether the screen shows one."""
        return "Traceback (most recent call last)" in self.out + self.err


@dataclass(frozen=True)
class Strike:
    """What is to happen at a change of a file.

    Args:
        folder: changes below it count.
        number: the change that is struck, from 1.
        mode: COUNT (nothing happens), FAIL (the disk is full) or KILL.
    """

    folder: Path
    number: int
    mode: int


@dataclass
class Running:
    """A command on its way."""

    pid: int
    screens: tuple[Path, Path, Path]
    begun: float
    code: int | None = None

    def ended(self) -> bool:
        """Look whether it has ended, without waiting."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """Send SIGKILL to it and its children, if it still lives."""
        if not self.ended():
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 600.0) -> Done:
        """Wait for its end; after so many seconds it is killed, which fails the campaign.

        Raises:
            TimeoutError: if it had to be killed.
        """
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"no end after {seconds} s: {self.screens[1].read_text()}")
            time.sleep(0.01)
        took = time.monotonic() - self.begun
        assert self.code is not None
        out, err, seen = (path.read_text(errors="replace") for path in self.screens)
        for path in self.screens:
            path.unlink()
        changes, _, struck = seen.partition(" ")
        return Done(self.code, out, err, took, int(changes or 0), struck)


def warm_up() -> None:
    """Import what commands import, so that forked ones start at once."""
    os.environ |= QUIET
    import torch
    from transformers import Trainer  # noqa: F401

    torch.set_num_threads(1)  # more do not survive a fork
    from moe_runner.options.settings import METHODS
    from moe_runner.training import forms

    list(METHODS)
    __import__("datasets")
    __import__("peft")
    assert forms
    assert threading.active_count() == 1  # beside Arrow's jemalloc, which knows of forks


def screens() -> tuple[Path, Path, Path]:
    """Make files for what a command prints, for its errors, and for its changes of files."""
    names = []
    for _ in range(3):
        handle, name = tempfile.mkstemp(prefix="torture-")
        os.close(handle)
        names.append(Path(name))
    return names[0], names[1], names[2]


def forked(
    program: str,
    *words: str,
    folder: Path,
    strike: Strike | None = None,
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start a command from this warm process.

    Args:
        program: moe-run or moe-report.
        words: its arguments.
        folder: where it runs.
        strike: what happens at a change of a file.
        prepare: called in the new process before the command.
        environment: more variables for it.
    """
    shown = screens()
    begun = time.monotonic()
    pid = os.fork()
    if pid:
        return Running(pid, shown, begun)
    code = 70
    try:
        os.setsid()
        for descriptor, path in zip((1, 2), shown[:2], strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ |= environment or {}
        sys.argv = [program, *words]
        if prepare is not None:
            prepare()
        if strike is not None:
            faults().faults_arm(str(strike.folder).encode(), strike.number, strike.mode)
        code = _main(program)
    finally:
        if strike is not None:
            shown[2].write_text(disarmed())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(program: str) -> int:
    """Call the command's main and turn its end into an exit code, as the interpreter does."""
    import traceback

    from moe_runner import train
    from moe_runner.report import command

    try:
        (train.main if program == "moe-run" else command.main)()
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def cold(
    program: str, *words: str, folder: Path, environment: Mapping[str, str] | None = None
) -> Running:
    """Start a command in a new interpreter."""
    shown = screens()
    module = {"moe-run": "moe_runner.train", "moe-report": "moe_runner.report.command"}[program]
    begun = time.monotonic()
    with shown[0].open("w") as out, shown[1].open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            env={**os.environ, **QUIET, **(environment or {})},
        )  # fmt: skip
    process.returncode = 0  # this module waits for it, not subprocess
    return Running(process.pid, shown, begun)


def build_faults(folder: Path) -> Path:
    """Compile faults.c; the library's path.

    Raises:
        RuntimeError: if there is no C compiler, or it fails.
    """
    library = folder / LIBRARY
    source = Path(__file__).with_name("faults.c")
    try:
        done = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
            capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise RuntimeError("the campaigns need a C compiler: apt-get install gcc") from error
    if done.returncode:
        raise RuntimeError(f"cc failed on {source}: {done.stderr}")
    return library


def faults() -> ctypes.CDLL:
    """Find the layer of faults.c in this process.

    Raises:
        RuntimeError: if the process was started without it.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "faults_arm"):
        raise RuntimeError("start the campaigns by python -m tests.torture, which preloads faults")
    library.faults_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    library.faults_seen.restype = ctypes.c_long
    library.faults_struck.restype = ctypes.c_char_p
    return library


def disarmed() -> str:
    """Strike no more; how many changes there were, and the call that was struck."""
    library = faults()
    seen, struck = library.faults_seen(), library.faults_struck().decode()
    library.faults_arm(b"", 0, COUNT)
    return f"{seen} {struck}"
