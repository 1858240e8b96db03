"""Checkpoints, caches and stores that were damaged: coped with, or named; never another number."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.torture import commands, runs
from tests.torture.bad.case import Build, Case, both, edited

NAME = "emoe kept"
DAMAGES = ("half", "empty", "noise", "missing", "folder")
CHECKPOINT = (
    "trainer_state.json", "trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
)  # fmt: skip
AT = 11  # the update at which the run is killed; a checkpoint every third
WORDS = (
    *runs.RUNS[NAME], *runs.SHORT, "paths.output=HERE/outputs", "paths.cache=HERE/cache",
)  # fmt: skip


def cases() -> list[Case]:
    """List the cases."""
    return [*checkpoints(), *caches(), *stores(), *evaluations()]


@cache
def made() -> Path:
    """Carry out one run, and the same one until it is killed, once for all cases; where they are.

    Below it are `done` and `killed`, each with outputs and cache.
    """
    place = Path(tempfile.mkdtemp(prefix="torture-kept-"))
    for name in ("done", "killed"):
        folder = place / name
        folder.mkdir()
        stop = die_in_training if name == "killed" else None
        words = [word.replace("HERE", str(folder)) for word in WORDS]
        ended = commands.forked("moe-run", *words, folder=folder, prepare=stop).wait()
        assert ended.killed if stop else ended.code == 0, ended.err
    return place


def die_in_training() -> None:
    """Let this process die at an update."""
    import torch

    step, seen = torch.optim.AdamW.step, []

    def dying(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = dying  # type: ignore[method-assign]


def numbers() -> dict:
    """Read what the run finds undisturbed."""
    return runs.numbers(runs.store_of(made() / "done"))


def copied(name: str) -> Build:
    """Begin with a copy of what `made` made."""
    return lambda folder: shutil.copytree(made() / name, folder, dirs_exist_ok=True) and None


def run_of(folder: Path) -> Path:
    """Find the folder of the only run."""
    (found,) = (folder / "outputs" / "runs").iterdir()
    return found


def spoil(file: Path, how: str) -> None:
    """Damage a file."""
    content = file.read_bytes()
    file.unlink()
    if how == "half":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "noise":
        file.write_bytes(b"\xfe" * len(content))
    elif how == "folder":
        file.mkdir()
    else:
        assert how == "missing"


def checkpoints() -> list[Case]:
    """Damage every file of the newest checkpoint, and the folder: the one before it counts."""

    def newest(folder: Path) -> Path:
        found = (run_of(folder) / "checkpoint").glob("checkpoint-*")
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def spoiled(name: str, how: str) -> Build:
        return lambda folder: spoil(newest(folder) / name, how)

    def file_for_all(folder: Path) -> None:
        shutil.rmtree(run_of(folder) / "checkpoint")
        (run_of(folder) / "checkpoint").write_text("hello")

    def loop_for_all(folder: Path) -> None:
        shutil.rmtree(run_of(folder) / "checkpoint")
        (run_of(folder) / "checkpoint").symlink_to("checkpoint")

    def none(folder: Path) -> None:
        shutil.rmtree(run_of(folder) / "checkpoint")

    def torn_metrics(folder: Path) -> None:
        with (run_of(folder) / "metrics.jsonl").open("a") as file:
            file.write('{"half a li')

    def later(folder: Path) -> None:
        """Leave a newer folder without content, as a kill does."""
        (run_of(folder) / "checkpoint" / "checkpoint-12").mkdir()

    def case(name: str, damage: Build) -> Case:
        build = both(copied("killed"), damage)
        return Case(f"checkpoint: {name}", WORDS, (), 0, build, numbers=numbers)

    return [
        *(case(f"{file} {how}", spoiled(file, how)) for file in CHECKPOINT for how in DAMAGES),
        case("none", none),
        case("an empty newer one", later),
        case("half a line of metrics", torn_metrics),
        Case("checkpoint: a file", WORDS, ("checkpoint",), 1, both(copied("killed"), file_for_all)),
        Case("checkpoint: a loop", WORDS, ("checkpoint",), 1, both(copied("killed"), loop_for_all)),
    ]


def caches() -> list[Case]:
    """Damage what is kept of texts and clusters: it is made again, to the same numbers."""

    def forgotten(folder: Path) -> None:
        run = run_of(folder)
        shutil.rmtree(run)

    def spoiled(pattern: str, how: str) -> Build:
        def damage(folder: Path) -> None:
            found = sorted((folder / "cache").glob(pattern))
            assert found, pattern
            for file in found:
                spoil(file, how)

        return damage

    kinds = ("clusters/*.json", "data/*.arrow", "data/*.json", "hashes.json")
    whole: list[tuple[str, Build]] = [
        ("a file for the folder of clusters", stands_for("cache/clusters")),
        ("a file for the folder of data", stands_for("cache/data")),
    ]
    return [
        *(
            Case(
                f"cache: {kind} {how}", WORDS, (), 0,
                both(copied("done"), forgotten, spoiled(kind, how)), numbers=numbers,
            )
            for kind in kinds
            for how in DAMAGES
            if how != "folder"
        ),
        *(
            Case(f"cache: {name}", WORDS, ("HERE/cache",), 1, both(copied("done"), forgotten, how))
            for name, how in whole
        ),
    ]  # fmt: skip


def stands_for(path: str) -> Build:
    """Put a file where a folder was."""

    def damage(folder: Path) -> None:
        shutil.rmtree(folder / path)
        (folder / path).write_text("hello")

    return damage


def stores() -> list[Case]:
    """Damage the files of a finished run: nothing is taken for a result that is none."""

    def in_run(name: str, change: Callable[[Path], None]) -> Build:
        return lambda folder: change(run_of(folder) / name)

    def text(content: str | bytes) -> Callable[[Path], None]:
        data = content.encode() if isinstance(content, str) else content
        return lambda file: file.write_bytes(data) and None

    def keys(**values: object) -> Callable[[Path], None]:
        return lambda file: edited(file.name, **values)(file.parent)

    def case(name: str, damage: Build, *says: str, code: int = 2) -> Case:
        same = numbers if code == 0 else None
        build = both(copied("done"), damage)
        return Case(f"store: {name}", WORDS, says, code, build, numbers=same, left=True)

    result = "result.json"
    contents: list[tuple[str, str | bytes]] = [
        ("empty", ""), ("half a mapping", '{"id": "'), ("a list", "[]"), ("null", "null"),
        ("a number", "5"), ("no keys", "{}"), ("latin 1", b'{"a": "\xe9"}'),
        ("zero bytes", b"\0\0"),
    ]  # fmt: skip
    wrong: list[tuple[str, dict[str, object]]] = [
        ("a foreign id", {"id": "0123456789abcdef"}),
        ("no number as score", {"primary": float("nan")}),
        ("a text as score", {"primary": "good"}),
        ("an unknown metric", {"metrics": ["nope"]}),
        ("metrics that are text", {"metrics": "accuracy"}),
        ("a later schema", {"schema": 99}),
        ("axes that are none", {"axes": {}}),
        ("a curve that is none", {"learning_curve": 5}),
        ("sets that are none", {"id_metrics": []}),
    ]

    def runs_is_a_file(folder: Path) -> None:
        shutil.rmtree(folder / "outputs" / "runs")
        (folder / "outputs" / "runs").write_text("hello")

    def run_is_a_file(folder: Path) -> None:
        run = run_of(folder)
        shutil.rmtree(run)
        run.write_text("hello")

    def result_is_a_folder(folder: Path) -> None:
        (run_of(folder) / result).unlink()
        (run_of(folder) / result).mkdir()

    return [
        *(
            case(f"result {name}", in_run(result, text(content)), "result.json", code=1)
            for name, content in contents
        ),
        *(
            case(f"result: {name}", in_run(result, keys(**values)), "result.json", code=1)
            for name, values in wrong
        ),
        *(
            case(f"status {name}", in_run("status.json", text(content)), code=0)
            for name, content in contents
        ),
        case("result is a folder", result_is_a_folder, "result.json", code=1),
        case("no status", in_run("status.json", Path.unlink), code=0),
        case("no config", in_run("config.yaml", Path.unlink), code=0),
        case("no environment", in_run("environment.json", Path.unlink), code=0),
        case("runs is a file", runs_is_a_file, "HERE/outputs/runs"),
        case("the run is a file", run_is_a_file, "HERE/outputs/runs", code=1),
    ]


def evaluations() -> list[Case]:
    """Evaluate again what cannot be."""
    run_id = run_of(made() / "done").name

    def case(name: str, damage: Build | None, *says: str, words: tuple[str, ...] = ()) -> Case:
        given = (f"evaluate={run_id}", *WORDS[-2:], *words)
        build = copied("done") if damage is None else both(copied("done"), damage)
        return Case(f"evaluate: {name}", given, says, build=build, left=True)

    def in_run(name: str, change: Callable[[Path], object]) -> Build:
        return lambda folder: change(run_of(folder) / name) and None

    best = "checkpoint/best/trained.safetensors"
    return [
        case("no config", in_run("config.yaml", Path.unlink), "config.yaml"),
        case("an empty config", in_run("config.yaml", lambda p: p.write_text("")), "config.yaml"),
        case("a config that is a list", in_run("config.yaml", lambda p: p.write_text("[]")),
             "config.yaml"),
        case("a config that is no yaml", in_run("config.yaml", lambda p: p.write_text("a: [")),
             "config.yaml"),
        case("no result", in_run("result.json", Path.unlink), "is not done"),
        case("half a result", in_run("result.json", lambda p: p.write_text("{")), "result.json"),
        case("no weights", in_run(best, Path.unlink), "keep_model=best"),
        case("half of the weights", in_run(best, lambda p: spoil(p, "half")),
             "checkpoint/best cannot be loaded"),
        case("no weights at all", in_run(best, lambda p: p.write_bytes(b"")),
             "checkpoint/best cannot be loaded"),
        case("an unknown set", None, "nope", words=("task.ood=[nope]",)),
    ]  # fmt: skip
