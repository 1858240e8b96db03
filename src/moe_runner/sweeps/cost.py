"""What a run will cost, estimated from the sizes in its options; nothing is loaded.

Parameters are those of the matrices and embeddings. A token's forward pass takes two FLOPs per
active weight outside the embeddings, attention scores left out; training takes three times that,
with LoRA twice (no gradients of frozen weights). Texts are taken to be as long as `max_length`
allows, so that FLOPs are upper bounds. How long that takes is `speed`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_runner import tasks
from moe_runner.methods.moe.options import NUM_EXPERTS
from moe_runner.options.layers import select_layers
from moe_runner.registry import FAMILIES
from moe_runner.runs.run import Run


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Args:
        parameters: of the converted model.
        trainable: of these; what checkpoints hold.
        flops: of the whole training; None: the size of the data is not known.
    """

    parameters: float
    trainable: float
    flops: float | None

    @property
    def disk(self) -> float:
        """Bytes while it runs: two checkpoints of weights and AdamW's two moments, in fp32."""
        return 2 * 12 * self.trainable


def estimate(run: Run) -> Cost:
    """Estimate what a run costs.

    Args:
        run: its model, method, tuning, task and trainer are read.

    Returns:
        The estimate.
    """
    model = run.model
    stacks = FAMILIES[model.family].stacks
    ffn = (3 if model.gated else 2) * model.d_model * model.d_ff
    attention = 4 * model.d_model**2
    layers = model.num_layers * stacks
    embeddings = ((model.vocab_size or 0) + (model.max_positions or 0)) * model.d_model
    body = float(layers * (attention + ffn)) + (stacks - 1) * model.num_layers * attention
    total, active = body + embeddings, body
    copies, share, converted = expansion(run, layers)
    added = converted * (copies - 1) * ffn
    if run.method.converts and converted:
        added += run.method.added_parameters(model, converted)
    total += added
    active += converted * (share - 1) * ffn
    if run.tuning.name == "full":
        trainable = total
    else:
        lora = float(layers * len(model.lora_targets) * 2 * (run.tuning.rank or 0) * model.d_model)
        whole = whole_blocks(run, converted, stacks) * (attention + ffn)
        trainable = lora + added + whole
    tokens = training_tokens(run)
    passes = 3 if run.tuning.name == "full" else 2
    flops = None if tokens is None else passes * 2 * active * tokens
    return Cost(total, trainable, flops)


def whole_blocks(run: Run, converted: int, stacks: int) -> int:
    """Count the blocks that `tuning=lora_block` trains whole, beside LoRA.

    Args:
        run: its tuning and method are read.
        converted: FFNs.
        stacks: of the backbone: an encoder and a decoder are two.
    """
    if run.tuning.name != "lora_block":
        return 0
    if run.method.converts or run.tuning.blocks is None:
        return converted
    return stacks * len(select_layers(run.tuning.blocks, run.model.num_layers))


def expansion(run: Run, layers: int) -> tuple[float, float, int]:
    """Say how often a converted FFN is there, how much of it a token uses, and how many there are.

    Returns:
        Copies, share of one dense FFN that is active, converted FFNs.
    """
    method, model = run.method, run.model
    every = FAMILIES[model.family].sparse_every
    if not method.converts:
        return (NUM_EXPERTS, 1.0, layers // every) if every else (1.0, 1.0, 0)
    stacks = layers // model.num_layers
    if every:
        chosen = layers // every
    else:
        chosen = stacks * len(select_layers(method.layer_rule, model.num_layers))
    own = method.expansion()
    return own.copies, own.active, chosen


def training_tokens(run: Run) -> float | None:
    """Count the tokens of the whole training; None: the size of the data is not known."""
    examples = training_examples(run)
    return None if examples is None else examples * run.task.tokens(run.model)


def training_examples(run: Run) -> float | None:
    """Count the examples of the whole training, each as often as it comes; see above."""
    task, trainer = run.task, run.trainer
    assert trainer.batch_size is not None
    if trainer.max_steps is not None:
        return float(trainer.max_steps * trainer.batch_size)
    about = tasks.spec(task, run.task_name).about
    size = about.rows.get("train")
    if size is None:
        return None
    rows = min(size, task.limit or size) * task.share
    if about.row_tokens is not None:  # of a text, which is cut into blocks
        rows *= about.row_tokens / task.tokens(run.model)
    return rows * (trainer.epochs or 1)
