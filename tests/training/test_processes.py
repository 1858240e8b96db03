"""Several processes: moe-run under torchrun, and weights sharded by torch's fully_shard."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_runner.conversion.convert import convert
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.gmoe.options import GMoE
from moe_runner.options.errors import ConfigError
from moe_runner.runs import processes
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training.device import choose_device
from moe_runner.training.execute import execute
from tests.methods.distributed_worker import two_steps
from tests.training.conftest import write_tokenizer
from tests.training.sharded_worker import work

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start_two(words: list[str], folder: Path) -> list[subprocess.CompletedProcess]:
    """Start moe-run in two processes, as torchrun does; the leader is the first."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120",
        "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "moe_runner.train", *words],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory, tiny_model) -> Path:
    """A tiny BERT without dropout, whose draws would differ between processes."""
    folder = tmp_path_factory.mktemp("bert_without_dropout")
    tiny_model("bert", dropout=0.0).base_model.save_pretrained(folder)
    write_tokenizer("bert", folder)
    return folder


@pytest.fixture(scope="module")
def two(without_dropout, glue_folder, tmp_path_factory):
    """EMoE and a learned router, in two processes; then EMoE again, which is done by then."""
    folder = tmp_path_factory.mktemp("two")
    ended = start_two(
        [
            "-m", "method=emoe,gmoe,emoe", "method.num_experts=4", "method.top_k=2",
            "method.layers=[2]", "model=bert", f"model.path={without_dropout}", "task=glue/cola",
            f"task.data_dir={glue_folder}", "task.max_length=16", "trainer.batch_size=8",
            "trainer.epochs=1", "trainer.learning_rate=1e-3", "trainer.accumulate=2", "device=cpu",
            "threads=1", "keep_model=best",
        ],
        folder,
    )  # fmt: skip
    return folder, ended


@pytest.mark.long
@pytest.mark.parametrize("method", [EMoE, GMoE], ids=["emoe", "gmoe"])
def test_two_processes_train_as_one(method, two, without_dropout, make_settings):
    folder, ended = two
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    files = [folder / "outputs/runs" / name for name in os.listdir(folder / "outputs/runs")]
    found = {
        json.loads((file / "result.json").read_text())["axes"]["method"]: file for file in files
    }
    assert len(files) == len(found) == 2
    together = json.loads((found[method().name] / "result.json").read_text())

    settings = make_settings(
        method=method(num_experts=4, top_k=2, layers=(2,)),
        batch_size=8, accumulate=2, epochs=1, learning_rate=1e-3,
    )  # fmt: skip
    model = dataclasses.replace(settings.model, path=str(without_dropout))
    settings = dataclasses.replace(settings, model=model, keep_model="best")
    store = Store(Path(settings.paths.output))
    (run,) = make_plan(settings).runs
    alone = execute(run, settings, store)

    assert together["updates"] == alone.updates == 12
    assert together["primary"] == pytest.approx(alone.primary, abs=1e-6)
    weights = [
        load_file(place / "checkpoint/best/trained.safetensors")
        for place in (store.folder(run.id), found[run.method.name])
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.long
def test_only_the_leader_prints_and_writes_and_what_is_done_is_skipped(two):
    folder, (leader, follower) = two
    assert leader.stderr.count("done before") == 1
    assert "result.json" in leader.stdout
    assert follower.stdout == ""
    assert "epoch" not in follower.stderr
    for run in (folder / "outputs/runs").iterdir():
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["attempts"]) == ("done", 1)
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 1  # one evaluation


def write_dino(folder: Path) -> None:
    """A tiny DINOv2, whose mask token gets no gradient, and four pictures of two classes."""
    from PIL import Image
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28
    )
    Dinov2Model(config).save_pretrained(folder / "dino")
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "dino")
    for split in ("train", "validation"):
        for name, grey in (("dark", 20), ("light", 220)):
            (folder / "pictures" / split / name).mkdir(parents=True)
            for i in range(3):
                picture = Image.new("RGB", (28, 28), (grey + i, grey, grey))
                picture.save(folder / "pictures" / split / name / f"{i}.png")


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["model=switch_tiny", "task=squad_mini", "task.eval_limit=19", "task.limit=16"],
        ["model=gpt2_tiny", "task=wikitext_mini", "task.eval_limit=37", "task.block_size=32"],
        ["model=auto", "model.path=dino", "task=image_folders", "task.data_dir=pictures"],
    ],
    ids=["answers", "blocks", "unused_parameter"],
)
def test_two_processes_evaluate_every_example_once(words, tmp_path):
    """The rate is too small to change a weight, so that dropout does not matter."""
    if "model.path=dino" in words:
        write_dino(tmp_path)
    words = [
        *words, "method=emoe", "method.num_experts=4", "method.top_k=2", "trainer.max_steps=2",
        "trainer.learning_rate=1e-12", "trainer.batch_size=4", "device=cpu", "threads=1",
    ]  # fmt: skip
    ended = start_two([*words, "paths.output=two"], tmp_path)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    subprocess.run(
        [sys.executable, "-m", "moe_runner.train", *words, "paths.output=one"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    (two,), (one,) = (
        list((tmp_path / place / "runs").glob("*/result.json")) for place in ("two", "one")
    )
    assert two.parent.name == one.parent.name
    found, expected = (
        json.loads(file.read_text())["id_metrics"]["validation"] for file in (two, one)
    )
    assert found["primary"] == pytest.approx(expected["primary"], rel=1e-6)
    assert expected["primary"] > 0


def test_a_batch_that_processes_cannot_share_is_refused(make_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError) as caught:
        make_plan(make_settings(batch_size=8))
    assert caught.value.problems == (
        "trainer.batch_size=8 does not divide by WORLD_SIZE=3; it is the size of one update: use a "
        "multiple of 3, such as 9",
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="accumulate=4 times WORLD_SIZE=4"):
        make_plan(make_settings(batch_size=8, accumulate=4))
    assert len(make_plan(make_settings(batch_size=8, accumulate=2)).runs) == 1


def test_half_an_environment_of_torchrun_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        processes.connect("cpu")
    assert caught.value.problems == (
        "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start moe-run by "
        "torchrun or accelerate launch, or unset WORLD_SIZE",
    )


def test_a_device_number_is_refused_with_several_processes(monkeypatch):
    class OnCpu:
        device = torch.device("cpu")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", OnCpu)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=cuda:1 with WORLD_SIZE=2: each process has"):
        choose_device("cuda:1")


# ------------------------------------------------------------------------------- fully_shard

METHODS = {
    "emoe": EMoE(num_experts=4, top_k=2, layers="last:2"),
    "gmoe": GMoE(num_experts=4, top_k=2, layers="last:2"),
}


@pytest.fixture(scope="module")
def sharded(tiny_model, tiny_batch, tmp_path_factory):
    """Two processes' findings and one process's, by method."""
    folder = tmp_path_factory.mktemp("sharded")
    batch = {key: torch.cat([value, value[:1]]) for key, value in tiny_batch("llama").items()}
    cases, expected = {}, {}
    for name, method in METHODS.items():
        model = tiny_model("llama")
        convert(model, method)
        cases[name] = {
            "architecture": type(model).__name__, "config": model.config, "method": method,
            "state": {k: v.clone() for k, v in model.state_dict().items()}, "batch": batch,
        }  # fmt: skip
        losses = [loss for loss, _ in two_steps(model, model, batch)["losses"]]
        expected[name] = losses, model.state_dict()
    torch.save(cases, folder / "cases.pt")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)], expected


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_sharded_weights_train_and_save_as_those_of_one_process(name, sharded):
    ranks, expected = sharded
    losses, state = expected[name]
    first, second = (rank[name] for rank in ranks)
    assert first["plain"] == second["plain"] == []  # every parameter is a DTensor
    gates = (2, 0) if name == "emoe" else (0, 0)  # layers; none survives other weights
    assert first["kept"] == second["kept"] == gates
    for step, loss in enumerate(losses):
        mean = (first["losses"][step] + second["losses"][step]) / 2
        assert mean == pytest.approx(loss, rel=1e-4)
    assert first["trained"].keys() == state.keys()
    assert second["trained"] == {}
    for key, value in state.items():
        torch.testing.assert_close(first["trained"][key], value, rtol=1e-3, atol=1e-5, msg=key)
        torch.testing.assert_close(first["loaded"][key], first["trained"][key], msg=key)
