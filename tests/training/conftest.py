"""A backbone folder of each family and a GLUE folder, tiny, made on the spot."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.options.settings import Logger, Paths, Settings
from moe_runner.options.task import TextTask
from moe_runner.options.training import Search, Trainer, Tuning
from moe_runner.runs.run import Run
from moe_runner.sweeps.plan import make_plan

WORDS = [f"w{i}" for i in range(30)] + ["good", "bad"]
TARGETS = {
    "bert": ("query", "value"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "t5": ("q", "v"),
    "switch": ("q", "v"),
}


def write_tokenizer(family: str, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "t5": ["<pad>", "</s>", "<unk>"]}
    special["switch"] = [*special["t5"], "0", "1"]  # the answers
    names = special.get(family, ["<eos>", "<unk>"])
    unknown = next(name for name in names if "unk" in name.lower())
    vocabulary = {word: index for index, word in enumerate([*names, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"unk_token": unknown}
    if family == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        options |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif family in ("t5", "switch"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
        options |= {"pad_token": "<pad>", "eos_token": "</s>"}
    else:
        options |= {"eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory, tiny_model):
    """Write a family's tiny model and tokenizer once; its `config.json` says the sizes."""
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_model(family, dropout=0.1).base_model.save_pretrained(made[family])
            write_tokenizer(family, made[family])
        return made[family]

    return build


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory) -> Path:
    """Write cola and mrpc, 96 and 40 rows: the label follows the words, with noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("glue")
    rng = random.Random(0)

    def sentence(label: int) -> str:
        words = rng.choices(WORDS[:30], k=rng.randint(2, 7))
        return " ".join([*words, "good" if label ^ (rng.random() < 0.1) else "bad"])

    for task, columns in (("cola", ["sentence"]), ("mrpc", ["sentence1", "sentence2"])):
        for split, size in (("train", 96), ("validation", 40)):
            labels = [rng.randint(0, 1) for _ in range(size)]
            texts = {column: [sentence(label) for label in labels] for column in columns}
            (folder / task).mkdir(exist_ok=True)
            table = pa.table({**texts, "label": labels, "idx": list(range(size))})
            pq.write_table(table, folder / task / f"{split}.parquet")
    ood = folder / "ood" / "cola_ood"
    ood.mkdir(parents=True)
    labels = [rng.randint(0, 1) for _ in range(20)]
    table = pa.table({"sentence": [sentence(label) for label in labels], "label": labels})
    pq.write_table(table, ood / "test.parquet")
    return folder


@pytest.fixture
def make_settings(backbone_folder, glue_folder, tmp_path):
    """Build settings for a quick run of 12 updates an epoch."""

    def build(
        family: str = "bert",
        method: Dense | EMoE | None = None,
        tuning: str = "full",
        task: str = "cola",
        **trainer,
    ) -> Settings:
        lora = {"rank": 2, "alpha": 4, "dropout": 0.1} if tuning == "lora" else {}
        options = {"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, **trainer}
        return Settings(
            method=EMoE(num_experts=4, top_k=2) if method is None else method,
            model=Model(
                name=f"{family}_test", family=family, path=str(backbone_folder(family)),
                d_model=16, d_ff=32, num_layers=4, lora_targets=TARGETS[family],
            ),
            tuning=Tuning(name=tuning, learning_rate=1e-3, learning_rates=(1e-3, 2e-3), **lora),
            task=TextTask(
                suite="glue", members=(task,), data_dir=str(glue_folder), max_length=16,
                ood=("cola_ood",) if task == "cola" else (), ood_dir=str(glue_folder / "ood"),
            ),
            protocol=Protocol(name="paper"),
            search=Search(name="single"),
            trainer=Trainer(**options),
            logger=Logger(name="none"),
            paths=Paths(output=str(tmp_path / "outputs"), cache=str(tmp_path / "outputs/cache")),
            device="cpu",
            threads=1,
        )  # fmt: skip

    return build


@pytest.fixture
def only_run():
    """Plan settings that mean one run."""

    def build(settings: Settings, **changes) -> Run:
        (run,) = make_plan(dataclasses.replace(settings, **changes)).runs
        return run

    return build
