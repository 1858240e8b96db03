"""Pretrain a bundled tiny backbone from nothing: tokenizer, weights, model card.

    python scripts/pretrain_tiny.py bert_tiny

The sizes are those of conf/model/<name>.yaml. The text is the project's own grammar
(`moe_runner.tasks.mini.corpus`) and, for a smaller part, English that is on every Python machine:
the standard library's docstrings and `pydoc_data.topics`. Both are made on the fly.
"""

import argparse
import ast
import itertools
import json
import math
import os
import platform
import re
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers when it is imported

from pydoc_data.topics import topics

import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokens

from measure_keys import arrays, clustering_table, processor
from moe_runner.files import share
from moe_runner.tasks.mini.corpus import documents
from pretrain_vit import pretrain

REPOSITORY = Path(__file__).resolve().parents[1]
HELD_OUT_SEED = 10_000_019  # documents of this seed are measured on, never trained on
PROSE_SHARE = 0.25  # of the documents
CHUNK = 2048  # documents that are made, tokenized and sorted by length together
IGNORED = -100  # label of a position that has no loss
MASKED = 0.15  # of the tokens of a masked language model, or missing in span corruption
MEAN_SPAN = 3  # tokens
NUM_SENTINELS = 32  # spans of a row
LAST_SENTENCE = 0.25  # of the rows of span corruption: the last sentence is missing

Document = list[str]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """What differs between the backbones.

    Attributes:
        model: builds a model with random weights from the sizes of conf/model/<name>.yaml.
        tokenizer: trains a tokenizer on texts, given the size of its vocabulary.
        batches: turns documents into batches of about `tokens` tokens, for ever.
        loss: mean cross-entropy of a batch; in training with the losses of the routers.
        keys: first FFN weight of every dense layer, (d_ff, d_model); the gate's if gated.
        automatic: name of the class that loads the weights.
        learning_rate: its peak.
        steps: default number of updates.
        weight_decay: of matrices.
        relative: the learning rate is multiplied by the root mean square of each parameter's
            initial values. T5's differ by a factor of 50 (embeddings 1, queries 0.02), and it was
            trained with Adafactor, whose steps are relative.
    """

    model: Callable[[dict[str, Any], Tokens], PreTrainedModel]
    tokenizer: Callable[[Iterator[str], int], Tokens]
    batches: Callable[[Iterator[list[Document]], Tokens, Random, int], Iterator[Batch]]
    loss: Callable[[PreTrainedModel, Batch], Tensor]
    keys: Callable[[PreTrainedModel], list[Tensor]]
    automatic: str
    learning_rate: float
    steps: int
    weight_decay: float = 0.1
    relative: bool = False


# Text


def prose() -> list[Document]:
    """Return the English sentences of Python's own documentation, grouped by origin."""
    texts = list(topics.values())
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        tree = ast.parse(path.read_bytes())
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
        texts += [doc for node in nodes if (doc := ast.get_docstring(node))]
    found: list[Document] = []
    seen: set[str] = set()
    for text in texts:
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
        sentences = [s for p in paragraphs for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", p)]
        plain = [s for s in sentences if re.fullmatch(r"[A-Z][a-z]*(,? [A-Za-z'-]+){3,24}[.?]", s)]
        plain = [s for s in dict.fromkeys(plain) if s not in seen]
        seen.update(plain)
        found += [plain[i : i + 3] for i in range(0, len(plain), 3)]
    return found


def text_chunks(seed: int, prose_documents: list[Document]) -> Iterator[list[Document]]:
    """Yield lists of documents for ever: mostly the grammar's, some of Python's prose."""
    rng = Random(seed)
    num_prose = round(PROSE_SHARE * CHUNK) if prose_documents else 0
    for number in itertools.count():
        chunk = list(documents(count=CHUNK - num_prose, seed=1000 * seed + number))
        chunk += rng.choices(prose_documents, k=num_prose) if num_prose else []
        rng.shuffle(chunk)
        yield chunk


# Tokenizers


def train_wordpiece(texts: Iterator[str], vocab_size: int) -> Tokens:
    """Train a lower-case WordPiece tokenizer of BERT's kind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shell = transformers.BertTokenizer(do_lower_case=True).backend_tokenizer
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = shell.normalizer, shell.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=True)


def train_t5_unigram(texts: Iterator[str], vocab_size: int) -> Tokens:
    """Train a Unigram tokenizer of T5's kind; sentinels are the last tokens, <extra_id_0> last."""
    shell = transformers.T5Tokenizer(extra_ids=0).backend_tokenizer
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = shell.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - NUM_SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(NUM_SENTINELS))]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=NUM_SENTINELS)


def _train_bytes(texts: Iterator[str], vocab_size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_gpt2_bpe(texts: Iterator[str], vocab_size: int) -> Tokens:
    """Train a byte-level BPE of GPT-2's kind, with a token of its own for padding."""
    end, pad = "<|endoftext|>", "<pad>"
    parts = json.loads(_train_bytes(texts, vocab_size, [end, pad]).to_str())["model"]
    merges = [tuple(merge) for merge in parts["merges"]]
    return transformers.GPT2Tokenizer(vocab=parts["vocab"], merges=merges, pad_token=pad)


def train_llama_bpe(texts: Iterator[str], vocab_size: int) -> Tokens:
    """Train a byte-level BPE as Llama 3 has it; every text begins with <s>."""
    bos, eos, pad = special = ["<s>", "</s>", "<pad>"]
    tokenizer = _train_bytes(texts, vocab_size, special)
    tokenizer.decoder = transformers.GPT2Tokenizer().backend_tokenizer.decoder
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, 0)]
            ),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


# Batches


def masked_batches(
    chunks: Iterator[list[Document]], tokenizer: Tokens, rng: Random, tokens: int
) -> Iterator[Batch]:
    """Yield batches for masked language modelling on segment pairs [CLS] A [SEP] B [SEP].

    Most pairs are two sentences, or two halves, of one document; one in eight is a single segment,
    and a few join many documents, so that every position is trained. Lengths are alike in a batch.
    """
    torch_rng = torch.Generator().manual_seed(rng.randrange(2**31))
    for chunk in chunks:
        counts = [len(document) for document in chunk]
        flat = tokenizer([s for d in chunk for s in d], add_special_tokens=False)["input_ids"]
        sentences = iter(flat)
        segments = [_two_segments([next(sentences) for _ in range(n)], rng) for n in counts]
        num_long = len(segments) // 64
        segments += [_joined(segments, rng) for _ in range(num_long)]
        rows = [_pair(tokenizer, a, b) for a, b in segments]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for row in rows:
            if len(row[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield mask(_padded(group, tokenizer.pad_token_id), tokenizer, torch_rng)


def _two_segments(sentences: list[list[int]], rng: Random) -> tuple[list[int], list[int]]:
    kind = rng.random()
    if kind < 0.5:  # as the downstream tasks have it: a sentence and a sentence
        sentences = rng.sample(sentences, min(2, len(sentences)))
    cut = len(sentences) if kind > 0.875 else rng.randint(1, max(1, len(sentences) - 1))
    return sum(sentences[:cut], []), sum(sentences[cut:], [])


def _joined(segments: list[tuple[list[int], list[int]]], rng: Random) -> tuple[list[int], ...]:
    first, second = (
        sum((a + b for a, b in rng.sample(segments, rng.randint(1, 5))), []) for _ in range(2)
    )
    return first[:124], second[:124]


def _pair(tokenizer: Tokens, first: list[int], second: list[int]) -> tuple[list[int], int]:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    head = [cls, *first[:124], sep]
    return head + ([*second[:124], sep] if second else []), len(head)


def _padded(group: list[tuple[list[int], int]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group])
    position = torch.arange(width)
    length = torch.tensor([len(ids) for ids, _ in group])[:, None]
    head = torch.tensor([head for _, head in group])[:, None]
    attended = position < length
    return {
        "input_ids": ids,
        "attention_mask": attended.long(),
        "token_type_ids": ((position >= head) & attended).long(),
    }


def mask(batch: Batch, tokenizer: Tokens, rng: torch.Generator) -> Batch:
    """Choose 15% of the tokens as targets: 80% become [MASK], 10% any token, 10% stay."""
    ids = batch["input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    target = (torch.rand(ids.shape, generator=rng) < MASKED) & ~special
    labels = ids.masked_fill(~target, IGNORED)
    fate = torch.rand(ids.shape, generator=rng)
    other = torch.randint(len(tokenizer), ids.shape, generator=rng)
    ids = ids.masked_fill(target & (fate < 0.8), tokenizer.mask_token_id)
    ids = torch.where(target & (fate >= 0.9), other, ids)
    return {**batch, "input_ids": ids, "labels": labels}


def causal_batches(
    chunks: Iterator[list[Document]], tokenizer: Tokens, rng: Random, tokens: int
) -> Iterator[Batch]:
    """Yield full rows of documents, each closed by the end token; a row begins with a document.

    Nearly all rows have 64 tokens, one batch in eight has 256, so that every position is trained.
    """
    for chunk in chunks:
        flat = iter(tokenizer([" ".join(document) for document in chunk])["input_ids"])
        waiting = list(flat)
        while True:
            width = 256 if rng.random() < 0.125 else 64
            rows = []
            while waiting and len(rows) < tokens // width:
                row: list[int] = []
                while waiting and len(row) < width:
                    row += [*waiting.pop(), tokenizer.eos_token_id]
                if len(row) >= width:
                    rows.append(row[:width])
            if not waiting:
                break
            ids = torch.tensor(rows)
            yield {"input_ids": ids, "labels": ids}


def span_batches(
    chunks: Iterator[list[Document]], tokenizer: Tokens, rng: Random, tokens: int
) -> Iterator[Batch]:
    """Yield batches for span corruption: what is left, with sentinels; the spans, with the same.

    A row is a document, or, one in 16, several. Of three rows in four 15% of the tokens are missing
    in spans of 3 on average, as T5 has it; of the rest the last sentence. Lengths are alike in a
    batch.

    Source: T5, arXiv:1910.10683, section 3.1.4.
    """
    for chunk in chunks:
        counts = [len(document) for document in chunk]
        flat = tokenizer([s for d in chunk for s in d], add_special_tokens=False)["input_ids"]
        sentences = iter(flat)
        texts = [[next(sentences) for _ in range(n)] for n in counts]
        texts += [sum(rng.sample(texts, rng.randint(2, 6)), []) for _ in range(len(texts) // 16)]
        rows = [_corrupted(text, tokenizer, rng) for text in texts]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if len(row[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            ids = _rectangle([source for source, _ in group], tokenizer.pad_token_id)
            yield {
                "input_ids": ids,
                "attention_mask": (ids != tokenizer.pad_token_id).long(),
                "labels": _rectangle([target for _, target in group], IGNORED),
            }


def _corrupted(text: list[list[int]], tokenizer: Tokens, rng: Random) -> tuple[list[int], ...]:
    whole = sum(text, [])
    if rng.random() < LAST_SENTENCE:
        kept, missing = [len(whole) - len(text[-1])], [len(text[-1])]
    else:
        num_missing = max(1, round(MASKED * len(whole)))
        num_spans = min(max(1, round(num_missing / MEAN_SPAN)), NUM_SENTINELS)
        kept = _parts(len(whole) - num_missing, num_spans, rng)
        missing = _parts(num_missing, num_spans, rng)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    source: list[int] = []
    target: list[int] = []
    place = 0
    for number, (before, length) in enumerate(zip(kept, missing, strict=True)):
        start, sentinel = place + before, first - number
        source += [*whole[place:start], sentinel]
        target += [sentinel, *whole[start : start + length]]
        place = start + length
    end = tokenizer.eos_token_id
    return [*source, *whole[place:], end], [*target, end]


def _parts(total: int, count: int, rng: Random) -> list[int]:
    """Draw how a number is the sum of `count` positive ones, each way with the same probability."""
    cuts = sorted(rng.sample(range(1, total), count - 1))
    return [b - a for a, b in itertools.pairwise([0, *cuts, total])]


def _rectangle(rows: list[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


# Families


def build_bert(sizes: dict[str, Any], tokenizer: Tokens) -> PreTrainedModel:
    """Return a BERT with random weights."""
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["d_model"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=4,
            intermediate_size=sizes["d_ff"],
            max_position_embeddings=sizes["max_positions"],
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_gpt2(sizes: dict[str, Any], tokenizer: Tokens) -> PreTrainedModel:
    """Return a GPT-2 with random weights."""
    assert sizes["d_ff"] == 4 * sizes["d_model"]  # what n_inner = null means
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=sizes["vocab_size"],
            n_embd=sizes["d_model"],
            n_layer=sizes["num_layers"],
            n_head=4,
            n_positions=sizes["max_positions"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_llama(sizes: dict[str, Any], tokenizer: Tokens) -> PreTrainedModel:
    """Return a Llama with random weights."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["d_model"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=4,
            intermediate_size=sizes["d_ff"],
            max_position_embeddings=sizes["max_positions"],
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_switch(sizes: dict[str, Any], tokenizer: Tokens) -> PreTrainedModel:
    """Return a Switch Transformer with random weights.

    No dropout, in tuning neither: with 0.1 a model of this size learns a task four times slower.
    """
    return transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(
            dropout_rate=0.0,
            vocab_size=sizes["vocab_size"],
            d_model=sizes["d_model"],
            d_kv=sizes["d_model"] // 4,
            d_ff=sizes["d_ff"],
            num_layers=sizes["num_layers"],
            num_decoder_layers=sizes["num_layers"],
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_heads=4,
            num_experts=8,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def masked_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the loss of BERT; the head sees the masked positions only, which saves a third."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    target = batch["labels"] != IGNORED
    hidden = model.bert(**inputs).last_hidden_state[target]
    return nn.functional.cross_entropy(model.cls(hidden), batch["labels"][target])


def causal_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the loss of a causal language model."""
    return model(**batch).loss


def switch_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the loss of a Switch Transformer; in training with its routers' losses."""
    return model(**batch, output_router_logits=model.training).loss


def switch_keys(model: PreTrainedModel) -> list[Tensor]:
    """Return the keys of the dense layers, the encoder's first."""
    blocks = [*model.encoder.block, *model.decoder.block]
    return [b.layer[-1].mlp.wi.weight for b in blocks if not b.layer[-1].is_sparse]


FAMILIES = {
    "bert_tiny": Family(
        model=build_bert,
        tokenizer=train_wordpiece,
        batches=masked_batches,
        loss=masked_loss,
        keys=lambda model: [x.intermediate.dense.weight for x in model.bert.encoder.layer],
        automatic="AutoModelForMaskedLM",
        learning_rate=2e-3,
        steps=4000,
    ),
    "gpt2_tiny": Family(
        model=build_gpt2,
        tokenizer=train_gpt2_bpe,
        batches=causal_batches,
        loss=causal_loss,
        keys=lambda model: [x.mlp.c_fc.weight.T for x in model.transformer.h],
        automatic="AutoModelForCausalLM",
        learning_rate=3e-3,
        steps=4000,
    ),
    "llama_tiny": Family(
        model=build_llama,
        tokenizer=train_llama_bpe,
        batches=causal_batches,
        loss=causal_loss,
        keys=lambda model: [x.mlp.gate_proj.weight for x in model.model.layers],
        automatic="AutoModelForCausalLM",
        learning_rate=3e-3,
        steps=4000,
    ),
    "switch_tiny": Family(
        model=build_switch,
        tokenizer=train_t5_unigram,
        batches=span_batches,
        loss=switch_loss,
        keys=switch_keys,
        automatic="AutoModelForSeq2SeqLM",
        learning_rate=2e-2,
        steps=8000,
        weight_decay=0.2,
        relative=True,
    ),
}


# Training and measuring


def train(model: PreTrainedModel, family: Family, batches: Iterator[Batch], steps: int) -> int:
    """Train with AdamW: warm-up over 6% of the steps, then a linear decay to zero.

    Returns:
        Number of tokens seen, padding left out.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": family.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if family.relative:
        groups = [
            {
                **group,
                "params": [p],
                "lr": family.learning_rate * float(p.detach().square().mean().sqrt()),
            }
            for group in groups
            for p in group["params"]
        ]
    optimizer = torch.optim.AdamW(groups, lr=family.learning_rate, betas=(0.9, 0.98), fused=True)
    warmup = max(1, round(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, (steps - n) / (steps - warmup))
    )
    model.train()
    num_tokens, recent, started = 0, 0.0, time.monotonic()
    for step, batch in enumerate(itertools.islice(batches, steps), start=1):
        loss = family.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        num_tokens += int(batch.get("attention_mask", batch["input_ids"] >= 0).sum())
        recent = loss.item() if step == 1 else 0.99 * recent + 0.01 * loss.item()
        if step % 250 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  loss {recent:.3f}  {seconds:.0f} s", flush=True)
    return num_tokens


@torch.no_grad()
def mean_loss(model: PreTrainedModel, family: Family, batches: list[Batch]) -> float:
    """Return the mean loss over the target tokens of some batches, dropout off."""
    model.eval()
    counts = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    losses = [family.loss(model, batch).item() for batch in batches]
    return sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)


def finetuning_step(folder: Path) -> float:
    """Return the time in ms of a fine-tuning step of 32 x 16 tokens: 2 threads, fastest of 60.

    A Switch Transformer generates two tokens where the others have a classifier.
    """
    torch.set_num_threads(2)
    config = transformers.AutoConfig.from_pretrained(folder)
    generates = config.is_encoder_decoder
    automatic = AutoModelForSeq2SeqLM if generates else AutoModelForSequenceClassification
    model = automatic.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(5, model.config.vocab_size, (32, 16))
    labels = ids[:, :2].contiguous() if generates else torch.arange(32) % 2
    times = []
    for _ in range(60):
        started = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


# Model card

CARD = """\
---
license: mit
language: en
---

# {name}

A {kind} with {parameters:,} parameters, pretrained from random weights for the offline examples
and tests of moe-runner. It has the form of the real model (configuration, tokenizer, weights that
training has shaped) and none of its knowledge.

- **Command:** `{command}`
- **Size:** {layers}, d_model {d_model}, d_ff {d_ff}, 4 heads, vocabulary {vocab_size},
  {positions} positions; fp16 safetensors, {megabytes:.2f} MB with the tokenizer.
- **Tokenizer:** {tokenizer}
- **Objective:** {objective}
- **Training:** {steps:,} steps of about {tokens_per_step:,} tokens, {num_tokens:,} tokens in all;
  AdamW (betas 0.9 and 0.98, weight decay {weight_decay:g}), peak learning rate
  {learning_rate:g}{relative}, warm-up over 6% of the steps, then linear decay; dropout as in the
  configuration; fp32; seed {seed}.
- **Time:** {cpu_minutes:.1f} CPU minutes of training on {threads} thread(s), {minutes:.1f} minutes
  by the clock of a machine with other work to do ({processor}; torch {torch_version}).
- **Fine-tuning step** of 32 x 16 tokens, same machine, 2 threads: {step_ms:.0f} ms (fastest of 60).

## Loss

Cross-entropy in nats per predicted token, on text that was not trained on.

| held-out text | loss before | loss after | perplexity after |
|---|---:|---:|---:|
{losses}

## Clustering of the keys

Mean squared distance of the unit-length keys (the rows of the first FFN projection{gated})
to the centre of their expert, constrained k-means with experts of equal size. "Shuffled": each
column of the pretrained keys permuted over the neurons by itself, then scaled to unit length again.
"Initial": the random weights that training began with. Pretrained keys are {percent:.0f}% below
shuffled ones on average.

{clustering}

## Data and licence

The weights are under the MIT licence, as moe-runner is. They were trained on (a) documents of this
project's own grammar, `moe_runner.tasks.mini.corpus` (MIT; about {grammar_percent:.0f}% of the
tokens; without the sentences that the `glue_mini` evaluation sets hold out), and (b) English
sentences of the documentation that comes with Python {python}: docstrings of the standard library
and `pydoc_data.topics` (Python Software Foundation License; {prose_documents:,} groups of 1 to 3
sentences, seen many times). No text is distributed with the weights.

## Limits

The text is synthetic and its lexicon small ({vocab_size} tokens in all). Use the model for tests,
examples, and comparisons between methods on `glue_mini`; its scores say nothing about natural
language, and its text is of no use.
"""
MASKED_OBJECTIVE = (
    "masked language modelling (15% of the tokens, 80/10/10, drawn anew each time) on\n"
    "  `[CLS] A [SEP] B [SEP]`, A and B of the same document, and on single segments."
)
CAUSAL_OBJECTIVE = (
    "next-token prediction on rows of 64 tokens (one batch in eight: 256), filled with\n"
    "  documents that are each closed by the end token; a row begins where a document does."
)
SPAN_OBJECTIVE = (
    "span corruption, as T5 has it: 15% of the tokens are missing in spans of 3 on average\n"
    "  and are generated after their sentinels; of one row in four the last sentence is missing.\n"
    "  The routers' losses are added in training (load balance and z, 0.001 each)."
)
OBJECTIVES = {
    "bert_tiny": MASKED_OBJECTIVE,
    "gpt2_tiny": CAUSAL_OBJECTIVE,
    "llama_tiny": CAUSAL_OBJECTIVE,
    "switch_tiny": SPAN_OBJECTIVE,
}
SWITCH_LAYERS = (
    "encoder and decoder of 3 layers, the second of each with 8 experts and a top-1 router"
)
TOKENIZERS = {
    "bert_tiny": "lower-case WordPiece with [PAD] [UNK] [CLS] [SEP] [MASK], trained on the text.",
    "gpt2_tiny": "byte-level BPE trained on the text. Padding is `<pad>`, a token of its own;\n"
    "  begin and end are `<|endoftext|>`; like GPT-2's, it adds neither by itself.",
    "llama_tiny": "byte-level BPE trained on the text. Padding is `<pad>`, a token of its own;\n"
    "  like Llama's, it puts `<s>` before a text and does not add `</s>`.",
    "switch_tiny": "Unigram trained on the text, with T5's `<pad>`, `</s>`, `<unk>` and 32\n"
    "  sentinels, `<extra_id_0>` to `<extra_id_31>`; like T5's, it adds `</s>`.",
}


def main() -> None:
    """Train one backbone and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*FAMILIES, "vit_tiny"])
    parser.add_argument("--out", type=Path, help="folder (default: src/moe_runner/assets/NAME)")
    parser.add_argument("--steps", type=int, help="updates (default: the family's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-per-step", type=int, default=1024)
    args = parser.parse_args()
    out = args.out or REPOSITORY / "src/moe_runner/assets" / args.name
    sizes = yaml.safe_load((REPOSITORY / f"conf/model/{args.name}.yaml").read_text())
    torch.set_num_threads(args.threads)
    if args.name == "vit_tiny":  # images, not text
        print(pretrain(out, sizes, args.steps, args.seed, args.threads))
        return
    family = FAMILIES[args.name]
    steps = args.steps or family.steps
    torch.manual_seed(args.seed)

    paragraphs = prose()
    held_out_prose, seen_prose = paragraphs[::20], [p for i, p in enumerate(paragraphs) if i % 20]
    sample = [*itertools.islice(text_chunks(args.seed, seen_prose), 10)]
    texts = (" ".join(document) for chunk in [*sample, seen_prose] for document in chunk)
    tokenizer = family.tokenizer(texts, sizes["vocab_size"])
    assert len(tokenizer) == sizes["vocab_size"]
    count = {True: 0, False: 0}  # tokens of prose, of the grammar
    known = {tuple(paragraph) for paragraph in seen_prose}
    for document in sample[0]:
        count[tuple(document) in known] += len(tokenizer.tokenize(" ".join(document)))

    model = family.model(sizes, tokenizer)
    initial = arrays(family.keys(model))
    held_out = {
        "grammar's documents": [list(documents(count=1000, seed=HELD_OUT_SEED))],
        "Python's documentation": [held_out_prose],
    }
    evaluation = {
        label: list(family.batches(iter(chunks), tokenizer, Random(0), 4096))
        for label, chunks in held_out.items()
    }
    before = {label: mean_loss(model, family, value) for label, value in evaluation.items()}
    chunks = text_chunks(args.seed + 1, seen_prose)
    batches = family.batches(chunks, tokenizer, Random(args.seed), args.tokens_per_step)
    started, cpu_started = time.monotonic(), time.process_time()
    num_tokens = train(model, family, batches, steps)
    minutes = (time.monotonic() - started) / 60
    cpu_minutes = (time.process_time() - cpu_started) / 60

    out.mkdir(parents=True, exist_ok=True)
    if sizes["max_positions"]:
        tokenizer.model_max_length = sizes["max_positions"]
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)
    share(out, "*.safetensors")
    automatic = getattr(transformers, family.automatic)
    model = automatic.from_pretrained(out, dtype=torch.float32)  # what is shipped is measured
    after = {label: mean_loss(model, family, value) for label, value in evaluation.items()}
    table, ratio = clustering_table(arrays(family.keys(model)), initial)
    given = [f"--steps {steps} --seed {args.seed} --threads {args.threads}"]
    given.append(f"--tokens-per-step {args.tokens_per_step}")
    card = CARD.format(
        name=args.name,
        kind=type(model).__name__,
        parameters=model.num_parameters(),
        command=" ".join(["python scripts/pretrain_tiny.py", args.name, *given]),
        **{k: sizes[k] for k in ("d_model", "d_ff", "vocab_size")},
        layers=f"{sizes['num_layers']} layers" if family.loss is not switch_loss else SWITCH_LAYERS,
        positions=sizes["max_positions"] or "relative",
        megabytes=sum(file.stat().st_size for file in out.iterdir()) / 1e6,
        tokenizer=TOKENIZERS[args.name],
        objective=OBJECTIVES[args.name],
        steps=steps,
        tokens_per_step=args.tokens_per_step,
        num_tokens=num_tokens,
        learning_rate=family.learning_rate,
        weight_decay=family.weight_decay,
        relative=" of each parameter's initial size" if family.relative else "",
        seed=args.seed,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
        threads=args.threads,
        processor=processor(),
        torch_version=torch.__version__,
        step_ms=finetuning_step(out),
        losses="\n".join(
            f"| {label} | {before[label]:.3f} | {after[label]:.3f} | {math.exp(after[label]):.2f} |"
            for label in evaluation
        ),
        gated=", `gate_proj`" if sizes["gated"] else "",
        percent=100 * (1 - ratio),
        clustering=table,
        grammar_percent=100 * count[False] / sum(count.values()),
        python=platform.python_version(),
        prose_documents=len(seen_prose),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
