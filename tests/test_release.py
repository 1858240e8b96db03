"""What is released: sdist and wheel, installed in an environment of their own."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import moe_runner

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def call(*words: object, **options) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the sdist, and the wheel from it, as `python -m build` does for a release."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def test_one_version_everywhere():
    assert moe_runner.__version__ == VERSION
    assert f"\n## [{VERSION}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.long
def test_the_sdist_has_what_its_tests_need(built):
    with tarfile.open(built / f"moe_runner-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = call("git", "ls-files", cwd=ROOT).split("\n") if (ROOT / ".git").exists() else []
    own = {name for name in kept if name and not name.startswith(".")}
    assert own <= names


@pytest.mark.long
def test_the_wheel_runs_alone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    configs = {path.relative_to(ROOT / "conf").as_posix() for path in ROOT.glob("conf/**/*.yaml")}
    assert {f"moe_runner/conf/{name}" for name in configs} <= set(names)
    assert not [name for name in names if name.startswith("tests/")]

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    call(sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", wheel)
    place = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    # The dependencies of this environment, but not the project, which is there by a finder.
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    alone = {"cwd": tmp_path, "env": quiet}
    run, report = environment / "bin" / "moe-run", environment / "bin" / "moe-report"
    found = call(python, "-c", "import moe_runner; print(moe_runner.__file__)", **alone)
    assert Path(found.strip()).is_relative_to(environment)
    assert VERSION in call(run, "--version", **alone)
    few = ["trainer.max_steps=1", "task.limit=8", "task.eval_limit=8", "trainer.batch_size=4"]
    call(run, "method=emoe", "model=bert_tiny", "task=glue_mini/cola", *few, **alone)
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1
    assert "emoe" in call(report, "runs", **alone)
