"""An installed package adds a method, a family and a suite: `toy_package` beside this file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOP = HERE.parents[1]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that the package was installed into by pip."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(HERE, source, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def command(installed, tmp_path) -> Command:
    """Run Python with the package installed, in an empty folder."""

    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.long
def test_the_method_passes_the_tests_of_every_method(command):
    """Families, padding, losses, saving and loading: those of tests/methods, for the toy alone."""
    done = command(
        "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "toy and not export",
        "tests/methods/test_methods.py", cwd=TOP,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def moe_run(command: Command, *words: str) -> subprocess.CompletedProcess:
    return command("-m", "moe_runner.train", *words)


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A folder with the csv files of the suite; good and bad texts differ by a word."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, count in (("train", 24), ("validation", 8)):
        rows = [f"the film is {('bad', 'good')[i % 2]} number {i},{i % 2}" for i in range(count)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


@pytest.fixture
def my_roberta(command, tmp_path) -> Path:
    """A folder with a tiny model of the family, with random weights and a real tokenizer."""
    folder = tmp_path / "my_roberta_folder"
    made = command("-c", MAKE, str(folder))
    assert made.returncode == 0, made.stderr
    return folder


MAKE = """\
import sys, torch
from pathlib import Path
import moe_runner
from transformers import AutoTokenizer
from toy_package.modeling import MyRobertaConfig, MyRobertaForSequenceClassification

assets = Path(moe_runner.__file__).parent / "assets"
tokenizer = AutoTokenizer.from_pretrained(assets / "bert_tiny")
torch.manual_seed(0)
config = MyRobertaConfig(
    vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=80, pad_token_id=tokenizer.pad_token_id,
)
MyRobertaForSequenceClassification(config).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""


@pytest.mark.long
def test_method_family_and_suite_of_a_package_run_together(command, reviews, my_roberta, tmp_path):
    done = moe_run(
        command, "method=toy", "model=my_roberta", f"model.path={my_roberta}", "task=reviews",
        f"task.data_dir={reviews}", "trainer.max_steps=2", "device=cpu", "export=moe",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "decoder" not in done.stderr
    assert "toy: encoder 1: 4 experts of 32 neurons, 2 per token" in done.stderr
    (file,) = tmp_path.glob("outputs/runs/*/result.json")
    result = json.loads(file.read_text())
    assert result["axes"]["method"] == "toy"
    assert result["axes"]["model"] == my_roberta.name
    assert result["axes"]["suite"] == "reviews"
    assert 0 <= result["id_metrics"]["validation"]["accuracy"] <= 1
    again = command(
        "-c",
        "import sys, toy_package.modeling; from moe_runner import from_pretrained\n"
        "print(type(from_pretrained(sys.argv[1])).__name__)",
        str(file.parent / "model"),
    )
    assert again.stdout.strip() == "MyRobertaForSequenceClassification", again.stderr


def test_a_study_of_a_package_is_planned_with_what_the_package_adds(command):
    planned = moe_run(command, "study=toy_reviews", "dry_run=true")
    assert planned.returncode == 0, planned.stderr
    assert "toy_reviews" in planned.stdout
    assert re.search(r"distinct runs[ │]+4 ", planned.stdout)


@pytest.mark.long
def test_help_and_mistakes_know_what_the_package_adds(command):
    shown = moe_run(command, "--help").stdout
    for line in ("method: dense, ", "model: auto, bert", "task: alpaca", "study: all, "):
        assert line in shown
    for option in (" toy", " my_roberta", " reviews", " toy_reviews"):
        assert option in shown
    wrong = moe_run(command, "method=toy", "method.num_expert=3", "task=review")
    assert wrong.returncode == 2
    assert "did you mean method.num_experts?" in wrong.stderr
    assert "did you mean reviews?" in wrong.stderr


def test_the_guide_shows_the_files_of_the_package():
    guide = (TOP / "docs" / "extending.md").read_text()
    blocks = re.findall(r'```\w+ title="([^"]+)"\n(.*?)```\n', guide, flags=re.DOTALL)
    assert len(blocks) >= 9
    for name, text in blocks:
        assert text == (HERE / name).read_text(), f"docs/extending.md differs from {name}"
