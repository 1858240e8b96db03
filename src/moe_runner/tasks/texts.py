"""How a task is written as text: what is read, what is answered, and what an answer means.

A class is answered by the digit of its label, a score by a number rounded to a step.

Source: HyperMoE's experiments with Switch Transformers (PROTOCOL.md II.2), after T5,
arXiv:1910.10683.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from moe_runner import metrics
from moe_runner.tasks.specs import TaskSpec


def source_text(spec: TaskSpec, columns: tuple[str, ...], texts: Sequence[str]) -> str:
    """Write what the model reads: the task's template, or "mrpc sentence1: ... sentence2: ...".

    Args:
        spec: of the task.
        columns: names of what is read; those of the task or of an out-of-domain set.
        texts: of one example, one per column.
    """
    named = dict(zip(columns, texts, strict=True))
    if spec.template is not None:
        return spec.template.format(**named)
    return " ".join([spec.name, *(f"{column}: {text}" for column, text in named.items())])


def answer_text(spec: TaskSpec, label: float | str) -> str:
    """Write a label as the text that is to be generated."""
    if isinstance(label, str):
        return label
    if spec.labels:
        return str(label)
    digits = max(0, -math.floor(math.log10(spec.step)))
    return f"{round(label / spec.step) * spec.step:.{digits}f}"


def score(
    spec: TaskSpec,
    given: Sequence[str],
    right: Sequence[Sequence[str]],
    groups: Sequence[str] | None,
    names: Sequence[str],
) -> dict[str, float]:
    """Compare generated answers with the right ones.

    An answer that is no label counts as a wrong class; one that is no number as the score 0.

    Args:
        spec: of the task.
        given: the answers.
        right: of each example, all right answers; a class or a score has one.
        groups: of each example, what it is scored together with; for a mixture, its task.
        names: of the metrics.

    Returns:
        Metric -> value.
    """
    if spec.parts:
        return _score_parts(spec.parts, given, right, groups or (), names)
    if spec.free_text:
        return metrics.compare_texts(given, right, names)
    import numpy as np

    if not spec.labels:
        scores = np.array([number(text, 0.0) for text in given])
        return metrics.compare(scores, np.array([float(texts[0]) for texts in right]), names)
    classes = np.array([int(texts[0]) for texts in right])
    digits = {str(label): label for label in range(len(spec.labels))}
    chosen = np.array(
        [
            digits.get(text.strip(), (true + 1) % len(digits))
            for text, true in zip(given, classes, strict=True)
        ]
    )
    return metrics.compare(chosen, classes, names, groups)


def _score_parts(
    parts: Mapping[str, TaskSpec],
    given: Sequence[str],
    right: Sequence[Sequence[str]],
    groups: Sequence[str],
    names: Sequence[str],
) -> dict[str, float]:
    """Score every task of a mixture by its own metrics; names are "<task>/<metric>"."""
    found: dict[str, float] = {}
    for part, spec in parts.items():
        rows = [row for row, group in enumerate(groups) if group == part]
        own = score(spec, [given[r] for r in rows], [right[r] for r in rows], None, spec.metrics)
        found |= {f"{part}/{name}": value for name, value in own.items()}
    return {name: found[name] for name in names}


def number(text: str, otherwise: float) -> float:
    """Read a number, or take another where there is none."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise
