"""The command as a user types it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = [
    "method.num_experts=4",
    "method.top_k=2",
    "model=bert",
    "task=glue/cola",
    "task.max_length=16",
    "trainer.batch_size=8",
    "trainer.epochs=2",
    "trainer.learning_rate=3e-3",
    "device=cpu",
    "threads=1",
]


def command(*arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    words = [sys.executable, "-m", "moe_runner.train", *arguments]
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return words, os.environ | own | environment


def moe_run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    words, env = command(*arguments, **environment)
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture
def quick(backbone_folder, glue_folder) -> list[str]:
    """Arguments of a run of seconds on a tiny backbone."""
    return [*QUICK, f"model.path={backbone_folder('bert')}", f"task.data_dir={glue_folder}"]


def result_of(folder: Path) -> dict:
    (file,) = folder.glob("outputs/runs/*/result.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["dry_run=true"]])
def test_config_commands_answer_without_torch(arguments, tmp_path):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'transformers' in sys.modules))\n"
        f"sys.argv = ['moe-run', *{arguments!r}]\n"
        "from moe_runner.train import main\n"
        "main()\n"
    )
    _, env = command()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
    assert "emoe" in done.stdout


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(quick, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    arguments = [*quick, "trainer.epochs=8", "trainer.save_steps=5"]
    assert moe_run(*arguments, cwd=whole).returncode == 0
    words, env = command(*arguments)
    process = subprocess.Popen(
        words, env=env, cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("outputs/runs/*/checkpoint/checkpoint-15/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("outputs/runs/*/result.json"))
    again = moe_run(*arguments, cwd=killed)
    assert again.returncode == 0, again.stderr
    assert "going on from update" in again.stderr
    first, second = result_of(whole), result_of(killed)
    assert second["resumed_at_update"] >= 15
    for key in ("id", "id_metrics", "best_epoch", "learning_curve", "routing", "updates"):
        assert second[key] == first[key], key


@pytest.mark.long
def test_ctrl_c_ends_with_one_line_and_the_state_interrupted(quick, tmp_path):
    words, env = command(*quick, "trainer.epochs=200")
    process = subprocess.Popen(
        words,
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that runs in the background ignores SIGINT, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/runs/*/checkpoint/checkpoint-12")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("interrupted; the same command goes on")
    (status,) = tmp_path.glob("outputs/runs/*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"


@pytest.mark.long
def test_a_kept_run_is_evaluated_on_another_set(quick, tmp_path):
    assert moe_run(*quick, "keep_model=best", cwd=tmp_path).returncode == 0
    (folder,) = tmp_path.glob("outputs/runs/*")
    ood = Path(next(w for w in quick if w.startswith("task.data_dir")).split("=")[1]) / "ood"
    done = moe_run(
        f"evaluate='{folder.name}'", "task=glue/cola", "task.ood=[cola_ood]",
        f"task.ood_dir={ood}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cola_ood" in done.stdout
    assert set(json.loads((folder / "ood.json").read_text())) == {"cola_ood"}
    wrong = moe_run("evaluate=zzz", "task=glue/cola", "task.ood=[cola_ood]", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "'zzz' is not a run" in wrong.stderr


@pytest.mark.long
def test_the_second_time_the_command_says_done_without_torch(quick, tmp_path):
    first = moe_run(*quick, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "matthews" in first.stdout
    assert "no dense baseline" in first.stdout
    second = moe_run(*quick, cwd=tmp_path)
    assert "done before" in second.stderr
    assert second.stdout == first.stdout
    code = (
        "import sys\n"
        f"sys.argv = ['moe-run', *{quick!r}]\n"
        "from moe_runner.train import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)\n"
    )
    _, env = command()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.long
def test_a_sweep_compares_the_methods_in_one_table(quick, tmp_path):
    shared = [word for word in quick if not word.startswith("method.")]
    done = moe_run("-m", "method=dense,emoe", *shared, "method.num_experts=4", cwd=tmp_path)
    assert done.returncode == 2  # dense has no such option
    shared.remove("trainer.epochs=2")  # does nothing beside max_steps
    done = moe_run("-m", "method=dense,emoe", "trainer.max_steps=4", *shared, cwd=tmp_path)
    # 64 experts do not divide the 32 neurons of the tiny backbone: said before any job runs
    assert done.returncode == 2
    assert "does not divide d_ff=32" in done.stderr
    assert not (tmp_path / "outputs" / "runs").exists()
    done = moe_run("-m", "method=dense", "seed=0,1", "trainer.epochs=2", *shared, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("matthews") == 1  # one table, at the end
    assert "±" in done.stdout
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 2


@pytest.mark.long
def test_a_suite_runs_its_members_and_one_failure_leaves_the_others_done(quick, tmp_path):
    suite = [word for word in quick if not word.startswith("task=")]
    broken = tmp_path / "glue"
    source = Path(next(w for w in quick if w.startswith("task.data_dir")).split("=")[1])
    for file in source.rglob("*.parquet"):
        target = broken / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (broken / "cola" / "train.parquet").write_bytes(b"not parquet")
    suite = [word for word in suite if not word.startswith("task.data_dir")]
    arguments = [*suite, "task=glue", f"task.data_dir={broken}"]
    missing = moe_run(*arguments, cwd=tmp_path)
    assert missing.returncode == 2
    for name in ("sst2", "stsb", "qqp", "mnli", "qnli", "rte"):
        assert f"{name}/train.parquet" in missing.stderr
    done = moe_run(*arguments, "task.skip_missing=true", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "mrpc" in done.stdout
    assert "not available" in done.stdout
    assert result_of(tmp_path)["axes"]["task"] == "mrpc"
    (error,) = tmp_path.glob("outputs/runs/*/error.txt")
    assert "Traceback" in error.read_text()
    assert "Traceback" not in done.stderr


def test_without_the_hub_it_stops_at_once_with_the_remedy(tmp_path):
    started = time.monotonic()
    done = moe_run(
        "method=emoe", "model=gpt2", "task=glue", cwd=tmp_path,
        HF_HUB_OFFLINE="", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert done.returncode == 2
    assert time.monotonic() - started < 10
    assert (
        "cannot load 'openai-community/gpt2': not in the local Hugging Face cache and the Hub is "
        "unreachable; use model=gpt2_tiny, or model.path=<folder>"
    ) in done.stderr
    assert "nyu-mll/glue" in done.stderr


@pytest.mark.long
def test_search_tries_rates_and_seeds_and_reports_the_best(quick, tmp_path):
    words = [word for word in quick if not word.startswith("trainer.learning_rate")]
    plan = moe_run(*words, "search=paper", "dry_run=true", cwd=tmp_path)
    assert "9 runs, 0 done, 9 to do" in plan.stdout
    words.remove("trainer.epochs=2")  # does nothing beside max_steps
    short = ["trainer.max_steps=2", "search.seeds=[0,1]", "tuning.learning_rates=[1e-3,2e-3]"]
    done = moe_run(*words, "search=paper", *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 4
    assert "±" in done.stdout


@pytest.mark.long
def test_every_file_of_a_run_is_there(quick, tmp_path):
    assert moe_run(*quick, cwd=tmp_path).returncode == 0
    (folder,) = tmp_path.glob("outputs/runs/*")
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "config.yaml", "environment.json", "metrics.jsonl", "result.json", "run.log", "status.json",
    }  # fmt: skip
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert "matthews" in (folder / "run.log").read_text()


@pytest.mark.slow
def test_the_wheel_carries_the_options_and_the_backbones(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    inside = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(inside)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "moe_runner.train", "--cfg", "job"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(inside)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "num_experts: 64" in done.stdout
    packaged = {str(f.relative_to(inside / "moe_runner")) for f in inside.rglob("*.yaml")}
    assert packaged == {f"conf/{f.relative_to(ROOT / 'conf')}" for f in ROOT.glob("conf/**/*.yaml")}
    assert (inside / "moe_runner/assets/bert_tiny/model.safetensors").is_file()
