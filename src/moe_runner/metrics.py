"""The metrics of the tasks: fractions, but for those of `RAW`.

Heavy imports (numpy, scikit-learn, scipy) stay inside the functions: specs name metrics, and the
command line reads specs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray


def matthews(predicted: ndarray, labels: ndarray) -> float:
    """Correlate two sets of classes; 0 if one is constant. -1 to 1."""
    from sklearn.metrics import matthews_corrcoef

    if constant(predicted) or constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def accuracy(predicted: ndarray, labels: ndarray) -> float:
    """Return the share of right classes, 0 to 1."""
    return float((predicted == labels).mean())


def f1(predicted: ndarray, labels: ndarray) -> float:
    """Return the F1 score of class 1, 0 to 1; 0 if it is never predicted nor the label."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, zero_division=0))


def pearson(predicted: ndarray, labels: ndarray) -> float:
    """Correlate two sets of scores; 0 if one is constant. -1 to 1."""
    from scipy.stats import pearsonr

    if constant(predicted) or constant(labels):
        return 0.0
    return float(pearsonr(predicted, labels).statistic)


def spearman(predicted: ndarray, labels: ndarray) -> float:
    """Correlate the ranks of two sets of scores; 0 if one is constant. -1 to 1."""
    from scipy.stats import spearmanr

    if constant(predicted) or constant(labels):
        return 0.0
    return float(spearmanr(predicted, labels).statistic)


def macro_f1(predicted: ndarray, labels: ndarray) -> float:
    """Return the mean F1 score of the classes that occur, 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0))


def group_exact_match(predicted: ndarray, labels: ndarray, groups: Sequence[str]) -> float:
    """Return the share of groups without a mistake, 0 to 1: MultiRC's EM over questions."""
    right = dict.fromkeys(groups, True)
    for group, hit in zip(groups, predicted == labels, strict=True):
        right[group] = right[group] and bool(hit)
    return sum(right.values()) / len(right)


def rouge(given: Sequence[str], right: Sequence[Sequence[str]], name: str) -> float:
    """Return the mean F score of ROUGE, with Porter's stemmer, 0 to 1; of references the best.

    Args:
        given: texts.
        right: of each text, its references.
        name: rouge1, rouge2 (words, pairs of words) or rougeL (longest common subsequence).
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True)
    scores = [
        scorer.score_multi(references, text)[name].fmeasure
        for text, references in zip(given, right, strict=True)
    ]
    return float(sum(scores) / len(scores))


def squad(given: Sequence[str], right: Sequence[Sequence[str]], name: str) -> float:
    """Return SQuAD's mean exact match or F1 of words, 0 to 1; of the right answers the best.

    Args:
        given: answers.
        right: of each answer, all right ones.
        name: exact_match or f1.
    """
    from torchmetrics.functional.text import squad as compute_squad

    predictions: list[Any] = [
        {"id": str(i), "prediction_text": text} for i, text in enumerate(given)
    ]
    targets: list[Any] = [
        {"id": str(i), "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}
        for i, texts in enumerate(right)
    ]
    return float(compute_squad(predictions, targets)[name]) / 100


def exact_match(given: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    """Return SQuAD's exact match; see `squad`."""
    return squad(given, right, "exact_match")


def token_f1(given: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    """Return SQuAD's F1 of words; see `squad`."""
    return squad(given, right, "f1")


METRICS: dict[str, Callable[[ndarray, ndarray], float]] = {
    "matthews": matthews,
    "accuracy": accuracy,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
    "macro_f1": macro_f1,
}
GROUPED: dict[str, Callable[[ndarray, ndarray, Sequence[str]], float]] = {
    "group_exact_match": group_exact_match,
}
TEXTS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "rouge1": partial(rouge, name="rouge1"),
    "rouge2": partial(rouge, name="rouge2"),
    "rougeL": partial(rouge, name="rougeL"),
    "exact_match": exact_match,
    "token_f1": token_f1,
}


RAW = ("perplexity",)  # no fractions: tables show them as they are
LOWER_IS_BETTER = ("perplexity",)
NAMES = frozenset((*METRICS, *GROUPED, *TEXTS, *RAW))


def is_known(name: str) -> bool:
    """Tell whether a name is a metric's, with a task before it or a part after it, or neither.

    Args:
        name: "accuracy", of a mixture "cola/matthews", of a part "accuracy/anatomy".
    """
    return name in NAMES or not NAMES.isdisjoint(name.split("/"))


def named(names: Sequence[str], between: str = " + ") -> str:
    """Name the metrics of a task in short; those of a mixture are one per task and metric."""
    tasks = {name.partition("/")[0] for name in names if "/" in name}
    return f"mean of {len(tasks)} tasks" if tasks else between.join(names)


def shown(value: float, names: Sequence[str]) -> str:
    """Write the primary value of a task as people read it: percent, or as it is."""
    return f"{scaled(value, names):.{2 if set(names) & set(RAW) else 1}f}"


def scaled(value: float, names: Iterable[str]) -> float:
    """Turn the primary value of a task into the number that people read: percent, or as it is."""
    return value if set(names) & set(RAW) else 100 * value


def spread(values: Sequence[float]) -> float:
    """Return the population standard deviation; NaN if a value (a perplexity) is not finite.

    Args:
        values: at least one.
    """
    return statistics.pstdev(values) if all(map(math.isfinite, values)) else math.nan


def lower_is_better(names: Sequence[str]) -> bool:
    """Tell whether a smaller primary value of a task is the better one."""
    return bool(set(names) & set(LOWER_IS_BETTER))


def alike(metrics: Iterable[Sequence[str]]) -> bool:
    """Tell whether scores have one unit and one direction, so that their mean means something.

    Args:
        metrics: names of those of each score.
    """
    return len({(scaled(1.0, names), lower_is_better(names)) for names in metrics}) <= 1


def decode(predictions: ndarray) -> ndarray:
    """Turn the output of a model into classes or scores.

    Args:
        predictions: logits, float (n, classes); or scores, float (n,) or (n, 1).

    Returns:
        Classes, int64 (n,); or scores, float64 (n,).

    Raises:
        ValueError: if a number is NaN or infinite: the training has diverged.
    """
    import numpy as np

    predictions = np.asarray(predictions)
    if not np.isfinite(predictions).all():
        raise ValueError(
            "predictions are not finite (training diverged); use a smaller trainer.learning_rate"
        )
    if predictions.ndim == 2 and predictions.shape[1] > 1:
        return predictions.argmax(1)
    return predictions.reshape(-1).astype(np.float64)


def compute(predictions: ndarray, labels: ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """Score a model's output.

    Args:
        predictions: as for `decode`.
        labels: classes, int (n,); or scores, float (n,). At least one.
        metrics: keys of `METRICS`.

    Returns:
        Metric -> value.

    Raises:
        ValueError: if a prediction is not finite, or there are more or fewer labels.
    """
    import numpy as np

    return compare(decode(predictions), np.asarray(labels), metrics)


def compare(
    predicted: ndarray,
    labels: ndarray,
    metrics: Sequence[str],
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score classes or scores.

    Args:
        predicted: (n,).
        labels: (n,), at least one.
        metrics: keys of `METRICS` or `GROUPED`.
        groups: what each example is scored together with; for metrics of `GROUPED`.

    Returns:
        Metric -> value.

    Raises:
        ValueError: if there are more or fewer labels.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"{predicted.shape[0]} predictions for labels of shape {labels.shape}")
    return {
        name: METRICS[name](predicted, labels)
        if name in METRICS
        else GROUPED[name](predicted, labels, groups or ())
        for name in metrics
    }


def compare_texts(
    given: Sequence[str], right: Sequence[Sequence[str]], metrics: Sequence[str]
) -> dict[str, float]:
    """Score texts.

    Args:
        given: at least one.
        right: of each text, all right ones.
        metrics: keys of `TEXTS`.

    Returns:
        Metric -> value.
    """
    return {name: TEXTS[name](given, right) for name in metrics}


def primary(values: Mapping[str, float]) -> float:
    """Return the one number of a task, the mean of its metrics (as EMoE averages them).

    Of a mixture, whose metrics are named "<task>/<metric>", the mean of its tasks' numbers.
    """
    tasks: dict[str, list[float]] = {}
    for name, value in values.items():
        tasks.setdefault(name.rpartition("/")[0], []).append(value)
    return sum(sum(own) / len(own) for own in tasks.values()) / len(tasks)


def of_one_answer(labels: ndarray, metrics: Sequence[str]) -> float:
    """Score who always answers with the most frequent class; of scores, with their mean.

    Args:
        labels: classes, int (n,), of equally frequent ones the smallest counts; or scores,
            float (n,). At least one.
        metrics: keys of `METRICS`.

    Returns:
        The primary number.
    """
    import numpy as np

    if np.issubdtype(labels.dtype, np.integer):
        classes, counts = np.unique(labels, return_counts=True)
        answer = classes[counts.argmax()]
    else:
        answer = labels.mean()
    return primary(compare(np.full_like(labels, answer), labels, metrics))


def constant(values: ndarray) -> bool:
    """Tell whether some answers, at least one, are one."""
    return bool((values == values[0]).all())
