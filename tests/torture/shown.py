"""Carry out every command that README and docs show, shortened, or plan what cannot be had here."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from moe_runner import EMoE, convert, save_pretrained
from moe_runner.backbones.weights import ASSETS
from tests.torture import commands, runs

ROOT = Path(__file__).parents[2]
ELSEWHERE = (  # why a command is planned only: a word of it, or of what the plan says
    "the Hub is unreachable", "needs the package", "/data/", "is not there", "hydra/launcher=",
    "hydra/sweeper=", "profile=paper", "study=all", "evaluate=", "to be had from the Hub",
    "task=glue/rte task.data_dir=<folder>", "task.ood=[mmlu]",
    "task.pairs=true",  # 189 runs
)  # fmt: skip
STANDS_FOR = {  # placeholders, by what else is in the command
    "task=instruct": "asked.json",
    "task=generation": "articles.csv",
    "task=classification": "reviews.csv",
    "task=text": "text.txt",
    "task=image_folders": "images",
}
INSTEAD = {  # of a word that shortens, by a word of the command
    "model=vit_tiny": {"trainer.batch_size=4": "trainer.batch_size=10"},  # 2 to 5 domains
    "task=text ": {"task.limit=48": "task.block_size=32"},
    "task=alpaca model=smollm2 ": {"task.limit=48": "task.max_length=128"},  # llama_tiny stands in
}
PART = ("study.only.method=dense", "study.only.seed=0", "device=cpu")  # of a study
ID = re.compile(r"\b[0-9a-f]{8}\b")


def shown(page: Path) -> list[str]:
    """List the commands of ours on a page, in order, without the words behind them."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        for part in line.removeprefix("$ ").split("&&") if line.startswith("$ ") else ():
            bare = re.split(r"\s+#\s|\s{3,}", part.strip())[0]
            if bare.startswith(("moe-run ", "moe-report ")):
                found.append(bare)
    return found


def campaign(folder: Path, *, only: int | None = None, seed: int = 0) -> dict:
    """Carry out the commands page by page, each page in a folder of its own.

    Args:
        folder: an empty one.
        only: so many pages instead of all.
        seed: not used; nothing is random.

    Returns:
        How many were carried out, and how many only planned.

    Raises:
        AssertionError: if a command fails, or cannot be had for no reason that is known.
    """
    del seed
    tally: Counter[str] = Counter()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))][:only]:
        there = folder / page.stem
        there.mkdir()
        write_data(there)
        for command in shown(page):
            how = carry_out(command, there)
            print(f"  {page.name}: {how}: {command}", flush=True)
            tally[how] += 1
    return dict(sorted(tally.items()))


def carry_out(command: str, folder: Path) -> str:
    """Carry out one command in a folder: "done", or "planned" where it needs what is not here."""
    program, *words = shlex.split(filled(command, folder))
    quiet = {"COLUMNS": "80"}
    if program == "moe-report":
        done = commands.forked(program, *words, folder=folder, environment=quiet).wait()
        assert not done.has_traceback, f"{command}: {done.err}"
        known = done.code == 0 or any(
            word in done.err for word in ("is no run", "is not there", "were kept", "is no folder")
        )
        assert known, f"{command}: code {done.code}: {done.err}"
        return "done" if done.code == 0 else "refused"
    wrong = command.startswith("moe-run method=emo ")  # shown with its three mistakes
    shorter = PART if " study=" in command else runs.SHORT
    short = [] if wrong else [word for word in shorter if not given(word, command)]
    for word, others in INSTEAD.items():
        if word in command:
            short = [others.get(each, each) for each in short]
    if any(word in command for word in ELSEWHERE):
        short = ["dry_run=true"]
    done = commands.forked(program, *words, *short, folder=folder, environment=quiet).wait()
    assert not done.has_traceback, f"{command}: {done.err}"
    if done.code == 0:
        return "planned" if "dry_run=true" in short else "done"
    assert done.code == 2, f"{command}: code {done.code}: {done.out}{done.err}"
    told = wrong or any(word in command + done.err for word in ELSEWHERE)
    assert told, f"{command}: {done.err}"
    return "refused as shown" if wrong else "planned"


def given(word: str, command: str) -> bool:
    """Say if a command chooses an option itself."""
    return f" {word.partition('=')[0]}=" in command


def filled(command: str, folder: Path) -> str:
    """Put a model, data or an id of the store in the place of what a page leaves open."""
    if " my_model " in command and not (folder / "my_model").exists():
        backbone = AutoModel.from_pretrained(ASSETS / "bert_tiny")
        convert(backbone, EMoE(num_experts=16, top_k=4))
        save_pretrained(backbone, folder / "my_model")
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / "bert_tiny")
        tokenizer.save_pretrained(folder / "my_model")
    model = "llama_tiny" if "alpaca" in command else "bert_tiny"
    command = command.replace("model.path=<folder>", f"model.path={ASSETS / model}")
    if "task.text=[body]" in command:
        command = re.sub(r"<[^>]*>", "texts.csv", command)
    for words, name in STANDS_FOR.items():
        if words in command:
            command = re.sub(r"<[^>]*>", name, command)
    ids = sorted(path.name for path in folder.glob("outputs/runs/*"))
    numbers = iter(ids[::-1])
    if ids:
        command = re.sub(r"<id>", ids[0], command)
        command = ID.sub(lambda match: next(numbers, ids[0])[:8], command)
    return re.sub(r"<[^>]*>", "somewhere", command)


def write_data(folder: Path) -> None:
    """Write small files of every kind that the pages speak of."""
    texts = [f"the {what} was {how}, number {i}" for i in range(60)
             for what, how in (("film", "good"), ("book", "bad"))]  # fmt: skip
    tables = {
        "reviews.csv": [
            ("review", "stars"),
            *((t, "five" if "good" in t else "one") for t in texts),
        ],
        "texts.csv": [("body",), *((t,) for t in texts)],
        "articles.csv": [("article", "summary"), *((t, t.split()[3]) for t in texts)],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    (folder / "text.txt").write_text("\n".join(texts * 20), encoding="utf-8")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("\n".join(texts), encoding="utf-8")
    asked = [{"question": text, "answer": text.split()[3]} for text in texts]
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    alpaca = [{"instruction": text, "input": "", "output": text.split()[3]} for text in texts]
    (folder / "alpaca.json").write_text(json.dumps(alpaca), encoding="utf-8")
