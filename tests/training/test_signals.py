"""A process that is asked to end: its run saves a checkpoint, and goes on from it another time."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from moe_runner import train
from moe_runner.files import read_json
from moe_runner.runs.result import Result
from moe_runner.runs.store import Store
from moe_runner.training import fit  # imported before the fork

ROOT = Path(__file__).parents[2]
STEPS = 30
WORDS = [
    "method=dense", "model=bert_tiny", "task=glue_mini/rte", f"trainer.max_steps={STEPS}",
    "trainer.batch_size=4", "task.limit=120", "task.eval_limit=20", "task.max_length=32",
    "threads=1", "device=cpu",
]  # fmt: skip
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
KEPT = ("primary", "id_metrics", "ood_metrics", "learning_curve", "best_epoch", "updates")


class Command:
    """moe-run in a process group of its own, forked from this warm process: that saves seconds.

    Args:
        folder: it works there; the data that it makes are kept beside it, for all commands.
        *words: of the command line.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        assert fit
        words = (f"paths.cache={folder.parent / 'cache'}", *words)
        self.folder, self.output = folder, folder / "printed"
        self.pid = os.fork()
        if self.pid == 0:
            self.become(["moe-run", *WORDS, *words])
        self.code: int | None = None

    def become(self, argv: list[str]) -> None:
        """Be the command, and never come back."""
        code = 99
        try:
            os.setsid()
            os.chdir(self.folder)
            os.environ |= ENVIRONMENT
            output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            sys.argv = argv
            train.main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def has_ended(self) -> bool:
        if self.code is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(found[1])
        return self.code is not None

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and what was printed."""
        deadline = time.monotonic() + 200
        while not self.has_ended():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.05)
        return self.code, self.output.read_text()


def trained_to(update: int, command: Command, runs: int = 1) -> None:
    """Wait until runs have told in their logs that they have come to an update."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not command.has_ended():
        logs = [file.read_text() for file in command.folder.glob("outputs/runs/*/run.log")]
        if sum(f" {update}/{STEPS} " in text for text in logs) == runs:
            return
        time.sleep(0.05)
    raise AssertionError(f"never came to update {update}: {command.output.read_text()}")


def numbers(folder: Path) -> dict[str, dict[str, object]]:
    """What must be the same, by run."""
    results: list[Result] = list(Store(folder / "outputs").results())
    return {result.id: {name: getattr(result, name) for name in KEPT} for result in results}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, text = Command(folder).end()
    assert code == 0, text
    return folder


def expected(undisturbed: Path, folder: Path) -> dict[str, dict[str, object]]:
    return {run_id: numbers(undisturbed)[run_id] for run_id in Store(folder / "outputs").ids()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "words", "name"),
    [
        (signal.SIGTERM, ["trainer.workers=1"], "SIGTERM"),
        (signal.SIGUSR2, [], "SIGUSR2"),
    ],
    ids=["SIGTERM, with a data loader process", "SIGUSR2"],
)
def test_a_signal_in_training_saves_a_checkpoint_and_the_run_goes_on_from_it(
    number, words, name, tmp_path, undisturbed
):
    command = Command(tmp_path, *words)
    trained_to(6, command)
    os.killpg(command.pid, number)  # all of its processes, as a cluster does
    code, text = command.end()
    assert code == 128 + number, text
    assert text.splitlines()[-1] == (
        f"stopped by {name}; the same command goes on from the last checkpoint"
    )
    assert "Traceback" not in text
    store = Store(tmp_path / "outputs")
    (run_id,) = store.ids()
    folder = store.folder(run_id)
    assert read_json(folder / "status.json")["state"] == "interrupted"
    assert not (folder / "error.txt").exists()
    (saved,) = (folder / "checkpoint").glob("checkpoint-*")  # by nothing but the signal
    step = int(saved.name.removeprefix("checkpoint-"))
    assert 6 <= step < STEPS
    assert f"asked to end: the checkpoint of update {step} is saved" in text

    code, text = Command(tmp_path, *words).end()
    assert code == 0, text
    assert f"going on from update {step}" in text
    assert numbers(tmp_path) == expected(undisturbed, tmp_path)
    assert store.result(run_id).resumed_at_update == step


@pytest.mark.long
def test_a_signal_before_training_ends_at_once(tmp_path):
    command = Command(tmp_path)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("outputs/runs/*/run.log")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(command.pid, signal.SIGTERM)
    code, text = command.end()
    assert code == 143, text
    assert "asked to end" not in text  # there is nothing to save
    (status,) = tmp_path.glob("outputs/runs/*/status.json")
    assert read_json(status)["state"] == "interrupted"
