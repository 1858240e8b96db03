"""Perplexity of a real Llama-architecture model, dense and converted to EMoE without training.

    python scripts/check_llama_perplexity.py --gguf model.gguf --text wikitext2/test.txt

With every expert selected the perplexity must be the dense model's. With a quarter of them, experts
made of clustered neurons should lose less than random ones: that is emergent modularity.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from moe_runner import EMoE, convert, merge


@torch.inference_mode()
def perplexity(model: PreTrainedModel, ids: torch.Tensor, block: int, batch: int) -> float:
    """Compute exp of the mean loss over non-overlapping blocks.

    Args:
        model: a causal language model.
        ids: tokens, int64 (N,).
        block: tokens of a block; the first of each is not predicted.
        batch: blocks at once.
    """
    rows = ids[: len(ids) // block * block].view(-1, block)
    losses = [float(model(input_ids=b, labels=b).loss) * len(b) for b in rows.split(batch)]
    return math.exp(sum(losses) / len(rows))


def main() -> None:
    """Load, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--layers", default="last-even:2")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    place = {"pretrained_model_name_or_path": options.gguf.parent, "gguf_file": options.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    ids = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    ids = ids[: options.tokens]
    print(f"{len(ids)} tokens, blocks of {options.block}, layers {options.layers}")
    cases: list[tuple[str, EMoE | None]] = [("dense", None)]
    for share in (1, 4):
        for clustering in ("constrained_kmeans", "random"):
            method = EMoE(
                num_experts=options.experts,
                top_k=options.experts // share,
                layers=options.layers,
                clustering=clustering,
            )
            cases.append((f"top_k = num_experts / {share}, {clustering}", method))
    for name, method in cases:
        started = time.monotonic()
        if method is not None:
            convert(model, method, cache=Path("outputs/cache/clusters"))
        value = perplexity(model, ids, options.block, options.batch)
        if method is not None:
            merge(model)
        print(f"{name:45} perplexity {value:.6f}  ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
