"""What `moe-report` is asked for that it cannot give, and stores that are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

from moe_runner.report.command import COMMANDS
from tests.torture.bad.case import Build, Case, both

CONTENTS: dict[str, bytes] = {
    "empty": b"", "half": b'{"id": "', "a list": b"[]", "null": b"null", "no keys": b"{}",
    "latin 1": b'{"a": "\xe9"}',
}  # fmt: skip


def cases() -> list[Case]:
    """List the cases."""
    return [*command_lines(), *damaged()]


def report(name: str, *says: str, words: str, build: Build | None = None, code: int = 2) -> Case:
    """Make a case of moe-report."""
    given = tuple(words.split(" ")) if words else ()
    return Case(f"report: {name}", given, says, code, build, "moe-report", left=True)


def a_file(folder: Path) -> None:
    """Put a file where the folder of the runs is looked for."""
    (folder / "out").write_text("hello")


def command_lines() -> list[Case]:
    """Give words that mean nothing."""
    every: list[Case] = []
    for name in COMMANDS:
        if name == "tasks":
            continue
        every += [
            report(f"{name} unknown key", "nope", words=f"{name} nope=1"),
            report(f"{name} no key", "hello", words=f"{name} hello"),
            report(f"{name} a file for the store", "HERE/out", words=f"{name} output=HERE/out",
                   build=a_file),
            report(f"{name} too long a place", "output=", words=f"{name} output={'x' * 300}"),
        ]  # fmt: skip
    studies = [
        report(f"{name} {key}", "nope", words=f"{name} {key}=nope")
        for name in ("tables", "status")
        for key in ("study", "profile", "study.only.method", "config_dir")
    ]
    return [
        *every,
        *studies,
        report("unknown command", "nope", words="nope"),
        report("tasks unknown key", "nope", words="tasks nope=1"),
        report("tables unknown format", "nope", words="tables format=nope"),
        report("tables to a file", "HERE/out", words="tables study=emoe_gates to=HERE/out",
               build=a_file),
        report("tables to nowhere", "/proc/x", words="tables study=emoe_gates to=/proc/x"),
        report("clean dry_run", "dry_run=perhaps", words="clean dry_run=perhaps"),
        report("clean yes", "yes=perhaps", words="clean yes=perhaps"),
    ]  # fmt: skip


def store(folder: Path) -> None:
    """Write made-up results of a study."""
    from tests.torture.kills import fill

    fill(folder / "out")


def first_run(folder: Path) -> Path:
    """Find one of its runs."""
    return min((folder / "out" / "runs").iterdir())


def damaged() -> list[Case]:
    """Damage a result or a status: it is named; `status` counts it, `clean` leaves the run."""

    def content(name: str, data: bytes) -> Build:
        return both(store, lambda folder: (first_run(folder) / name).write_bytes(data) and None)

    def folder_for(name: str) -> Build:
        def damage(folder: Path) -> None:
            file = first_run(folder) / name
            file.unlink(missing_ok=True)
            file.mkdir()

        return both(store, damage)

    def loop(name: str) -> Build:
        def damage(folder: Path) -> None:
            file = first_run(folder) / name
            file.unlink(missing_ok=True)
            file.symlink_to(name)

        return both(store, damage)

    def file_for_run(folder: Path) -> None:
        store(folder)
        run = first_run(folder)
        shutil.rmtree(run)
        run.write_text("hello")

    def file_for_runs(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "runs").write_text("hello")

    where = "study=emoe_gates output=HERE/out"
    results = [
        *((f"result {name}", content("result.json", data)) for name, data in CONTENTS.items()),
        ("result a folder", folder_for("result.json")),
        ("result a loop", loop("result.json")),
    ]
    states = [
        *((f"status {name}", content("status.json", data)) for name, data in CONTENTS.items()
          if name != "no keys"),
        ("status a folder", folder_for("status.json")),
        ("status a loop", loop("status.json")),
    ]  # fmt: skip
    return [
        *(report(f"tables {name}", "result.json", words=f"tables {where}", build=build)
          for name, build in results),
        *(report(f"status {name}", "status.json", words=f"status {where}", build=build, code=0)
          for name, build in states),
        *(report(f"clean {name}", "left alone", words="clean output=HERE/out", build=build, code=0)
          for name, build in states),
        report("tables, a file for runs", "HERE/out/runs", words=f"tables {where}",
               build=file_for_runs),
        report("status, a file for runs", "HERE/out/runs", words=f"status {where}",
               build=file_for_runs, code=0),
        report("clean, a file for runs", "HERE/out/runs", words="clean output=HERE/out",
               build=file_for_runs),
        report("clean, a file for a run", words="clean output=HERE/out", build=file_for_run,
               code=0),
    ]  # fmt: skip
