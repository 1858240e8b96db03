"""The short runs of the campaigns, every method and every form of a task; what must stay equal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from moe_runner.runs.store import Store

SHORT = (
    "threads=1",
    "device=cpu",
    "trainer.max_steps=12",
    "trainer.save_steps=3",
    "trainer.eval_steps=4",
    "trainer.batch_size=4",
    "trainer.eval_batch_size=8",
    "task.limit=48",
    "task.eval_limit=16",
)
RTE = ("model=bert_tiny", "task=glue_mini/rte")
EXPERTS = ("method.num_experts=8", "method.top_k=4")
RUNS: dict[str, tuple[str, ...]] = {
    **{
        f"{method} bert_tiny rte": (f"method={method}", *RTE)
        for method in (
            "dense", "noisy_tuning", "emoe", "emoe_learn", "gmoe", "moe", "moe_share",
            "moe_adapter", "hypermoe",
        )
    },
    "emoe lora": ("method=emoe", "tuning=lora", *RTE),
    "emoe lora_block": ("method=emoe", "tuning=lora_block", *RTE),
    "emoe reference": ("method=emoe", "protocol=reference", *RTE),
    "hypermoe reference": ("method=hypermoe", "protocol=reference", *RTE),
    "emoe kept": ("method=emoe", "model=bert_tiny", "task=glue_mini/cola", "keep_model=best"),
    "dense gpt2_tiny language": ("method=dense", "model=gpt2_tiny", "task=wikitext_mini"),
    "emoe gpt2_tiny language": ("method=emoe", "model=gpt2_tiny", "task=wikitext_mini"),
    "hypermoe gpt2_tiny language": ("method=hypermoe", "model=gpt2_tiny", "task=wikitext_mini"),
    "emoe llama_tiny language": ("method=emoe", "model=llama_tiny", "task=wikitext_mini"),
    "emoe llama_tiny instruct": ("method=emoe", "model=llama_tiny", "task=instruct_mini"),
    "moe switch_tiny sst2": ("method=moe", "model=switch_tiny", "task=glue_mini/sst2"),
    "hypermoe switch_tiny squad": ("method=hypermoe", "model=switch_tiny", "task=squad_mini"),
    "hypermoe switch_tiny summaries": (
        "method=hypermoe", "model=switch_tiny", "task=summarisation_mini",
    ),
    "emoe vit_tiny domains": ("method=emoe", "model=vit_tiny", "task=domainbed_mini"),
    "emoe exported": ("method=emoe", "model=gpt2_tiny", "task=glue_mini/mrpc", "export=moe"),
}  # fmt: skip
OWN = {  # what does not fit SHORT
    "emoe vit_tiny domains": ("task.members=[rotated_digits/0]", "trainer.batch_size=5"),
}

DISTURBED = ("wall_seconds", "speed", "peak_memory_bytes", "resumed_at_update")  # in a result


def words(name: str, folder: Path) -> list[str]:
    """Word the command of a run whose store and cache are below a folder."""
    return [
        *RUNS[name], *SHORT, *OWN.get(name, ()),
        f"paths.output={folder}/outputs", f"paths.cache={folder}/cache",
    ]  # fmt: skip


def store_of(folder: Path) -> Store:
    """Open the store of the commands above."""
    return Store(folder / "outputs")


def numbers(store: Store) -> dict[str, dict[str, Any]]:
    """Read all results, without what time and place change."""
    found = {}
    for result in store.results():
        fields = dataclasses.asdict(result)
        for name in DISTURBED:
            del fields[name]
        found[result.id] = json.loads(json.dumps(fields))
    return found
