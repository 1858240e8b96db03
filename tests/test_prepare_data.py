"""scripts/prepare_data.py: a folder is checked; a Hub (here: a server of this test) fills it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
COMMIT = "c" * 40


def prepare(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the script in a process of its own, offline unless told otherwise."""
    own = {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *arguments],
        env=os.environ | own | environment, cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("prepare_data")


@pytest.fixture
def cola(tmp_path) -> Path:
    folder = tmp_path / "glue"
    (folder / "cola").mkdir(parents=True)
    for split in ("train", "validation"):
        table = pa.table({"sentence": [split], "label": [1]})
        pq.write_table(table, folder / "cola" / f"{split}.parquet")
    return folder


def test_checksums_are_written_then_compared(cola, tmp_path):
    first = prepare("glue/cola", "--folder", str(cola), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        f"2 checksums added to {cola}/SHA256SUMS",
        f"2 files are complete: moe-run task=glue/cola task.data_dir={cola}",
    ]
    digest = hashlib.sha256((cola / "cola" / "train.parquet").read_bytes()).hexdigest()
    assert (cola / "SHA256SUMS").read_text().startswith(f"{digest}  cola/train.parquet\n")
    second = prepare("glue/cola", "--folder", str(cola), cwd=tmp_path)
    assert second.stdout.startswith(f"2 files agree with {cola}/SHA256SUMS\n")
    with (cola / "cola" / "train.parquet").open("ab") as file:
        file.write(b"x")
    third = prepare("glue/cola", "--folder", str(cola), cwd=tmp_path)
    assert third.returncode == 1
    assert third.stderr == (
        f"damaged: {cola}/cola/train.parquet differs from {cola}/SHA256SUMS; "
        "delete it and run this again\n"
    )


def test_offline_it_says_within_seconds_what_is_missing(tmp_path):
    started = time.monotonic()
    done = prepare(
        "wikitext2", "--folder", str(tmp_path / "text"), cwd=tmp_path,
        HF_HUB_OFFLINE="", HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert time.monotonic() - started < 10
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("missing: ")] == [
        "wikitext2 train",
        "wikitext2 validation",
    ]
    assert "looked for train.txt, wiki.train.raw and wikitext-2-raw-v1/train-*" in done.stderr
    assert lines[-1] == "the Hub is unreachable, so nothing was downloaded"
    assert not (tmp_path / "text").exists()


def test_unknown_and_generated_tasks(tmp_path):
    unknown = prepare("glu", cwd=tmp_path)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("task=glu is not an option; did you mean glue?")
    generated = prepare("glue_mini", cwd=tmp_path)
    assert generated.returncode == 0
    assert "generated; there is nothing to prepare" in generated.stdout


def test_real_copies_are_found_and_rte_is_missing(script, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(script.hub, "reachable", lambda: False)
    (tmp_path / "glue").mkdir()
    for task in (shared_data / "glue").iterdir():
        (tmp_path / "glue" / task.name).symlink_to(task)
    (tmp_path / "glue" / "ood").symlink_to(shared_data / "ood")
    options = script.replace(
        script.read_options("gluex"),
        data_dir=str(tmp_path / "glue"),
        ood_dir=str(tmp_path / "glue" / "ood"),
    )
    found = script.look(options)
    assert set(found.missing) == {"rte train", "rte validation"}
    assert len(found.files) == 2 * 7 + 10  # seven tasks; the ten sets of the paper that are there
    assert {"qnli ood/newsqa", "rte ood/hans", "rte ood/scitail"} < set(found.optional)
    sums = script.read_sums(shared_data / "SHA256SUMS")
    assert sums["glue/cola/train.parquet"] == script.sha256(
        shared_data / "glue" / "cola" / "train.parquet"
    )
    assert script.prepare("glue/cola", tmp_path / "glue") == 0


@pytest.fixture
def fake_hub(tmp_path):
    """Serve two data sets as the Hub does: listing, sizes with checksums, files."""
    files: dict[str, bytes] = {}
    for repository, name in (
        ("nyu-mll/glue", "sst2/train-00000-of-00001.parquet"),
        ("nyu-mll/glue", "sst2/validation-00000-of-00001.parquet"),
        ("nyu-mll/glue", "cola/train-00000-of-00001.parquet"),
        ("stanfordnlp/imdb", "plain_text/test-00000-of-00001.parquet"),
    ):
        column = "text" if "imdb" in repository else "sentence"
        place = tmp_path / "made.parquet"
        pq.write_table(pa.table({column: [name], "label": [1]}), place)
        files[f"{repository}/{name}"] = place.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/datasets/"):
                repository = "/".join(path.split("/")[3:5])
                names = [
                    n.removeprefix(f"{repository}/") for n in files if n.startswith(repository)
                ]
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
                self.answer(json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith("/datasets/"):
                repository, name = "/".join(path.split("/")[2:4]), "/".join(path.split("/")[6:])
                body = files[f"{repository}/{name}"]
                etag = hashlib.sha256(body).hexdigest()
                self.answer(body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(b"")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            asked = self.rfile.read(length).decode()
            repository = "/".join(self.path.split("/")[3:5])
            infos = []
            for key, body in files.items():
                name = key.removeprefix(f"{repository}/")
                if key.startswith(repository) and name.replace("/", "%2F") in asked.replace(
                    "/", "%2F"
                ):
                    lfs = {"oid": self.digest(name, body), "size": len(body), "pointerSize": 1}
                    size = len(body)
                    infos.append(
                        {"type": "file", "path": name, "size": size, "oid": "", "lfs": lfs}
                    )
            self.answer(json.dumps(infos).encode(), Content_Type="application/json")

        def digest(self, name: str, body: bytes) -> str:
            wrong = "0" * 64
            return wrong if name.startswith("cola") else hashlib.sha256(body).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_bar_counts_the_bytes_that_come(script):
    came: list[int] = []
    with script.forwarding(came.append)(total=5, desc="x") as bar:
        bar.update(3)
        bar.update(2)
    assert came == [3, 2]


def test_missing_files_come_from_the_hub(fake_hub, tmp_path, script):
    folder = tmp_path / "glue"
    online = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": fake_hub, "HF_HUB_DISABLE_XET": "1"}
    done = prepare("glue/sst2", "--folder", str(folder), cwd=tmp_path, **online)
    assert done.returncode == 0, done.stderr
    assert "2 files are complete" in done.stdout
    assert set(script.read_sums(folder / "SHA256SUMS")) == {
        "sst2/train-00000-of-00001.parquet",
        "sst2/validation-00000-of-00001.parquet",
    }
    damaged = prepare("glue/cola", "--folder", str(folder), cwd=tmp_path, **online)
    assert damaged.returncode == 1
    assert "train-00000-of-00001.parquet was damaged on the way and is removed" in damaged.stderr
    assert not list((folder / "cola").glob("*.parquet"))
