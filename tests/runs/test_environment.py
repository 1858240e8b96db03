import json
import os
import shutil
import subprocess
import sys

import pytest

from moe_runner.runs import environment as module
from moe_runner.runs.environment import environment


def test_environment_is_json_and_says_what_it_ran_on():
    found = environment(threads=1)
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == 1
    assert found["packages"]["torch"] is not None
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["cpu"]
    assert found["host"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("moe-runner-no-such-package",))
    assert environment(threads=None)["packages"] == {"moe-runner-no-such-package": None}


def test_environment_needs_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(threads=None)["git"] is None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set when the tests run in a git hook
    code = tmp_path / "src" / "code.py"
    code.parent.mkdir()
    code.touch()

    def git(*words):
        user = ["-c", "user.name=x", "-c", "user.email=x@x"]
        command = ["git", "-C", str(tmp_path), *user, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    return code, git


def test_git_gives_commit_and_dirty_flag(repository):
    code, git = repository
    assert module._git(code) is None  # not tracked: somebody else's repository
    git("add", ".")
    assert module._git(code) == {"commit": None, "dirty": True}
    git("commit", "-m", "first")
    assert module._git(code) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (code.parent / "new.py").touch()
    assert module._git(code)["dirty"] is True


def test_the_package_imports_nothing_heavy():
    names = "environment, identity, store"
    script = (
        f"import sys; from moe_runner import files; from moe_runner.runs import {names}; "
        "environment.environment(1); "
        "print({'torch', 'transformers', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"
