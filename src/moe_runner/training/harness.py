"""MMLU by lm-evaluation-harness, on a model in memory: its prompts, its scoring, our questions.

The harness is an extra: pip install -e '.[llm]'. Nothing else imports this module before the
plan has seen that it is there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as evaluate_tasks
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_runner.backbones.families import positions_of
from moe_runner.tasks.mmlu import LETTERS

log = logging.getLogger(__name__)

PADDING = 0  # what the harness fills up a batch with, on the right
UNBOUNDED = 2048  # positions of a model whose config names none: BLOOM's, of its training
TEMPLATE = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default" / "_default_template_yaml"


class InMemoryLM(HFLM):
    """The harness' view of a converted model; tells the MoE layers which positions are padding.

    Args:
        after_batch: called with how many batches there are, after each.
        **kwargs: see `HFLM`.

    Attributes:
        cut: requests whose start was cut off, since they are longer than the model's positions.
    """

    def __init__(self, after_batch: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.after_batch, self.batches = after_batch, 0
        self.cut: set[tuple[str, str]] = set()

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        # A row that ends in the padding's id is padded: a prompt ends in "Answer:".
        real = (inps != PADDING).flip(1).cummax(1).values.flip(1)
        with (
            torch.no_grad(),
            torch.autocast(
                self.device.type, self.mixed_precision_dtype, self.mixed_precision_dtype is not None
            ),
        ):
            logits = self.model(input_ids=inps, attention_mask=real.long()).logits
        self.after_batch(self.batches)
        return logits

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for text, context, continuation in requests:
            if len(context) + len(continuation) > self.max_length + 1:
                self.cut.add(text)
        # Letters of one token are read off the same prediction: one forward pass for all four.
        passes = {(*context, *continuation[:-1]) for _, context, continuation in requests}
        self.batches = math.ceil(len(passes) / int(self.batch_size))
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Dataset,
    *,
    shots: int,
    batch_size: int,
    precision: torch.dtype | None = None,
    after_batch: Callable[[int], None] = lambda batches: None,
) -> dict[str, float]:
    """Answer the questions: the letter of the largest likelihood after "Answer:".

    Every process of a distributed run answers all of them.

    Args:
        model: causal, on its device; its mode is restored.
        tokenizer: of the model.
        questions: columns of `tasks.mmlu.load`.
        shots: solved examples of the same subject before each question, the first ones of dev.
        batch_size: prompts at once.
        precision: of autocast; None: that of the weights.
        after_batch: called with how many batches of prompts there are, after each.

    Returns:
        `accuracy` over all questions (not the mean of the subjects), `accuracy/<subject>`, `loss`
        (mean negative log-likelihood of the right letter), `examples`, and `primary`, the accuracy.

    Source: lm-evaluation-harness, its task mmlu; Hendrycks et al., arXiv:2009.03300.
    """
    training, stderr = model.training, sys.stderr
    model.eval()

    def tell(batches: int) -> None:
        with contextlib.redirect_stderr(stderr):  # where the harness may not write
            after_batch(batches)

    with quietly():
        lm = InMemoryLM(
            tell,
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            mixed_precision_dtype=precision,
            max_length=positions_of(model.config.to_dict()) or UNBOUNDED,
        )
        subjects = sorted(set(questions["subject"]))
        tasks = {name: subject_task(name, questions, shots) for name in subjects}
        found = evaluate_tasks(lm, tasks, bootstrap_iters=0, log_samples=True)
    model.train(training)
    assert found is not None  # this process has rank 0 for the harness
    samples = {name: found["samples"][name] for name in subjects}
    right = {name: [sample["acc"] for sample in samples[name]] for name in subjects}
    losses = [
        -float(sample["filtered_resps"][sample["doc"]["answer"]][0])
        for name in subjects
        for sample in samples[name]
    ]
    examples = len(losses)
    if lm.cut:
        log.warning(
            "  %d of %d prompts of %d shots are longer than the %d positions of the model and are "
            "cut at their start; use a smaller task.shots",
            len({context for context, _ in lm.cut}),
            examples,
            shots,
            lm.max_length,
        )
    accuracy = sum(sum(each) for each in right.values()) / examples
    return {
        "accuracy": accuracy,
        "primary": accuracy,
        "loss": sum(losses) / examples,
        "examples": examples,
        **{f"accuracy/{name}": sum(each) / len(each) for name, each in right.items()},
    }


def subject_task(subject: str, questions: Dataset, shots: int) -> ConfigurableTask:
    """Make the harness' task of one subject, with its own prompt and our questions."""
    places = list(zip(questions["subject"], questions["split"], strict=True))
    splits = {
        split: questions.select([i for i, place in enumerate(places) if place == (subject, split)])
        for split in ("test", "dev")
    }
    config = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    for key in ("dataset_path", "metadata"):  # it is not read from the Hub
        config.pop(key, None)
    config |= {
        "task": subject,
        "custom_dataset": lambda **_: splits,
        "num_fewshot": shots,
        "description": "The following are multiple choice questions (with answers) about "
        f"{subject.replace('_', ' ')}.\n\n",
    }
    assert tuple(config["doc_to_choice"]) == tuple(LETTERS)
    return ConfigurableTask(config=config)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leave the terminal to us: no bars and no log of the harness; errors are raised as ever."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
