"""Pretrain the bundled `vit_tiny` on drawn images; called by `pretrain_tiny.py vit_tiny`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from measure_keys import arrays, clustering_table, processor
from moe_runner.files import share
from moe_runner.tasks.mini.drawings import BACKGROUNDS, GLYPHS, LABELS, SIZE, draw

PATCH = 8
BATCH = 128
STEPS = 1500
LEARNING_RATE = 1e-3
BACKGROUND_LOSS = 0.3  # weight of the second cross-entropy
HELD_OUT_SEED = 10_000_019
MEAN_STD = 0.5  # of every channel, as ViT has it

CARD = """\
---
license: mit
---

# vit_tiny

A ViTForImageClassification with {parameters:,} parameters, pretrained from random weights for the
offline examples and tests of moe-runner. It has the form of the real model (configuration,
preprocessing, weights that training has shaped) and little of its knowledge.

- **Command:** `{command}`
- **Size:** {num_layers} layers, d_model {d_model}, d_ff {d_ff}, 4 heads, images of {size} x {size}
  pixels in patches of {patch} x {patch} (17 tokens with [CLS]); fp16 safetensors,
  {megabytes:.2f} MB.
- **Preprocessing:** RGB, 0 to 1, minus 0.5, divided by 0.5 (`preprocessor_config.json`).
- **Objective:** which of {glyphs} glyphs is drawn, and (weight {weight}) on which of {backgrounds}
  backgrounds: two cross-entropies on one head of {labels} outputs.
- **Training:** {steps:,} steps of {batch} images, each drawn once: {images:,} in all; AdamW (betas
  0.9 and 0.999, weight decay 0.05), peak learning rate {learning_rate:g}, warm-up over 6% of the
  steps, then linear decay; fp32; seed {seed}.
- **Time:** {cpu_minutes:.1f} CPU minutes with the drawing on {threads} thread(s), {minutes:.1f}
  minutes by the clock of a machine with other work to do ({processor}; torch {torch_version}).

## Loss

Cross-entropy in nats per image, on {held_out:,} images that were not trained on.

| label | loss before | loss after | accuracy after |
|---|---:|---:|---:|
{losses}

## Clustering of the keys

Mean squared distance of the unit-length keys (the rows of the first FFN projection)
to the centre of their expert, constrained k-means with experts of equal size. "Shuffled": each
column of the pretrained keys permuted over the neurons by itself, then scaled to unit length again.
"Initial": the random weights that training began with. Pretrained keys are {percent:.0f}% below
shuffled ones on average.

{clustering}

## Data and licence

The weights are under the MIT licence, as moe-runner is. Every image was drawn by this project's
own `moe_runner.tasks.mini.drawings` (MIT): digits and letters of strokes, figures and simple
pictures, distorted, in random colours on patterned backgrounds. No photograph, no handwriting and
none of the images of `domainbed_mini` was used.

## Limits

It has seen drawings only. Use it for tests, examples, and comparisons between methods; on
photographs its scores say little.
"""


def build(sizes: dict[str, Any]) -> ViTForImageClassification:
    """Return a ViT with random weights for the drawn images."""
    config = ViTConfig(
        hidden_size=sizes["d_model"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=4,
        intermediate_size=sizes["d_ff"],
        image_size=SIZE,
        patch_size=PATCH,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return ViTForImageClassification(config)


def batch(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw images as the model takes them, float (B, 3, SIZE, SIZE), and labels, int64 (B, 2)."""
    images, labels = draw(count, rng)
    pixels = torch.from_numpy(images).float().div_(255).sub_(MEAN_STD).div_(MEAN_STD)
    return pixels, torch.from_numpy(labels)


def losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the glyph and that of the background."""
    glyph, background = logits.split([len(GLYPHS), len(BACKGROUNDS)], dim=1)
    return (
        nn.functional.cross_entropy(glyph, labels[:, 0]),
        nn.functional.cross_entropy(background, labels[:, 1]),
    )


def train(model: ViTForImageClassification, steps: int, seed: int) -> None:
    """Train with AdamW: warm-up over 6% of the steps, then a linear decay to zero."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    warmup = max(1, round(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, (steps - n) / (steps - warmup))
    )
    rng = np.random.default_rng(seed)
    recent, started = 0.0, time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        pixels, labels = batch(BATCH, rng)
        glyph, background = losses(model(pixel_values=pixels).logits, labels)
        (glyph + BACKGROUND_LOSS * background).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent = glyph.item() if step == 1 else 0.98 * recent + 0.02 * glyph.item()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  glyph loss {recent:.3f}  {seconds:.0f} s", flush=True)


@torch.no_grad()
def measure(
    model: ViTForImageClassification, pixels: Tensor, labels: Tensor
) -> tuple[list[float], list[float]]:
    """Return the losses and the accuracies of glyph and background."""
    logits = torch.cat([model.eval()(pixel_values=part).logits for part in pixels.split(256)])
    parts = logits.split([len(GLYPHS), len(BACKGROUNDS)], dim=1)
    right = [float((p.argmax(1) == labels[:, i]).float().mean()) for i, p in enumerate(parts)]
    return [float(loss) for loss in losses(logits, labels)], right


def pretrain(out: Path, sizes: dict[str, Any], steps: int | None, seed: int, threads: int) -> str:
    """Train, and write the folder.

    Args:
        out: the folder.
        sizes: of conf/model/vit_tiny.yaml.
        steps: updates; None: the default.
        seed: of weights and drawings.
        threads: of torch.

    Returns:
        The model card.
    """
    steps = steps or STEPS
    torch.manual_seed(seed)
    model = build(sizes)
    keys = [layer.mlp.fc1.weight for layer in model.vit.layers]
    initial = arrays(keys)
    held_out = batch(2048, np.random.default_rng(HELD_OUT_SEED))
    before, _ = measure(model, *held_out)
    started, cpu_started = time.monotonic(), time.process_time()
    train(model, steps, seed)
    minutes = (time.monotonic() - started) / 60
    cpu_minutes = (time.process_time() - cpu_started) / 60
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    share(out, "*.safetensors")
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN_STD] * 3,
        "image_std": [MEAN_STD] * 3,
    }
    text = json.dumps(preprocessing, indent=2) + "\n"
    (out / "preprocessor_config.json").write_text(text, encoding="utf-8")
    shipped = transformers.AutoModelForImageClassification.from_pretrained(out, dtype=torch.float32)
    after, right = measure(shipped, *held_out)
    table, ratio = clustering_table(
        arrays([layer.mlp.fc1.weight for layer in shipped.vit.layers]), initial
    )
    card = CARD.format(
        parameters=shipped.num_parameters(),
        command="python scripts/pretrain_tiny.py vit_tiny "
        f"--steps {steps} --seed {seed} --threads {threads}",
        **{key: sizes[key] for key in ("num_layers", "d_model", "d_ff")},
        size=SIZE,
        patch=PATCH,
        megabytes=sum(f.stat().st_size for f in out.iterdir() if f.suffix != ".md") / 1e6,
        glyphs=len(GLYPHS),
        backgrounds=len(BACKGROUNDS),
        labels=len(LABELS),
        weight=BACKGROUND_LOSS,
        steps=steps,
        batch=BATCH,
        images=steps * BATCH,
        learning_rate=LEARNING_RATE,
        seed=seed,
        cpu_minutes=cpu_minutes,
        threads=threads,
        minutes=minutes,
        processor=processor(),
        torch_version=torch.__version__,
        held_out=len(held_out[1]),
        losses="\n".join(
            f"| {label} | {before[i]:.3f} | {after[i]:.3f} | {right[i]:.3f} |"
            for i, label in enumerate(("glyph", "background"))
        ),
        percent=100 * (1 - ratio),
        clustering=table,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return card
