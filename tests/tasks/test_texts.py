"""What is read and answered in text to text."""

import pytest

from moe_runner.tasks.suites import glue, glue_multitask, squad, summarisation
from moe_runner.tasks.texts import answer_text, score, source_text

MRPC, STSB, COLA = (glue.TASKS[name] for name in ("mrpc", "stsb", "cola"))


def test_the_task_s_name_and_the_columns_are_read():
    columns = ("sentence1", "sentence2")
    text = source_text(MRPC, columns, ("A {b}.", "C."))
    assert text == "mrpc sentence1: A {b}. sentence2: C."


def test_a_template_is_filled_with_texts_as_they_are():
    spec = squad.TASKS["squad"]
    text = source_text(spec, spec.columns, ("Who {is} it?", "It is {me}."))
    assert text == "question: Who {is} it? context: It is {me}."
    spec = summarisation.TASKS["xsum"]
    assert source_text(spec, spec.columns, ("News.",)) == "summarize: News."


@pytest.mark.parametrize(
    ("spec", "label", "text"),
    [(MRPC, 1, "1"), (STSB, 3.1, "3.2"), (STSB, 2.29, "2.2"), (STSB, 5.0, "5.0"),
     (squad.TASKS["squad"], "the barn", "the barn")],
)  # fmt: skip
def test_answers(spec, label, text):
    assert answer_text(spec, label) == text


def test_an_answer_that_is_no_label_is_wrong_and_one_that_is_no_number_is_zero():
    found = score(COLA, ["1", "0", "yes", ""], [["1"], ["1"], ["1"], ["0"]], None, ["accuracy"])
    assert found == {"accuracy": 0.25}
    right = [["0.0"], ["2.0"], ["4.0"]]
    as_given = score(STSB, ["0.0", "2.2", "4.0"], right, None, ["pearson"])
    no_number = score(STSB, ["nan", "2.2", "4.0"], right, None, ["pearson"])
    assert as_given == no_number
    assert as_given["pearson"] > 0.99


def test_every_task_of_a_mixture_is_scored_by_its_own_metrics():
    spec = glue_multitask.TASKS["glue"]
    groups = [name for name in spec.parts for _ in range(2)]
    right = [["1.0"] if name == "stsb" else ["0"] for name in groups]
    right[1::2] = [["3.0"] if texts == ["1.0"] else ["1"] for texts in right[1::2]]
    found = score(spec, [texts[0] for texts in right], right, groups, spec.metrics)
    assert list(found) == list(spec.metrics)
    assert len(found) == 11
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
    wrong = [texts[0] if name != "cola" else "x" for name, texts in zip(groups, right, strict=True)]
    found = score(spec, wrong, right, groups, spec.metrics)
    assert found.pop("cola/matthews") == -1.0
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
