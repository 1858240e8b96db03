"""Every file of a store damaged in every way: a line or a named skip, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_runner.report.command import run
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import Store
from tests.torture.kills import fill

CONTENTS = {
    "empty": b"",
    "cut off": b'{"schema": 1, "id": "0123',
    "no UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a huge number": b'{"schema": 1, "attempts": ' + b"1" * 5000 + b"}",
    "deep": b"[" * 200_000,
    "zeros": b"\0" * 100,
    "another object": b'{"state": "bogus"}',
}
KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": lambda path: (path / "x").mkdir(parents=True),
    "a loop": lambda path: path.symlink_to(path),
}
VALUES = {  # of result.json, that no run writes
    "settings": [[], "x"],
    "axes": [[], {"seed": "x"}, {"method": []}],
    "metrics": [5, [5]],
    "id_metrics": [[], {"a": 5}, {"a": {"primary": 1, "loss": 0, "examples": 1e999}}],
    "ood_metrics": [{"a": {"accuracy": "x", "primary": 0.1, "loss": 0, "examples": 1}}],
    "primary": ["x", None, True, 10**400],
    "best_epoch": ["x", None, 10**400],
    "learning_curve": [5, [5], [{"step": "x", "epoch": 0, "loss": 0, "primary": 0}]],
    "parameters": [None, {"dense": 1}],
    "flops_per_token": [None],
    "converted_layers": [5, [5]],
    "clusters": [5],
    "routing": [5, {"routing/entropy": "x"}],
    "wall_seconds": ["x"],
    "updates": [1.5],
    "threads": ["x"],
    "data": [5, {"train": 5}],
    "skipped": [5],
    "weights": [5],
    "id": [[]],
    "schema": ["1", [1]],
}  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("filled") / "outputs"
    fill(output)
    return output


@pytest.fixture
def output(filled, tmp_path) -> Path:
    shutil.copytree(filled, tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture
def report(output, capsys) -> Callable:
    def call(command: str, *words: str) -> tuple[int, str, str]:
        study = [] if command == "clean" else ["study=emoe_gates"]
        code = run([command, *study, *words, f"output={output}"])
        return code, *capsys.readouterr()

    return call


def first(output: Path) -> Path:
    """The folder of a run; without its status, it is as if it was made by another command."""
    return output / "runs" / Store(output).ids()[0]


def damage(path: Path, how: str) -> None:
    path.unlink(missing_ok=True)
    if how in KINDS:
        KINDS[how](path)
    else:
        path.write_bytes(CONTENTS[how])


@pytest.mark.parametrize("how", [*CONTENTS, *KINDS])
def test_a_damaged_result_is_named_by_every_command(how, output, report):
    file = first(output) / "result.json"
    damage(file, how)
    code, out, err = report("tables", "format=none")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{file} ")
    assert err.endswith(f"; delete it and run {file.parent.name} again\n") or "schema=" in err
    code, out, err = report("status")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("damaged: ")]
    assert str(file) in line
    assert report("clean")[0] == 0


def test_all_damaged_results_are_named_at_once(output, report):
    store = Store(output)
    for run_id in store.ids():
        damage(store.folder(run_id) / "result.json", "empty")
    code, _, err = report("tables", "format=none")
    assert code == 2
    assert [line.split("/")[-2] for line in err.split(" is not readable")[0:1]] == [store.ids()[0]]
    assert err.count("is not readable") == len(store.ids()) == err.count("\n")


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in VALUES.items() for v in vs])
def test_a_value_of_a_wrong_type_is_told(key, value, output):
    file = first(output) / "result.json"
    tree = json.loads(file.read_text())
    if isinstance(value, dict) and key == "axes":
        value = tree[key] | value
    file.write_text(json.dumps(tree | {key: value}))
    with pytest.raises(StoreError) as told:
        Store(output).result(file.parent.name)
    assert str(told.value).startswith(f"{file} ")
    assert "\n" not in str(told.value)
    assert len(str(told.value).replace(str(file), "")) < 250


@pytest.mark.parametrize("how", [*CONTENTS, *KINDS])
def test_a_damaged_status_is_named(how, output, report):
    file = first(output) / "status.json"
    (file.parent / "result.json").unlink()
    damage(file, how)
    code, out, err = report("status")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("damaged: ")]
    assert f"{file} " in line
    assert line.endswith("; delete it; the run is kept")
    code, out, err = report("clean")
    assert (code, err) == (0, "")
    assert f"left alone: {file} " in out


@pytest.mark.parametrize(
    "status", [{"attempts": "x"}, {"state": []}, {"state": "running", "host": {}}, {"pid": 1.5}]
)
def test_a_status_of_wrong_types_is_named(status, output, report):
    file = first(output) / "status.json"
    (file.parent / "result.json").unlink()
    file.write_text(json.dumps(status))
    assert f"{file} cannot be understood ({list(status)[-1]} is " in report("status")[1]


@pytest.mark.parametrize("how", [*CONTENTS, *KINDS])
def test_any_error_txt_is_shown(how, output, report):
    folder = first(output)
    (folder / "result.json").unlink()
    (folder / "status.json").write_text('{"state": "failed", "attempts": 1}')
    damage(folder / "error.txt", how)
    code, out, _ = report("status")
    assert code == 0
    assert len([line for line in out.splitlines() if line.startswith("failed: ")]) == 1


@pytest.mark.parametrize("how", [*KINDS, "empty"])
@pytest.mark.parametrize("place", ["run", "runs", "reports", "report", "tables.md", ".lock"])
def test_what_stands_in_the_way_is_named(place, how, output, report):
    paths = {
        "run": first(output), "runs": output / "runs", "reports": output / "reports",
        "report": output / "reports" / "mini", "tables.md": output / "reports" / "mini/tables.md",
        ".lock": output / "reports" / "mini/.lock",
    }  # fmt: skip
    path = paths[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    if place in ("run", "runs"):
        shutil.rmtree(path)
    damage(path, how)
    fits = {"a loop": ("tables.md",)}  # it is replaced, as any link
    fits |= {"a folder": ("run", "runs", "reports", "report"), "empty": ("tables.md", ".lock")}
    for command in ("tables", "status", "clean"):
        code, out, err = report(command, *(["format=md"] if command == "tables" else []))
        told = out + err
        if command == "tables" and place not in fits.get(how, ()):
            assert code == 2
            assert err.count("\n") >= 1
            assert str(path) in told
            assert "Traceback" not in told
            assert ".tmp" not in told  # the file that the user knows
        assert code in (0, 2)


def test_a_link_that_leads_in_a_circle_does_not_stop_clean(output, report):
    folder = first(output)
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    other = output / "runs" / Store(output).ids()[1] / "checkpoint"
    other.mkdir()
    code, out, _ = report("clean")
    assert code == 0
    assert f"left alone: {folder} is a link" in out
    assert not other.exists()


@pytest.mark.parametrize("line", ["[]", "\xff", '{"load": 5}', '{"load": [["x"]]}', "[" * 100_000])
def test_damaged_metrics_are_named_where_they_are_drawn(line, output, capsys):
    file = first(output) / "metrics.jsonl"
    file.write_bytes(line.encode("latin-1") + b"\n")
    assert run(["tables", "study=emoe_gates", "format=html", f"output={output}"]) == 2  # a heat map
    err = capsys.readouterr().err
    assert err.startswith(str(file))
    assert err.count("\n") == 1
    assert err.endswith("delete that line\n")


def test_a_perplexity_without_bound_is_shown(output, capsys):
    file = first(output) / "result.json"
    tree = json.loads(file.read_text())
    tree["primary"] = tree["id_metrics"]["validation"]["primary"] = float("inf")
    file.write_text(json.dumps(tree))
    assert run(["tables", "study=emoe_gates", f"output={output}"]) == 0
    assert "inf" in capsys.readouterr().out
