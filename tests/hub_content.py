"""What the Hub of the tests holds: the public repositories' ids, layout and columns; made-up rows.

No two splits have the same content: equal files would be one blob, which is asked for once.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hub_server import Repository

ASSETS = Path(__file__).parents[1] / "src" / "moe_runner" / "assets"
GPT2 = "openai-community/gpt2"
GPT2_SIZES = {"n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 128}
PAIR = ("sentence1", "sentence2")
GLUE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # columns, classes
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (PAIR, ("not_equivalent", "equivalent")),
    "stsb": (PAIR, ()),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (PAIR, ("entailment", "not_entailment")),
}
MNLI_SPLITS = ("train", "validation_matched", "validation_mismatched", "test_matched")
OUT_OF_DOMAIN = {  # id -> config, columns, classes
    "stanfordnlp/imdb": ("plain_text", ("text",), ("neg", "pos")),
    "fancyzhx/yelp_polarity": ("plain_text", ("text",), ("1", "2")),
    "fancyzhx/amazon_polarity": ("amazon_polarity", ("title", "content"), ("negative", "positive")),
    "stanfordnlp/snli": ("plain_text", *GLUE["mnli"]),
}
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
WORDS = ("the", "a", "film", "was", "good", "bad", "he", "said", "it", "is", "not", "of", "water")


def everything() -> list[Repository]:
    """Make every repository of the tests."""
    found = [gpt2(), glue(), pacs(), alpaca(), squad()]
    for name, (config, columns, classes) in OUT_OF_DOMAIN.items():
        files = {
            f"{config}/{split}-00000-of-00001.parquet": table(f"{name}/{split}", columns, classes)
            for split in ("train", "test")
        }
        readme = card({config: (f"{config}/", ("train", "test"))})
        found.append(Repository("datasets", name, {"README.md": readme, **files}))
    return found


def gpt2(name: str = GPT2, *, gated: bool = False) -> Repository:
    """Make a GPT-2 of random weights with the file names of the real one."""
    import torch
    from safetensors.torch import save
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = json.loads((ASSETS / "gpt2_tiny" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    end = vocabulary["<|endoftext|>"]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), bos_token_id=end, eos_token_id=end, **GPT2_SIZES
    )
    config.architectures = ["GPT2LMHeadModel"]
    weights = {
        key.removeprefix("transformer."): value.contiguous()
        for key, value in GPT2LMHeadModel(config).state_dict().items()
        if key.startswith("transformer.")  # as in the real file
    }
    files = {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"---\nlicense: mit\n---\nA GPT-2 of random weights.\n",
        "config.json": config.to_json_string().encode(),
        "generation_config.json": json.dumps({"bos_token_id": end, "eos_token_id": end}).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]).encode(),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps({"model_max_length": 128}).encode(),
        "vocab.json": json.dumps(vocabulary).encode(),
    }
    return Repository("models", name, files, gated=gated)


def glue(name: str = "nyu-mll/glue", *, gated: bool = False) -> Repository:
    """Make GLUE's parquet files: a folder per task, and the card that lists their splits."""
    files, configs = {}, {}
    for task, (columns, classes) in GLUE.items():
        splits = MNLI_SPLITS if task == "mnli" else ("train", "validation", "test")
        configs[task] = (f"{task}/", splits)
        for split in splits:
            content = table(f"glue/{task}/{split}", columns, classes, index=True)
            files[f"{task}/{split}-00000-of-00001.parquet"] = content
    return Repository("datasets", name, {"README.md": card(configs), **files}, gated=gated)


def pacs() -> Repository:
    """Make PACS as flwrlabs has it: one table of images with their domain, in two parts."""
    import numpy
    from datasets import ClassLabel, Features, Image, Value
    from PIL import Image as Picture

    rows = []
    for number, domain in enumerate(PACS_DOMAINS):
        for label in range(len(PACS_CLASSES)):
            for index in range(5):
                pixels = numpy.random.default_rng([number, label, index]).integers(
                    0, 256, (9, 9, 3)
                )
                stream = io.BytesIO()
                Picture.fromarray(pixels.astype("uint8")).resize((36, 36)).save(stream, "PNG")
                image = {"bytes": stream.getvalue(), "path": f"{domain}_{label}_{index}.png"}
                rows.append({"image": image, "domain": domain, "label": label})
    features = Features(
        {
            "image": Image(),
            "domain": Value("string"),
            "label": ClassLabel(names=list(PACS_CLASSES)),
        }
    )
    half = len(rows) // 2
    files = {}
    for part, some in enumerate((rows[:half], rows[half:])):
        files[f"data/train-{part:05d}-of-00002.parquet"] = parquet(some, features)
    readme = card({"default": ("data/", ("train",))})
    return Repository("datasets", "flwrlabs/pacs", {"README.md": readme, **files})


def alpaca() -> Repository:
    """Make records in the format of Alpaca; the file's name ends in a hash, as there."""
    draw = random.Random("alpaca")
    rows = []
    for index in range(300):
        given = sentence(draw) if index % 2 else ""
        record = {"instruction": sentence(draw), "input": given, "output": sentence(draw)}
        rows.append({**record, "text": " ".join(record.values())})
    name = "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"
    readme = b"---\nlicense: cc-by-nc-4.0\npretty_name: Alpaca\n---\n"  # lists no splits
    files = {"README.md": readme, name: parquet(rows)}
    return Repository("datasets", "tatsu-lab/alpaca", files)


def squad() -> Repository:
    """Make questions with the columns of SQuAD 1.1."""
    files = {}
    for split, count in (("train", 24), ("validation", 12)):
        draw = random.Random(f"squad/{split}")
        rows = []
        for index in range(count):
            context = sentence(draw, 20)
            start = context.index(" ") + 1
            answer = context[start : context.index(" ", start)]
            rows.append(
                {
                    "id": f"{split}{index}",
                    "title": "A title",
                    "context": context,
                    "question": f"what {sentence(draw, 4)}?",
                    "answers": {"text": [answer], "answer_start": [start]},
                }
            )
        files[f"plain_text/{split}-00000-of-00001.parquet"] = parquet(rows)
    readme = card({"plain_text": ("plain_text/", ("train", "validation"))})
    return Repository("datasets", "rajpurkar/squad", {"README.md": readme, **files})


def table(
    seed: str, columns: tuple[str, ...], classes: tuple[str, ...], *, index: bool = False
) -> bytes:
    """Make rows of texts and labels, of every class; no class: scores from 0 to 5."""
    from datasets import ClassLabel, Features, Value

    draw = random.Random(seed)
    rows = []
    for number in range(48):
        label = number % len(classes) if classes else round(draw.uniform(0, 5), 1)
        row = {column: sentence(draw) for column in columns} | {"label": label}
        rows.append({**row, "idx": number} if index else row)
    label = ClassLabel(names=list(classes)) if classes else Value("float32")
    features = {**dict.fromkeys(columns, Value("string")), "label": label}
    return parquet(rows, Features(features | ({"idx": Value("int32")} if index else {})))


def parquet(rows: list[dict[str, Any]], features: Any = None) -> bytes:
    """Write rows as `push_to_hub` does: with the features among the metadata."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    content = io.BytesIO()
    pq.write_table(Dataset.from_list(rows, features=features).data.table, content)
    return content.getvalue()


def card(configs: Mapping[str, tuple[str, tuple[str, ...]]]) -> bytes:
    """Write the head of a data set's card: config -> folder and splits."""
    lines = ["---", "configs:"]
    for config, (folder, splits) in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}{split}-*"]
    return "\n".join([*lines, "---", "# Made-up rows", ""]).encode()


def sentence(draw: random.Random, length: int = 8) -> str:
    """Draw some words."""
    return " ".join(draw.choices(WORDS, k=length))
