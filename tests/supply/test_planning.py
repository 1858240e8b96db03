"""Plans, reports and finished results: they ask no other machine and need no write access."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moe_runner.options.folders import option_folders
from moe_runner.runs.result import write_result
from moe_runner.runs.store import Store
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan
from tests.results import make_result
from tests.supply.commands import GUARD, call, without_network
from tests.torture.kills import fill

RUN = ["moe-run", "task=glue_mini/cola", "method=dense"]
COMMANDS = {
    "a plan": ([*RUN, "dry_run=true"], "1 runs, 1 done, 0 to do"),
    "a finished run": (RUN, "25.0"),
    "the plan of a study": (
        ["moe-run", "study=emoe_gates", "dry_run=true"],
        "emoe_gates        3     3",
    ),
    "status": (["moe-report", "status", "study=emoe_gates"], "distinct runs"),
    "tables": (["moe-report", "tables", "study=emoe_gates", "format=none"], "emoe_gates"),
    "tasks": (["moe-report", "tasks"], "glue_mini/cola"),
    "clean": (["moe-report", "clean", "dry_run=true"], "would be removed"),
}
RENDERED = ["moe-report", "tables", "study=emoe_gates"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a store of finished runs: those of a study, and one more."""
    folder = tmp_path_factory.mktemp("place")
    fill(folder / "outputs")
    common = {"task": "glue_mini/cola", "method": "dense"}
    (run,) = make_plan(compose_settings(option_folders(), common)).runs
    store = Store(folder / "outputs")
    store.folder(run.id).mkdir()
    result = make_result(run.axes(), 0.25, id=run.id, settings=run.settings())
    write_result(store.folder(run.id) / "result.json", result)
    return folder


def test_the_guard_sees_a_look_up_and_a_connection(tmp_path):
    log = tmp_path / "log"
    for attempt in (
        "socket.getaddrinfo('example.invalid', 80)",
        "socket.socket().connect(('192.0.2.1', 9))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "__import__('urllib.request').request.urlopen('http://192.0.2.1:9', timeout=1)",
    ):
        done = subprocess.run(
            [*without_network(), sys.executable, "-c", f"import socket; {attempt}"],
            env={"PYTHONPATH": str(GUARD), "NETWORK_LOG": str(log)}, capture_output=True, text=True,
        )  # fmt: skip
        assert "no network in this test" in done.stderr
        assert "192.0.2.1" in log.read_text() or "example.invalid" in log.read_text()
        log.unlink()


@pytest.mark.parametrize("name", COMMANDS)
def test_it_asks_no_other_machine_and_a_store_that_can_only_be_read_is_enough(
    name, place, tmp_path
):
    before = listing(place)
    words, expected = COMMANDS[name]
    output = [] if name == "tasks" else outputs(words[0], place / "outputs")
    start = [*without_network(), *read_only(place, tmp_path)]
    done = call([*words, *output], tmp_path, before=start)
    assert (done.returncode, expected in done.stdout) == (0, True), done.stdout + done.stderr
    assert not (tmp_path / "network.log").exists(), (tmp_path / "network.log").read_text()
    assert "Traceback" not in done.stderr
    assert "Read-only" not in done.stderr
    assert listing(place) == before
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.long
def test_the_report_of_a_read_only_store_goes_elsewhere(place, tmp_path):
    words, only = [*RENDERED, *outputs("moe-report", place / "outputs")], read_only(place, tmp_path)
    done = call(words, tmp_path, before=only)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"{place}/outputs/reports")
    assert "Read-only file system" in done.stderr
    done = call([*words, f"to={tmp_path}/report"], tmp_path, before=only)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_run_for_a_read_only_store_is_refused_at_once(place, tmp_path):
    words = [*RUN, "seed=1", *outputs("moe-run", place / "outputs")]
    done = call(words, tmp_path, before=read_only(place, tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"paths.output={place}/outputs: Read-only file system; use a folder that can be written to"
    )


def test_evaluating_a_run_without_its_config_is_one_line(place, tmp_path):
    run_id = Store(place / "outputs").ids()[0]
    folder = f"{place}/outputs/runs/{run_id}"
    words = ["moe-run", f"evaluate='{run_id}'", *outputs("moe-run", place / "outputs")]
    done = call(words, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{folder} has no config.yaml, which says what was run; run its command again with "
        "keep_model=best rerun=true\n"
    )


@pytest.mark.parametrize("umask", [0o002, 0o077])  # 022 is what the other tests run with
def test_a_report_has_the_modes_of_the_users_umask(umask, place, tmp_path):
    output = outputs("moe-report", place / "outputs")
    words = [*RENDERED, *output, "format=md,csv", f"to={tmp_path}/a/b"]
    done = call(words, tmp_path, umask=umask)
    assert done.returncode == 0, done.stderr
    found = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (tmp_path / "a").rglob("*")}
    assert found == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


def outputs(program: str, folder: Path) -> list[str]:
    return [f"output={folder}"] if program == "moe-report" else [f"paths.output={folder}"]


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def read_only(folder: Path, home: Path) -> list[str]:
    """Word the start of a command that sees a folder as a read-only file system.

    The permissions of files do not bind root, so it is a mount of the command's own.
    """
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    words = ["unshare", "--mount", "--", "sh", "-c", script, str(folder)]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, cwd=home)
    if tried.returncode:
        pytest.skip(f"no read-only mount here: {tried.stderr.strip()}")
    return words
