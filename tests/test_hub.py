import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from moe_runner import hub

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache, nothing that says offline, and a probe that has not been made."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")  # set first, so that what the probe writes is undone as well
    for name in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # remembers the proxies of its first call
    probe = hub.reachable
    probe.cache_clear()
    yield tmp_path
    probe.cache_clear()


@pytest.fixture
def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]  # bound, but nobody listens


def snapshot(cache: Path, repository: str, *files: str, revision="main", sha=SHA) -> Path:
    """Make a snapshot as huggingface_hub does: the files are links into blobs/."""
    root = cache / repository
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(sha)
    for number, file in enumerate(files):
        blob = root / "blobs" / f"{sha[:8]}{number}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_text("{}")
        link = root / "snapshots" / sha / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return root / "snapshots" / sha


def serve(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_cached_model_needs_config_and_weights(home):
    cache = home / "hub"
    assert hub.cached_model("org/name") is None
    folder = snapshot(cache, "models--org--name", "config.json")
    assert hub.cached_model("org/name") is None
    snapshot(cache, "models--org--name", "model.safetensors")
    assert hub.cached_model("org/name", "main") == folder
    assert hub.cached_model("org/name", SHA) == folder
    assert hub.cached_model("org/name", "v2") is None


def test_the_commit_is_that_of_the_cache(home):
    cache = home / "hub"
    snapshot(cache, "models--org--name", "config.json", "model.safetensors")
    assert hub.model_commit("org/name", "main") == SHA
    assert hub.model_commit("org/name", "f" * 40) == "f" * 40  # is one
    snapshot(cache, "datasets--org--glue", "cola/train-00000-of-00001.parquet")
    assert hub.dataset_commit("org/glue", "cola", "train", "main") == SHA


def test_a_branch_that_was_fetched_by_its_commit_is_found_without_the_hub(home, monkeypatch):
    folder = snapshot(home / "hub", "models--org--name", "config.json", "model.safetensors")
    other = snapshot(home / "hub", "models--org--other", "config.json", "model.safetensors")
    for place in (folder, other):
        for file in (place.parents[1] / "refs").iterdir():
            file.unlink()  # huggingface_hub writes none for what is asked for by its commit
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "_answer", lambda path: {"sha": SHA})
    monkeypatch.setattr(hub, "_resolved", {})
    assert hub.cached_model("org/name", "step1000") is None
    assert hub.model_commit("org/name", "step1000") == SHA
    hub.keep_reference("model", "org/name", SHA)
    assert hub.cached_model("org/name", "step1000") == folder
    assert hub.cached_model("org/name") is None  # nobody has said that main is that commit
    hub.keep_reference("model", "org/other", SHA)
    assert hub.cached_model("org/other") is None


def test_what_is_nowhere_has_no_commit(home, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert hub.model_commit("org/none", "main") is None
    assert hub.dataset_commit("org/none", "default", "train", "main") is None
    assert hub.model_config("org/none", "main") is None


def test_a_model_with_pickled_weights_only_is_cached(home):
    folder = snapshot(home / "hub", "models--org--name", "config.json", "pytorch_model.bin")
    assert hub.cached_model("org/name") == folder


def test_a_data_set_is_found_under_the_library_s_spelling_of_its_name(home):
    place = home / "datasets" / "SetFit___sent_eval-cr" / "default" / "0.0.0" / SHA
    place.mkdir(parents=True)
    (place / "sent_eval-cr-train.arrow").write_text("")
    found = hub.cached_dataset("SetFit/SentEval-CR", "default", "train")
    assert found == (place / "sent_eval-cr-train.arrow",)
    folder = snapshot(home / "hub", "datasets--o--d", "data/train-00000-of-00001.parquet")
    assert hub.cached_dataset("o/d", "default", "train") == (
        folder / "data" / "train-00000-of-00001.parquet",
    )


def test_weights_in_parts_are_cached_when_every_part_is_there(home):
    files = ["config.json", "model-00001-of-00002.safetensors"]
    folder = snapshot(home / "hub", "models--org--name", *files)
    index = {"weight_map": {"a": files[1], "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.cached_model("org/name") is None
    (folder / "model-00002-of-00002.safetensors").write_text("")
    assert hub.cached_model("org/name") == folder


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_the_cache_folder_follows_the_environment(home, monkeypatch, variable):
    folder = snapshot(home / "else", "models--gpt2", "config.json", "model.safetensors")
    assert hub.cached_model("gpt2") is None
    monkeypatch.setenv(variable, str(home / "else"))
    assert hub.cached_model("gpt2") == folder


def test_a_cached_dataset_is_the_parquet_files_of_its_split(home):
    files = [f"cola/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
    folder = snapshot(home / "hub", "datasets--org--glue", *files)
    assert hub.cached_dataset("org/glue", "cola", "train") == (folder / files[0],)
    assert hub.cached_dataset("org/glue", "cola", "test") == ()
    assert hub.cached_dataset("org/glue", "rte", "train") == ()


def test_a_dataset_of_which_a_part_is_missing_is_not_cached(home):
    names = [f"c/train-0000{i}-of-00002.parquet" for i in (0, 1)]
    folder = snapshot(home / "hub", "datasets--org--name", *names)
    assert len(hub.cached_dataset("org/name", "c", "train")) == 2
    (folder / names[1]).resolve().unlink()  # a link without its blob
    assert hub.cached_dataset("org/name", "c", "train") == ()


def test_the_cache_of_the_datasets_library_counts_as_well(home):
    folder = home / "datasets" / "org___glue" / "cola" / "0.0.0" / SHA
    folder.mkdir(parents=True)
    (folder / "glue-train.arrow").write_text("")
    assert hub.cached_dataset("org/glue", "cola", "train") == (folder / "glue-train.arrow",)
    assert hub.cached_dataset("org/glue", "cola", "train", SHA) == (folder / "glue-train.arrow",)
    assert hub.cached_dataset("org/glue", "cola", "train", "f" * 40) == ()
    assert hub.cached_dataset("org/glue", "cola", "train", "v2") == ()


def test_what_is_cached_has_no_problem_and_asks_nobody(home, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("asked the Hub"))
    snapshot(home / "hub", "models--org--name", "config.json", "model.safetensors")
    assert hub.problem("model", "org/name", "main", "use another") is None


def test_a_closed_port_is_a_problem_and_sets_offline(monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    remedy = "use model=gpt2_tiny, or model.path=<folder>"
    assert hub.problem("model", "openai-community/gpt2", "main", remedy) == (
        "cannot load 'openai-community/gpt2': not in the local Hugging Face cache and the Hub is "
        "unreachable; use model=gpt2_tiny, or model.path=<folder>"
    )
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    line = hub.problem("dataset", "org/glue", "v2", "stop", config="cola", split="train")
    assert line is not None
    assert line.startswith("cannot load 'org/glue' (cola, train, revision v2): not in")


@pytest.mark.parametrize(
    ("answer", "expected"), [(200, True), (404, True), (407, False), (502, False)]
)
def test_a_server_that_answers_is_reachable_unless_a_proxy_refuses(monkeypatch, answer, expected):
    server = serve(answer)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert hub.reachable() is expected
    assert bool(os.environ["HF_HUB_OFFLINE"]) is not expected
    server.shutdown()
    assert hub.reachable() is expected  # asked once
    server.server_close()


def test_the_probe_goes_through_a_proxy_of_the_environment(monkeypatch):
    proxy = serve(200)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert hub.reachable()
    proxy.shutdown()
    proxy.server_close()


def test_a_socket_that_never_answers_costs_three_seconds_at_most(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        assert not hub.reachable()
        assert time.monotonic() - start < 3


def test_offline_mode_of_the_user_is_not_probed(monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda answered: pytest.fail("asked the Hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.reachable()


def test_an_endpoint_that_is_no_address_is_unreachable(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert not hub.reachable()


def test_the_libraries_go_offline_after_a_failed_probe(closed_port):
    code = (
        "import sys; {before}from moe_runner import hub; hub.reachable(); import datasets; "
        "from huggingface_hub.constants import is_offline_mode; "
        "assert is_offline_mode() and datasets.config.HF_HUB_OFFLINE"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"}
    for before in ("", "import datasets; "):  # the probe first, as it should be, and too late
        command = [sys.executable, "-c", code.format(before=before)]
        subprocess.run(command, check=True, env=environment)


def test_the_token_is_for_the_hub_and_not_for_where_it_sends_us(monkeypatch):
    seen = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            host = self.headers["Host"].partition(":")[0]
            seen[host] = self.headers["Authorization"]
            if host == "127.0.0.1":
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{server.server_port}/there")
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(hub, "reachable", lambda: True)
    hub._answer.cache_clear()
    assert hub._answer("a/b/resolve/main/config.json") == {}
    server.shutdown()
    server.server_close()
    assert seen == {"127.0.0.1": "Bearer hf_secret", "localhost": None}
