import warnings

import numpy as np
import pytest

from moe_runner import metrics
from moe_runner.metrics import METRICS, compare, compute, decode, primary

LABELS = np.array([1, 1, 1, 0, 0, 0])
PREDICTED = np.array([1, 1, 0, 0, 0, 1])  # 2 true and 1 false of each class
LOGITS = np.eye(2)[PREDICTED] * 3 - 1


def test_classes_against_counting_by_hand():
    values = compute(LOGITS, LABELS, ["accuracy", "f1", "matthews"])
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert values["matthews"] == pytest.approx((2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3))


def test_f1_is_that_of_class_1():
    logits = np.eye(2)[[1, 0, 0, 0]]
    assert compute(logits, np.array([1, 1, 0, 0]), ["f1"])["f1"] == pytest.approx(2 / 3)


def test_three_classes():
    assert compute(np.eye(3), np.array([0, 1, 1]), ["accuracy"]) == {"accuracy": 2 / 3}


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_scores_against_the_formula(shape):
    scores, labels = np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 3.0, 2.0, 4.0])
    values = compute(scores.reshape(shape), labels, ["pearson", "spearman"])
    x, y = scores - scores.mean(), labels - labels.mean()
    assert values["pearson"] == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))
    assert values["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # two ranks off by one
    assert primary(values) == pytest.approx((values["pearson"] + values["spearman"]) / 2)


@pytest.mark.parametrize("name", ["matthews", "f1", "pearson", "spearman"])
def test_a_constant_prediction_scores_0_without_a_warning(name):
    constant = np.tile([2.0, 1.0], (6, 1)) if name in ("matthews", "f1") else np.full(6, 2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute(constant, LABELS.astype(float), [name]) == {name: 0.0}


@pytest.mark.parametrize("name", METRICS)
def test_the_values_are_plain_floats(name):
    predictions = np.arange(6.0) if name in ("pearson", "spearman") else LOGITS
    assert type(compute(predictions.astype(np.float32), LABELS, [name])[name]) is float


def test_decode_takes_the_largest_logit_or_the_score():
    assert decode(np.array([[0.1, 0.2, 0.0], [5, 1, 1]])).tolist() == [1, 0]
    assert decode(np.array([[0.5], [1.5]], dtype=np.float32)).tolist() == [0.5, 1.5]


def test_diverged_predictions_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        compute(np.array([[np.nan, 1.0]]), np.array([1]), ["accuracy"])


def test_a_wrong_number_of_labels_is_an_error():
    with pytest.raises(ValueError, match="3 predictions for labels of shape"):
        compute(np.eye(3), np.array([0, 1]), ["accuracy"])


def test_primary_of_one_metric_is_that_metric():
    assert primary({"matthews": -0.25}) == -0.25
    assert set(metrics.METRICS) == {
        "matthews", "accuracy", "f1", "macro_f1", "pearson", "spearman",
    }  # fmt: skip


def test_primary_of_a_mixture_is_the_mean_over_its_tasks():
    values = {"cola/matthews": 0.4, "mrpc/accuracy": 0.6, "mrpc/f1": 0.8}
    assert primary(values) == pytest.approx((0.4 + 0.7) / 2)


def test_macro_f1_by_hand():
    predicted, labels = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    found = compare(predicted, labels, ["macro_f1"])["macro_f1"]
    assert found == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)  # classes 0, 1, 2


def test_a_question_with_one_mistake_is_wrong():
    predicted, labels = np.array([1, 0, 1, 0]), np.array([1, 0, 1, 1])
    groups = ["a", "b", "a", "b"]
    found = compare(predicted, labels, ["f1", "group_exact_match"], groups)
    assert found == {"f1": pytest.approx(0.8), "group_exact_match": 0.5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rouge1", 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)),  # the, dog, bark: 3 of 4 and of 6
        ("rouge2", 2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5)),  # the dog, dog bark
        ("rougeL", 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)),
    ],
)
def test_rouge_by_hand_stems_words_and_takes_the_best_reference(name, expected):
    right = ["The dog barks at a cat.", "Something else."]
    found = metrics.compare_texts(["the dog barked loudly"], [right], [name])
    assert found == {name: pytest.approx(expected)}


def test_squad_ignores_articles_and_case_and_takes_the_best_answer():
    given = ["The Barn!", "a red barn", "nothing"]
    right = [["barn", "the old barn"], ["green barn", "it"], ["barn"]]
    found = metrics.compare_texts(given, right, ["exact_match", "token_f1"])
    assert found == {"exact_match": pytest.approx(1 / 3), "token_f1": pytest.approx(1.5 / 3)}


@pytest.mark.parametrize(
    ("labels", "names", "score"),
    [
        ([1, 1, 0], ("accuracy",), 2 / 3),
        ([1, 1, 0], ("accuracy", "f1"), (2 / 3 + 0.8) / 2),  # f1 of "always yes": 2p / (1 + p)
        ([0, 0, 1], ("f1",), 0.0),
        ([0, 0, 1], ("matthews",), 0.0),
        ([1, 0], ("accuracy",), 0.5),
        ([0.5, 1.5], ("pearson", "spearman"), 0.0),
    ],
)
def test_who_reads_nothing_gives_the_most_frequent_class_or_the_mean(labels, names, score):
    assert metrics.of_one_answer(np.array(labels), names) == pytest.approx(score)
