"""The library in one minute: convert a model, tune it with plain PyTorch, save, load, merge.

`python scripts/library_example.py`                      with the bundled 4-layer BERT
`python scripts/library_example.py <folder or Hub id>`   with a BERT, GPT-2 or Llama of yours
"""

from __future__ import annotations

import sys
import tempfile

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from moe_runner import EMoE, auxiliary_loss, convert, from_pretrained, merge, save_pretrained
from moe_runner.backbones.weights import ASSETS

WORDS = {1: ["fine", "great", "lovely"], 0: ["awful", "dull", "poor"]}
THINGS = ["film", "book", "meal", "song", "play", "hotel", "game", "trip"]


def main(name: str) -> None:
    """Carry out every step and print what it shows.

    Args:
        name: folder of a model with its tokenizer, or its id on the Hub.
    """
    torch.manual_seed(0)
    logging.set_verbosity_error()  # of the new head
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(
        name,
        num_labels=2,
        dtype=torch.float32,  # some files hold 16 bit, which train badly
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id

    # The last two FFNs become 16 experts of similar neurons each; a token takes 4 of them.
    conversion = convert(model, EMoE(num_experts=16, top_k=4, layers="last:2"))
    print(conversion.report(model))

    rows = [(f"the {t} was {w}", label) for label in WORDS for w in WORDS[label] for t in THINGS]
    texts, labels = zip(*rows, strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(30):
        loss = model(**batch).loss
        extra = auxiliary_loss(model)  # of learned routers; None: these have nothing to balance
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"update {step + 1}: loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = model.eval()(**batch).logits
        save_pretrained(model, folder)  # AutoModel would load this folder as the dense model
        loaded = from_pretrained(folder)
        print("loaded again, largest difference:", difference(before, loaded(**batch).logits))
        merge(model)
        dense = model(**batch).logits
        print("merged into the dense model:     ", difference(before, dense))
    print("of all texts right, sparse and dense:", right(before, labels), right(dense, labels))


def difference(a: torch.Tensor, b: torch.Tensor) -> str:
    """Write the largest difference of two outputs."""
    return f"{(a - b).abs().max().item():.1e}"


def right(logits: torch.Tensor, labels: tuple[int, ...]) -> str:
    """Write the share of right answers."""
    return f"{(logits.argmax(-1) == torch.tensor(labels)).float().mean().item():.0%}"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(ASSETS / "bert_tiny"))
