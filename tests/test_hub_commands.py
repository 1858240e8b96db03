"""The user's own commands against a Hub: empty caches, real ids, a server on this machine.

Xet is not tested: the server offers no file by it, as mirrors do.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import hub_content
from tests.hub_server import GRANTED, STRANGER, Faults, Hub

ROOT = Path(__file__).parents[1]
QUICK = [
    "device=cpu",
    "threads=1",
    "trainer.max_steps=2",
    "trainer.batch_size=4",
    "trainer.eval_batch_size=4",
    "task.limit=16",
    "task.eval_limit=8",
]
RTE = ["method=emoe", "model=gpt2", "task=glue", "task.members=[rte]", *QUICK]
COMMANDS = {
    "glue": ["method=emoe", "model=gpt2", "task=glue", "task.members=[rte,sst2]", *QUICK],
    "gluex": ["method=emoe", "model=gpt2", "task=gluex", "task.members=[sst2]", *QUICK],
    "pacs": ["model=vit_tiny", "task=domainbed/pacs", "task.members=[pacs/photo]", *QUICK,
             "trainer.batch_size=3"],
    "alpaca": ["model=gpt2", "task=alpaca", *QUICK, "task.limit=128", "task.max_length=128"],
    "squad": ["method=hypermoe", "model=switch_tiny", "task=squad", *QUICK, "task.answer_length=4"],
}  # fmt: skip


@pytest.fixture(scope="session")
def repositories() -> list:
    return [
        *hub_content.everything(),
        hub_content.gpt2("owner/gated-gpt2", gated=True),
        hub_content.glue("owner/gated-glue", gated=True),
    ]


@pytest.fixture
def hub(repositories) -> Iterator[Hub]:
    with Hub(*repositories).running() as running:
        yield running
        assert running.unknown == []


@dataclass
class Done:
    code: int
    out: str
    err: str
    seconds: float

    def ends_with_one_line(self, *words: str) -> None:
        """Check that the screen says what is wrong in one line, at its end."""
        assert "Traceback" not in self.err + self.out, self.err
        last = self.err.splitlines()[-1]
        for word in words:
            assert word in last, self.err


@pytest.fixture
def run(hub, tmp_path) -> Callable[..., Done]:
    """Run a command in a process of its own; the caches of the test are empty at first."""

    def call(*words: str, module: bool = True, **environment: str) -> Done:
        own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, *(["-m", "moe_runner.train"] if module else []), *words],
            env=hub.environment(tmp_path / "hf", **own, **environment),
            cwd=tmp_path, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - start)

    return call


def unfinished(home: Path) -> list[Path]:
    """List the files of caches that are parts of a download."""
    parts = [file for file in home.rglob("*incomplete*") if file.is_file()]
    return [file for file in parts if file.suffix != ".lock"]


@pytest.mark.long
def test_the_libraries_find_models_and_data_on_the_server(hub, tmp_path):
    """The server alone: what huggingface_hub, transformers and datasets ask, and a resumed file."""
    hub.faults.broken = {"/other-host/": 1}
    code = (
        "from huggingface_hub import constants, hf_hub_download, list_repo_files\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 4096\n"  # what is written at a time, so that some is there
        "hf_hub_download('openai-community/gpt2', 'model.safetensors')\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('openai-community/gpt2')\n"
        "words = AutoTokenizer.from_pretrained('openai-community/gpt2')('the film')['input_ids']\n"
        "from datasets import load_dataset\n"
        "data = load_dataset('nyu-mll/glue', 'rte')\n"
        "assert list_repo_files('nyu-mll/glue', repo_type='dataset')\n"
        "print(model.config.n_embd, len(words), sorted((k, len(v)) for k, v in data.items()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(tmp_path),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "32 3 [('test', 48), ('train', 48), ('validation', 48)]\n"
    large = [status for _, address, status in hub.answered if "/other-host/" in address]
    assert large == [200, 206, 200, 200, 200]  # the model in two parts, and three splits


@pytest.mark.long
def test_any_model_and_data_of_the_hub_and_their_commits_are_in_the_id(hub, run, tmp_path):
    words = [
        "model=auto", "model.hub_id=openai-community/gpt2", "method=emoe", "method.num_experts=8",
        "method.top_k=2", "task=classification", "task.hub_id=nyu-mll/glue", "task.config=rte",
        "task.text=[sentence1,sentence2]", *QUICK,
    ]  # fmt: skip
    planned = run(*words, "dry_run=true")  # nothing is in the caches: one request each
    assert planned.code == 0, planned.err
    done = run(*words)
    assert done.code == 0, done.err
    (file,) = tmp_path.glob("outputs/runs/*/result.json")
    result = json.loads(file.read_text())
    assert result["id"] in planned.out
    assert "ids are open" not in planned.out
    assert (result["axes"]["model"], result["axes"]["task"]) == ("gpt2", "glue")
    for place in (result["weights"], *result["data"].values()):
        assert re.search(" at [0-9a-f]{40}$", place), place
    again = run(*words, HF_HUB_OFFLINE="1")  # the caches tell the commits, too
    assert "done before" in again.err, again.err


@pytest.mark.long
@pytest.mark.parametrize("name", ["glue", "gluex"])
def test_the_command_of_the_readme_runs_from_empty_caches(name, hub, run, tmp_path):
    done = run(*COMMANDS[name])
    assert done.code == 0, done.err
    assert "fetching the dataset " in done.err
    results = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/runs/*/result.json")]
    assert len(results) == (2 if name == "glue" else 1)
    if name == "gluex":
        assert set(results[0]["ood_metrics"]) >= {"imdb", "yelp", "amazon"}
    print("\n".join([done.err, done.out, *hub.summary()]))  # pytest -s -m long shows the list
    if name != "glue":  # one is enough
        return
    asked = len(hub.answered)
    again = run(*COMMANDS[name], "rerun=true")  # all from the caches
    assert again.code == 0, again.err
    assert "fetching" not in again.err
    files = [address for _, address, _ in hub.answered[asked:] if address != "/"]
    assert files == [], "what is in the caches is not asked for"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"glue", "gluex"}))
def test_the_other_commands_run_from_empty_caches(name, run, tmp_path):
    done = run(*COMMANDS[name])
    assert done.code == 0, done.err
    assert "fetching the dataset " in done.err
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1


@pytest.mark.long
def test_prepare_data_fills_a_folder_with_all_that_the_hub_has(hub, run, tmp_path):
    script = str(ROOT / "scripts" / "prepare_data.py")
    hub.faults.broken = {"/other-host/": 100}
    broken = run(script, "gluex", "--folder", "glue", module=False)
    assert broken.code == 1
    broken.ends_with_one_line("ConnectionError: fetching the dataset nyu-mll/glue", "same command")
    assert not list(tmp_path.rglob("*.parquet"))
    hub.faults = Faults()
    done = run(script, "gluex", "--folder", "glue", module=False)
    assert done.code == 0, done.err
    for name in ("imdb", "yelp", "amazon", "snli"):
        assert list(tmp_path.glob(f"glue/ood/{name}/*/test-*.parquet")), name
    assert done.out.splitlines()[-1].startswith("22 files are complete")
    local = ["task.data_dir=glue", "task.ood_dir=glue/ood", "model=gpt2_tiny"]
    asked = len(hub.answered)
    assert run(*COMMANDS["gluex"], *local).code == 0
    assert [address for _, address, _ in hub.answered[asked:] if address != "/"] == []
    (result,) = tmp_path.glob("outputs/runs/*/result.json")
    planned = run(*COMMANDS["gluex"], "model=gpt2_tiny", "dry_run=true")  # data of the Hub
    assert result.parent.name in planned.out, "one id, wherever the data lie"


@pytest.mark.long
@pytest.mark.parametrize("token", ["", STRANGER])
def test_a_gated_model_says_to_accept_its_licence(token, run):
    done = run(*RTE, "model.hub_id=owner/gated-gpt2", HF_TOKEN=token)
    assert done.code == 1
    done.ends_with_one_line(
        "PermissionError: the model owner/gated-gpt2 is gated: accept its licence at http",
        "and log in (hf auth login, or set HF_TOKEN)",
    )


@pytest.mark.long
def test_who_has_accepted_the_licence_gets_the_model(run):
    done = run(*RTE, "model.hub_id=owner/gated-gpt2", HF_TOKEN=GRANTED)
    assert done.code == 0, done.err


@pytest.mark.long
@pytest.mark.parametrize("token", ["", STRANGER])
def test_gated_data_say_to_accept_their_licence(token, run):
    done = run(*RTE, "task.hub_id=owner/gated-glue", HF_TOKEN=token)
    assert done.code == 1
    done.ends_with_one_line(
        "PermissionError: the dataset owner/gated-glue is gated: accept its licence at http",
        "/datasets/owner/gated-glue and log in",
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("model.hub_id=owner/none", "there is no model owner/none at http"),
        ("model.revision=v9", "the model openai-community/gpt2 has no revision v9 at http"),
        ("task.hub_id=owner/none", "there is no dataset owner/none at http"),
        ("task.revision=v9", "the dataset nyu-mll/glue has no revision v9 at http"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(option, line, run):
    done = run(*RTE, option)
    assert done.code == 1
    done.ends_with_one_line(f"FileNotFoundError: {line}")


@pytest.mark.slow
def test_a_slow_hub_is_waited_for(hub, run):
    hub.faults.delay = {"/other-host/|/tree/": 4}
    done = run(*RTE)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_hub_that_stops_answering_is_not_waited_for_without_end(hub, run):
    hub.faults.delay = {"/tree/": 600}
    limited = run(
        "-c",
        "import moe_runner.downloads as d; d.SECONDS = 1; import sys\n"
        f"sys.argv = ['moe-run', *{RTE!r}]\n"
        "from moe_runner.train import main; main()",
        module=False,
    )
    assert limited.code == 1
    assert limited.seconds < 90
    limited.ends_with_one_line("ConnectionError: fetching the dataset nyu-mll/glue", "timed out")


@pytest.mark.long
@pytest.mark.parametrize("what", ["nyu-mll/glue", "openai-community/gpt2"])
def test_a_download_that_breaks_off_leaves_nothing_half_and_is_made_good(
    what, hub, run, tmp_path, repositories
):
    (repository,) = [each for each in repositories if each.name == what]
    for file in repository.files.values():
        hub.faults.broken[f"/other-host/{file.sha256}"] = 100
    done = run(*RTE)
    assert done.code == 1
    done.ends_with_one_line("ConnectionError: fetching the ", what, "the same command fetches")
    assert done.err.count("Max retries exceeded") == 1  # each warning once
    assert unfinished(tmp_path / "hf") == []
    hub.faults.broken = {"/other-host/": 1}  # once more, and then it goes on
    again = run(*RTE)
    assert again.code == 0, again.err


@pytest.mark.long
def test_a_hub_that_is_overloaded_is_told_in_one_line(hub, run):
    hub.faults.status = {"/datasets/": 503}
    done = run(*RTE)
    assert done.code == 1
    done.ends_with_one_line("ConnectionError: fetching the dataset nyu-mll/glue", "503")
