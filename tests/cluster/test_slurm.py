"""`hydra/launcher=slurm` on a real Slurm: two nodes of this machine, see scripts/."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from moe_runner.files import read_json
from moe_runner.runs.store import Store

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from slurm_on_one_machine import Cluster, Unavailable, check_available, cluster  # noqa: E402

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("submitit") is None,
        reason="hydra-submitit-launcher is not installed: pip install -e '.[slurm]'",
    ),
]

STEPS = 400  # some 40 seconds on an idle core: it is disturbed long before its end
TINY = [
    "model=bert_tiny", "method=dense", "task=glue_mini/rte", "task.eval_limit=40", "threads=1",
    "device=cpu",
]  # fmt: skip
LONG = [*TINY, f"trainer.max_steps={STEPS}", "trainer.batch_size=16"]
SHORT = [*TINY, "trainer.max_steps=5"]
ON_CPUS = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=30",
]  # fmt: skip
KEPT = ("primary", "id_metrics", "ood_metrics", "learning_curve", "best_epoch", "updates")


def started(*, accounting: bool, enforce_limits: bool) -> Iterator[Cluster]:
    try:
        check_available(accounting=accounting)
    except Unavailable as error:
        pytest.skip(str(error))
    with cluster(accounting=accounting, enforce_limits=enforce_limits) as made:
        yield made


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster with accounting, which refuses at once what no node can take."""
    yield from started(accounting=True, enforce_limits=True)


@pytest.fixture(scope="module")
def bare_slurm() -> Iterator[Cluster]:
    """A cluster without accounting, which forgets an ended job soon."""
    yield from started(accounting=False, enforce_limits=False)


@dataclass
class Sweep:
    """moe-run in a folder, with a cluster."""

    folder: Path
    words: list[str]
    on: Cluster | None = None
    process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        own = self.on.environment if self.on else {}
        environment = os.environ | own | {
            "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        cache = f"paths.cache={self.folder.parent / 'cache'}"
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_runner.train", cache, *self.words],
                cwd=self.folder, env=environment, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    @property
    def store(self) -> Store:
        return Store(self.folder / "outputs")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def end(self, seconds: float = 600) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def wait(self, what: str, look: Callable[[], object], seconds: float = 300):
        """Wait for something that comes while the command lasts; what was found."""
        deadline = time.monotonic() + seconds
        while True:
            if found := look():
                return found
            state = self.process.poll()
            assert state is None, f"{what}: the command ended with {state}: {self.err}"
            assert time.monotonic() < deadline, f"{what}: not in {seconds:.0f} s: {self.err}"
            time.sleep(0.3)

    def array(self) -> str:
        """The id of the array, as soon as it is told."""
        return self.wait("array", lambda: re.search(r"slurm: array (\d+): ", self.err))[1]

    def trains(self, update: int, runs: int = 1) -> None:
        """Wait until runs are in the middle of training."""
        pattern = re.compile(rf"  (\d+)/{STEPS}  ")

        def look() -> bool:
            logs = [file.read_text() for file in self.folder.glob("outputs/runs/*/run.log")]
            seen = [max(map(int, pattern.findall(text)), default=0) for text in logs]
            return sum(each >= update for each in seen) >= runs

        self.wait(f"update {update} of {runs} runs", look)

    def log(self, number: int = 0) -> str:
        """The log of a job of the array."""
        array = self.array()
        place = self.folder / "outputs/hydra/slurm"
        name = f"{array}_{number}" if (place / f"{array}_{number}").exists() else array
        return (place / name / f"{name}_0_log.err").read_text()


def numbers(store: Store) -> dict[str, dict[str, object]]:
    """What must not depend on the launcher, nor on disturbances, by run."""
    return {found.id: {name: getattr(found, name) for name in KEPT} for found in store.results()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str], Path]:
    """Make a folder for a command beside the others: they share the cache of data."""
    place = tmp_path_factory.mktemp("commands")

    def make(name: str) -> Path:
        (place / name).mkdir()
        return place / name

    return make


@pytest.fixture(scope="module")
def undisturbed(folder) -> dict[str, dict[str, object]]:
    """The numbers of the long run, seed 0, in one go and without a cluster."""
    sweep = Sweep(folder("undisturbed"), LONG)
    assert sweep.end() == 0, sweep.err
    return numbers(sweep.store)


def job_of(sweep: Sweep) -> str:
    """The status of the only run that is there."""
    (file,) = sweep.folder.glob("outputs/runs/*/status.json")
    return read_json(file)


def test_a_study_gives_the_ids_and_numbers_of_the_basic_launcher(slurm, folder):
    study = ["study=emoe_gates", "device=cpu"]
    basic = Sweep(folder("basic"), study)
    assert basic.end() == 0, basic.err
    sweep = Sweep(folder("array"), [*study, *ON_CPUS, "hydra.launcher.partition=gpu"], slurm)
    assert sweep.end() == 0, sweep.err
    assert len(numbers(sweep.store)) == 3
    assert numbers(sweep.store) == numbers(basic.store)
    array = sweep.array()
    assert (
        f"slurm: array {array}: 3 jobs in gpu, at most 3 at once, each with hydra.launcher.nodes=1 "
        "hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=2 hydra.launcher.timeout_min=30"
    ) in sweep.err.splitlines()
    logs = f"outputs/hydra/slurm/{array}_<number>/{array}_<number>_0_log.err"
    assert f"slurm: logs: {logs}; squeue -j {array} shows the jobs, scancel {array} ends them" in (
        sweep.err.splitlines()
    )
    assert "(rate" not in sweep.err
    assert sweep.log(2) == ""  # a job of a study tells its run.log alone
    # what a job says of its own place: it is the Slurm job
    files = sweep.folder.glob("outputs/runs/*/status.json")
    assert {read_json(file)["job"] for file in files} == {f"{array}_{n}" for n in range(3)}


def test_a_cancelled_job_is_named_and_the_same_command_goes_on_from_its_checkpoint(
    slurm, folder, undisturbed
):
    place, words = folder("cancelled"), ["seed=0,1", *LONG, *ON_CPUS, "-m"]
    sweep = Sweep(place, words, slurm)
    sweep.trains(40, runs=2)
    array = sweep.array()
    slurm.ask("scancel", f"{array}_0")
    assert sweep.end() == 1, sweep.err
    (lost,) = (run for run in sweep.store.ids() if sweep.store.result(run) is None)
    log = f"outputs/hydra/slurm/{array}_0/{array}_0_0_log.err"
    assert sweep.err.splitlines()[-1] == (
        f"failed: dense bert_tiny glue_mini/rte lr 0.0005 seed 0 ({lost}): Slurm job {array}_0 "
        f"ended as CANCELLED (log: {log})"
    )
    assert f"slurm: job {array}_0 ended as CANCELLED (log: {log})" in sweep.err.splitlines()
    saved = re.search(r"asked to end: the checkpoint of update (\d+) is saved", sweep.log(0))
    assert saved is not None, sweep.log(0)
    assert read_json(sweep.store.folder(lost) / "status.json")["state"] == "interrupted"

    again = Sweep(place, words, slurm)
    assert again.end() == 0, again.err
    assert "done before" in again.err
    assert f"going on from update {saved[1]}" in again.log()
    assert numbers(again.store)[lost] == undisturbed[lost]


def test_a_requeued_job_goes_on_from_its_checkpoint_under_the_same_command(
    slurm, folder, undisturbed
):
    sweep = Sweep(folder("requeued"), [*LONG, *ON_CPUS, "-m"], slurm)
    sweep.trains(40)
    slurm.ask("scontrol", "requeue", sweep.array())
    assert sweep.end() == 0, sweep.err
    assert numbers(sweep.store) == undisturbed
    status = job_of(sweep)
    assert (status["attempts"], status["restart"]) == (2, 1)
    assert re.search(r"pending \(BeginTime\)", sweep.err)
    assert "they may wait for ever" not in sweep.err


def test_a_job_at_its_time_limit_saves_and_is_started_again(slurm, folder, undisturbed):
    limits = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30"]
    limits += ["hydra.launcher.max_num_timeout=50"]  # on a busy machine a start takes most of it
    sweep = Sweep(folder("limit"), [*LONG, *ON_CPUS, *limits, "-m"], slurm)
    assert sweep.end() == 0, sweep.err
    status = job_of(sweep)
    starts = sweep.log().split("[1/1] dense ")[1:]
    assert len(starts) == status["restart"] + 1, sweep.log()
    # one that the limit ends before the run has begun is no attempt of the run
    assert status["attempts"] == sum("not pretrained" in start for start in starts) >= 2
    assert (
        "slurm: the time limit is near; Slurm starts this job again, and the run goes on from its "
        "checkpoint"
    ) in sweep.log().splitlines()
    assert numbers(sweep.store) == undisturbed


def test_a_job_at_its_time_limit_that_may_not_start_again_is_named(slurm, folder, undisturbed):
    limits = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30"]
    limits += ["hydra.launcher.max_num_timeout=0"]
    words = [*LONG, *ON_CPUS, *limits, "-m"]
    sweep = Sweep(folder("last"), words, slurm)
    assert sweep.end() == 1, sweep.err
    assert "the time limit is near; it was started again 0 times" in sweep.log()
    assert job_of(sweep)["state"] == "interrupted"
    assert re.search(r"Slurm job \d+ ended as FAILED \(NonZeroExitCode\)", sweep.err)


def test_a_preempted_job_gives_way_and_goes_on(slurm, folder, undisturbed):
    partition = "hydra.launcher.partition=gpu"
    sweep = Sweep(folder("preempted"), [*LONG, *ON_CPUS, partition, "-m"], slurm)
    sweep.trains(40)
    slurm.ask(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 5",
    )  # fmt: skip
    assert sweep.end() == 0, sweep.err
    assert job_of(sweep)["attempts"] == 2
    assert "asked to end: the checkpoint of update" in sweep.log()
    assert numbers(sweep.store) == undisturbed


def test_a_killed_job_is_named_and_its_status_does_not_stay_running(slurm, folder):
    sweep = Sweep(folder("killed"), [*LONG, *ON_CPUS, "-m"], slurm)
    sweep.trains(40)
    os.kill(job_of(sweep)["pid"], signal.SIGKILL)
    assert sweep.end() == 1, sweep.err
    assert job_of(sweep)["state"] == "interrupted"
    last = sweep.err.splitlines()[-1]
    assert re.match(r"failed: dense bert_tiny .* Slurm job \d+ ended as FAILED", last), last


def test_a_failing_run_of_an_array_is_named_and_the_others_are_done(slurm, folder):
    words = ["trainer.learning_rate=1e-3,1e30,2e-3", *SHORT, "trainer.max_steps=20"]
    sweep = Sweep(folder("failing"), [*words, *ON_CPUS, "-m"], slurm)
    assert sweep.end() == 1, sweep.err
    states = sorted(sweep.store.status(run).state for run in sweep.store.ids())
    assert states == ["done", "done", "failed"]
    (last,) = (line for line in sweep.err.splitlines() if line.startswith("failed: "))
    assert "lr 1e+30 seed 0" in last
    assert "FloatingPointError: the loss is" in last


def test_two_studies_at_once_do_no_run_twice_and_another_shell_sees_them(slurm, folder):
    place = folder("two")
    words = ["study=emoe_gates,", "device=cpu", *ON_CPUS]
    words[0] = "study=emoe_gates"
    first = Sweep(place, words, slurm)
    (place / "second").mkdir()
    first.wait("a run", lambda: list(place.glob("outputs/runs/*/status.json")))
    shell = subprocess.run(
        [sys.executable, "-m", "moe_runner.report.command", "status", "study=emoe_gates"],
        cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert re.search(r"running: \w+ bert_tiny glue_mini/qnli .* pid \d+ on ", shell.stdout), shell
    second = Sweep(
        place / "second",
        [*words, "study=emoe_layers", "study.only.seed=0", f"paths.output={place / 'outputs'}"][1:],
        slurm,
    )
    codes = first.end(), second.end()
    assert codes == (0, 0), first.err + second.err
    store = first.store
    assert {store.status(run).state for run in store.ids()} == {"done"}
    assert {store.status(run).attempts for run in store.ids()} == {1}
    assert len(store.ids()) > 3


def test_a_command_that_is_stopped_leaves_its_array_and_says_so(slurm, folder):
    place, words = folder("stopped"), [*SHORT, "seed=0,1", *ON_CPUS, "-m"]
    sweep = Sweep(place, words, slurm)
    array = sweep.array()
    sweep.process.terminate()
    assert sweep.end() == 143, sweep.err
    assert sweep.err.splitlines()[-2:] == [
        f"slurm: array {array} goes on without this command; scancel {array} ends its jobs",
        "stopped by SIGTERM; the same command goes on from the last checkpoint",
    ]
    deadline = time.monotonic() + 200
    while len(numbers(sweep.store)) < 2 and time.monotonic() < deadline:
        time.sleep(1)
    again = Sweep(place, words, slurm)
    assert again.end() == 0, again.err
    assert again.err.count("done before") == 2


def test_what_no_node_can_take_is_refused_in_a_line(slurm, folder):
    sweep = Sweep(folder("refused"), [*SHORT, "hydra/launcher=slurm", "-m"], slurm)
    assert sweep.end(60) == 2, sweep.err
    last = sweep.err.splitlines()[-1]
    assert last.startswith("Slurm refuses the jobs: sbatch: error: "), sweep.err
    assert last.endswith(
        "; asked for hydra.launcher.nodes=1 hydra.launcher.cpus_per_task=8 "
        "hydra.launcher.gpus_per_node=1 hydra.launcher.mem_gb=64 hydra.launcher.timeout_min=1440"
    )
    assert "Traceback" not in sweep.err


def test_without_accounting_a_sweep_ends_and_a_lost_job_is_named(bare_slurm, folder):
    with pytest.raises(subprocess.CalledProcessError):
        bare_slurm.ask("sacct")
    sweep = Sweep(folder("bare"), [*SHORT, "seed=0,1", *ON_CPUS, "-m"], bare_slurm)
    assert sweep.end() == 0, sweep.err
    assert len(numbers(sweep.store)) == 2
    assert "sacct" not in sweep.err
    lost = Sweep(folder("bare_lost"), [*LONG, "seed=0,1", *ON_CPUS, "-m"], bare_slurm)
    lost.trains(20, runs=2)
    bare_slurm.ask("scancel", lost.array())
    assert lost.end() == 1, lost.err
    assert lost.err.count("\nfailed: dense bert_tiny ") == 2
    assert "sacct" not in lost.err
    assert {lost.store.status(run).state for run in lost.store.ids()} == {"interrupted"}


def test_a_job_that_waits_says_for_what(bare_slurm, folder):
    bare_slurm.ask("scontrol", "update", "partition=gpu", "MaxTime=5")
    sweep = Sweep(folder("waits"), [*SHORT, *ON_CPUS, "-m"], bare_slurm)  # 30 minutes
    line = sweep.wait("why", lambda: re.search(r"slurm: 1 pending.*", sweep.err), 60)[0]
    assert line == (
        "slurm: 1 pending (PartitionTimeLimit); PartitionTimeLimit: they may wait for ever, see "
        "squeue(1); what a job asks for is hydra.launcher.cpus_per_task, mem_gb, gpus_per_node, "
        "timeout_min and partition"
    )
    time.sleep(15)
    assert sweep.err.count("pending") == 1  # it is told once
    bare_slurm.ask("scancel", sweep.array())
    assert sweep.end() == 1, sweep.err
    assert re.search(
        r"Slurm job \d+ (ended as CANCELLED|is not known to Slurm any more)", sweep.err
    )
    assert sweep.store.ids() == []
