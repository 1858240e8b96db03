"""hydra/launcher=slurm without a Slurm: commands of this test answer in its place."""

from __future__ import annotations

import os
import pickle
import signal
import stat
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from moe_runner.cli.elsewhere import reasons_of
from moe_runner.cli.launching import LostJob
from moe_runner.cli.slurm import commands, watching
from moe_runner.cli.slurm.commands import NoAnswer, Place
from moe_runner.cli.slurm.job import restart_if_due
from moe_runner.cli.slurm.submitting import Job, check, submit
from moe_runner.cli.slurm.watching import Watch, summary
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.runs import stopping
from moe_runner.runs.store import Store, StoreError

pytest.importorskip("submitit", reason="the extra slurm, see pyproject.toml")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put commands on the path that note how they are called and answer what the test wants."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")

    def answer(name: str, text: str = "", error: str = "", code: int = 0) -> Path:
        calls = tmp_path / f"{name}.calls"
        (tmp_path / f"{name}.out").write_text(text)
        (tmp_path / f"{name}.err").write_text(error)
        script = place / name
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\n'
            f"cat {tmp_path}/{name}.out; cat {tmp_path}/{name}.err >&2; exit {code}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return calls

    for name in ("sbatch", "srun", "squeue", "scontrol"):
        answer(name)
    return answer


def options(*words: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["hydra/launcher=slurm", *words], return_hydra_config=True)
    found = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    found["submitit_folder"], found["name"] = "slurm/%j", "train"
    return {key: value for key, value in found.items() if key != "_target_"}


def jobs(folder: Path, number: int = 2) -> list[Job]:
    return [
        Job(f"12_{n}", [f"seed={n}"], folder / f"{n}.pkl", folder / f"logs/12_{n}/12_{n}_0_log.err")
        for n in range(number)
    ]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


# ------------------------------------------------------------------------------- what is asked


def test_every_job_of_an_array_is_looked_up_with_its_reason(slurm):
    calls = slurm(
        "squeue", "12_0|RUNNING|None\n12_1|PENDING|Resources\n12_2|FAILED|NonZeroExitCode\n"
    )
    assert commands.places("12") == {
        "12_0": Place("RUNNING"),
        "12_1": Place("PENDING", "Resources"),
        "12_2": Place("FAILED", "NonZeroExitCode"),
    }
    assert calls.read_text() == "--noheader --array --states=all --jobs=12 --format=%i|%T|%r\n"


def test_an_array_that_slurm_has_forgotten_has_no_places_and_silence_is_an_error(slurm):
    slurm("squeue", error="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert commands.places("12") == {}
    slurm("squeue", error="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(NoAnswer, match="Unable to contact slurm controller"):
        commands.places("12")


@pytest.mark.parametrize(
    ("text", "preempted"),
    [
        ("JobId=13 JobState=RUNNING PreemptTime=2026-11-28T04:00:00 Reason=None", True),
        ("JobId=13 JobState=RUNNING PreemptTime=None Reason=None", False),
        ("JobId=13 JobState=CANCELLED PreemptTime=2026-11-28T04:00:00", False),
    ],
)
def test_a_preempted_job_is_told_from_a_cancelled_one(text, preempted, slurm):
    calls = slurm("scontrol", text)
    assert commands.was_preempted("12_3") is preempted
    assert calls.read_text() == "--oneliner show job 12_3\n"


# ------------------------------------------------------------------------------- submitting


def test_what_cannot_work_is_a_line_each(slurm):
    words = [
        "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.timeout_min=2",
        "hydra.launcher.max_num_timeout=-1",
    ]  # fmt: skip
    assert check(options(*words)) == [
        "hydra.launcher.nodes=2 is not valid; a job is one process: use 1",
        "hydra.launcher.tasks_per_node=4 is not valid; a job is one process: use 1",
        "hydra.launcher.signal_delay_s=120 does not fit timeout_min=2: the signal to save comes so "
        "many seconds before the limit; use 1 to 119",
        "hydra.launcher.max_num_timeout=-1 is not valid; use 0 or more",
    ]
    assert check(options()) == []


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert check(options()) == [
        "hydra/launcher=slurm needs Slurm's commands, and sbatch, srun, squeue, scontrol is not on "
        "this machine; start it on a login node, or use hydra/launcher=joblib"
    ]


def test_sbatch_is_asked_for_what_the_options_say(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    slurm("sbatch", "Submitted batch job 12\n")
    words = ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=2"]
    words += ["hydra.launcher.mem_gb=3", "hydra.launcher.partition=cpu"]
    found = submit(print, [(["seed=0"], 0), (["seed=1"], 1)], options(*words))
    assert [(job.id, job.array, job.overrides) for job in found] == [
        ("12_0", "12", ["seed=0"]), ("12_1", "12", ["seed=1"]),
    ]  # fmt: skip
    text = next(tmp_path.glob("slurm/**/*.sh")).read_text()
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line}
    assert asked >= {
        "array=0-1%2", "cpus-per-task=2", "mem=3072MB", "partition=cpu", "time=1440", "requeue",
        "signal=USR2@120", "job-name=train", "open-mode=append",
    }  # fmt: skip
    assert "gpus" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("srun "))
    assert " --cpus-per-task=2 " in line
    assert capsys.readouterr().err.splitlines() == [
        "slurm: array 12: 2 jobs in cpu, at most 2 at once, each with hydra.launcher.nodes=1 "
        "hydra.launcher.cpus_per_task=2 hydra.launcher.mem_gb=3 hydra.launcher.timeout_min=1440",
        "slurm: logs: slurm/12_<number>/12_<number>_0_log.err; squeue -j 12 shows the jobs, "
        "scancel 12 ends them",
    ]


def test_what_slurm_refuses_is_one_line_with_what_was_asked_for(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slurm("sbatch", error="sbatch: error: Batch job submission failed: no such node\n", code=1)
    with pytest.raises(ConfigError) as caught:
        submit(print, [(["seed=0"], 0)], options())
    assert caught.value.problems == (
        "Slurm refuses the jobs: sbatch: error: Batch job submission failed: no such node; asked "
        "for hydra.launcher.nodes=1 hydra.launcher.cpus_per_task=8 hydra.launcher.gpus_per_node=1 "
        "hydra.launcher.mem_gb=64 hydra.launcher.timeout_min=1440",
    )


# ------------------------------------------------------------------------------- watching


def answered(job: Job, word: str, answer: object) -> None:
    job.answer.write_bytes(pickle.dumps((word, answer)))


def value(number: float) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=number)


def test_jobs_that_return_are_found_without_a_question_to_slurm(slurm, tmp_path, clock):
    calls = slurm("squeue")
    one, other = jobs(tmp_path)
    watch = Watch([one, other])
    answered(other, "success", value(0.5))
    assert not watch.look()
    answered(one, "success", value(0.25))
    assert watch.look()
    assert [watch.found[job.id].return_value for job in (one, other)] == [0.25, 0.5]
    assert not calls.exists()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("12_0|CANCELLED|None", "ended as CANCELLED"),
        ("12_0|TIMEOUT|TimeLimit", "ended as TIMEOUT (TimeLimit)"),
        ("12_0|OUT_OF_MEMORY|None", "ended as OUT_OF_MEMORY: srun: error: n1: Out Of Memory"),
        ("", "is not known to Slurm any more"),
    ],
)
def test_a_job_that_ends_without_an_answer_is_lost_a_moment_later(
    line, what, slurm, tmp_path, clock, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    slurm("squeue", f"{line}\n" if line else "")
    (job,) = jobs(tmp_path, 1)
    job.log.parent.mkdir(parents=True)
    job.log.write_text("training\nsrun: error: n1: Out Of Memory\n\n")
    watch = Watch([job])
    clock(watching.ASK_LAST)
    assert not watch.look()  # its answer may come late over a network
    clock(watching.LATE_SECONDS + watching.ASK_LAST)
    assert watch.look()
    lost = watch.found[job.id]
    assert isinstance(lost, LostJob)
    assert (lost.job, lost.overrides) == ("12_0", ["seed=0"])
    assert lost.reason == f"Slurm job 12_0 {what} (log: logs/12_0/12_0_0_log.err)"
    assert f"slurm: job 12_0 {what} (log: " in capsys.readouterr().err


def test_a_job_that_is_started_again_is_not_lost(slurm, tmp_path, clock):
    (job,) = jobs(tmp_path, 1)
    watch = Watch([job])
    for line in ["PREEMPTED|None", "PENDING|BeginTime", "NODE_FAIL|None", "RUNNING|None"]:
        slurm("squeue", f"12_0|{line}\n")
        clock(watching.ASK_LAST + watching.LATE_SECONDS)
        assert not watch.look()
    assert watch.gone == {}


def test_a_completed_job_has_more_time_for_its_answer(slurm, tmp_path, clock):
    slurm("squeue", "12_0|COMPLETED|None\n")
    (job,) = jobs(tmp_path, 1)
    watch = Watch([job])
    for _ in range(2):
        clock(watching.ASK_LAST + watching.LATE_SECONDS)
        assert not watch.look()
    answered(job, "success", value(0.5))
    assert watch.look()


def test_an_error_of_a_job_is_a_line_of_the_sweep(slurm, tmp_path, clock):
    one, other = jobs(tmp_path)
    watch = Watch([one, other])
    failed = JobReturn(status=JobStatus.FAILED, _return_value=ValueError("not this\nnor that"))
    answered(one, "success", failed)
    answered(other, "error", "Traceback ...\nModuleNotFoundError: No module named 'toy'\n")
    assert watch.look()
    assert "job 12_0 failed: ValueError: not this (log: " in watch.found["12_0"].reason
    assert "job 12_1 failed: ModuleNotFoundError: No module named 'toy'" in (
        watch.found["12_1"].reason
    )


def test_a_silent_controller_is_told_once_and_loses_no_job(slurm, tmp_path, clock, capsys):
    slurm("squeue", error="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    watch = Watch(jobs(tmp_path))
    for _ in range(4):
        clock(watching.ASK_LAST)
        assert not watch.look()
    assert capsys.readouterr().err.splitlines() == [
        "slurm: the controller does not answer (slurm_load_jobs error: Unable to contact slurm "
        "controller); it is asked again"
    ]
    slurm("squeue", "12_0|RUNNING|None\n12_1|RUNNING|None\n")
    clock(watching.ASK_LAST)
    assert not watch.look()
    assert capsys.readouterr().err.splitlines() == [
        "slurm: the controller answers again", "slurm: 2 running",
    ]  # fmt: skip


def test_it_tells_what_jobs_wait_for_only_when_that_changes(slurm, tmp_path, clock, capsys):
    watch = Watch(jobs(tmp_path))
    for text in [
        "12_0|PENDING|Resources\n12_1|PENDING|Resources\n",
        "12_0|PENDING|Resources\n12_1|PENDING|Resources\n",
        "12_0|RUNNING|None\n12_1|PENDING|Priority\n",
    ]:
        slurm("squeue", text)
        clock(watching.ASK_LAST)
        watch.look()
    assert capsys.readouterr().err.splitlines() == [
        "slurm: 2 pending (Resources)", "slurm: 1 pending (Priority), 1 running",
    ]  # fmt: skip


def test_slurm_is_asked_less_often_the_longer_it_lasts(slurm, tmp_path, clock):
    calls = slurm("squeue", "12_0|RUNNING|None\n12_1|RUNNING|None\n")
    watch = Watch(jobs(tmp_path))
    for _ in range(3600):
        clock(1.0)
        watch.look()
    assert 120 < len(calls.read_text().splitlines()) < 170  # of an hour


def test_a_job_that_may_wait_for_ever_has_a_hint():
    text = summary([Place("PENDING", "PartitionTimeLimit"), Place("RUNNING"), None], ended=3)
    assert text == (
        "3 ended, 1 pending (PartitionTimeLimit), 1 running; PartitionTimeLimit: they may wait for "
        "ever, see squeue(1); what a job asks for is hydra.launcher.cpus_per_task, mem_gb, "
        "gpus_per_node, timeout_min and partition"
    )
    assert summary([Place("CANCELLED"), None], ended=0) == ""


# ------------------------------------------------------------------------------- within a job


@pytest.fixture
def asked(monkeypatch):
    """Be a job of an array that got a signal."""

    def build(number: int, restarts: int = 0) -> None:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        monkeypatch.setattr(stopping, "asked", lambda: number)

    return build


def test_a_job_at_its_limit_is_started_again_so_often_and_no_more(slurm, asked, capsys):
    calls = slurm("scontrol")
    asked(signal.SIGUSR2, restarts=1)
    restart_if_due(limit=2)
    assert calls.read_text() == "requeue 12_3\n"
    assert "Slurm starts this job again" in capsys.readouterr().err
    asked(signal.SIGUSR2, restarts=2)
    restart_if_due(limit=2)
    assert calls.read_text() == "requeue 12_3\n"
    assert "it was started again 2 times, hydra.launcher.max_num_timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("time", "last"),
    [("None", "--oneliner show job 12_3"), ("2026-11-28T04:00:00", "requeue 12_3")],
    ids=["cancelled", "preempted"],
)
def test_a_job_that_is_ended_is_started_again_only_if_it_made_way(time, last, slurm, asked):
    calls = slurm("scontrol", f"JobId=13 JobState=RUNNING PreemptTime={time}")
    asked(signal.SIGTERM)
    restart_if_due(limit=2)
    assert calls.read_text().splitlines()[-1] == last


def test_a_job_that_slurm_does_not_start_again_says_so(slurm, asked, capsys):
    slurm("scontrol", error="Access denied\n", code=1)
    asked(signal.SIGUSR2)
    restart_if_due(limit=2)
    assert capsys.readouterr().err == (
        "slurm: this job could not be started again: Access denied\n"
    )


# ------------------------------------------------------------------------------- the sweep


def test_a_lost_job_frees_its_runs_and_gives_the_reason(tmp_path, monkeypatch):
    store, calls = Store(tmp_path), []
    monkeypatch.setattr(Store, "release", lambda self, *words: calls.append(words))
    runs = [(type("R", (), {"id": name})(), store) for name in ("a", "b")]
    lost = LostJob(["seed=0"], "Slurm job 12_3 ended as CANCELLED", "12_3")
    assert reasons_of(lost, runs) == dict.fromkeys("ab", "Slurm job 12_3 ended as CANCELLED")
    assert calls == [("a", "12_3"), ("b", "12_3")]
    assert reasons_of(value(0.5), runs) == {}

    def damaged(self, *words):
        raise StoreError("status.json is damaged")

    monkeypatch.setattr(Store, "release", damaged)
    assert reasons_of(lost, runs[:1])["a"].endswith("CANCELLED; status.json is damaged")


def test_the_launcher_is_found_by_hydra_and_needs_no_more_keys():
    found = options()
    assert found["signal_delay_s"] == 120
    assert found["max_num_timeout"] == 10
    assert os.path.basename(found["submitit_folder"]) == "%j"
