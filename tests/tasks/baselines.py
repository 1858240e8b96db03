"""Simple predictors that bound a task from below: a constant, and a bag of words.

Both return the task's primary number on its validation split (mnli: matched): Matthews
correlation for cola, the mean of accuracy and F1 for mrpc and qqp, Pearson correlation for stsb
(GLUE's number is the mean with Spearman), accuracy for the others.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from moe_runner.tasks.mini.glue import COLUMNS, generate


def majority_score(task: str, *, seed: int = 0) -> float:
    """Return the score of the best constant prediction; 0 for a correlation."""
    if task in ("cola", "stsb"):
        return 0.0
    labels = np.array(generate(task, _validation(task), seed=seed)["label"])
    return max(_score(task, labels, np.full_like(labels, value)) for value in np.unique(labels))


def bag_of_words_score(task: str, *, seed: int = 0) -> float:
    """Return the score of a linear model on word counts.

    The counts are those of each side and, for pairs, of the overlap (the smaller of both counts);
    the model is a logistic regression, for stsb a ridge regression.
    """
    train = generate(task, "train", seed=seed)
    validation = generate(task, _validation(task), seed=seed)
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    vectorizer.fit([text for column in COLUMNS[task] for text in train[column]])
    model = Ridge() if task == "stsb" else LogisticRegression(max_iter=2000)
    model.fit(_counts(task, train, vectorizer), train["label"])
    predicted = model.predict(_counts(task, validation, vectorizer))
    return _score(task, np.array(validation["label"]), predicted)


def _validation(task: str) -> str:
    return "validation_matched" if task == "mnli" else "validation"


def _counts(task: str, rows: dict[str, list], vectorizer: CountVectorizer) -> csr_matrix:
    """Return one block of counts per side, and for pairs one of the overlap."""
    blocks = [vectorizer.transform(rows[column]) for column in COLUMNS[task]]
    if len(blocks) == 2:
        blocks.append(blocks[0].minimum(blocks[1]))
    return hstack(blocks, format="csr")


def _score(task: str, labels: NDArray, predicted: NDArray) -> float:
    if task == "stsb":
        return float(np.corrcoef(labels, predicted)[0, 1])
    if task == "cola":
        return float(matthews_corrcoef(labels, predicted))
    accuracy = float(accuracy_score(labels, predicted))
    if task in ("mrpc", "qqp"):
        return (accuracy + float(f1_score(labels, predicted, zero_division=0))) / 2
    return accuracy
