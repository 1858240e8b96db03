"""SuperGLUE from a folder, in the columns of the Hub."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.model import Model
from moe_runner.options.task import TextTask
from moe_runner.tasks.suites import superglue
from moe_runner.tasks.texts import source_text

OPTIONS = TextTask(
    suite="superglue", members=tuple(superglue.TASKS), revision="refs/convert/parquet"
)
ROWS = {
    "boolq": [{"question": "is it", "passage": "It is.", "label": 1}],
    "cb": [{"premise": "p", "hypothesis": "h", "label": 2}],
    "copa": [{"premise": "It rained.", "choice1": "dry", "choice2": "wet", "question": "effect",
              "label": 1}],
    "multirc": [
        {"paragraph": "P.", "question": "Q?", "answer": answer,
         "idx": {"paragraph": 0, "question": question, "answer": i}, "label": label}
        for i, (question, answer, label) in enumerate([(4, "a", 1), (4, "b", 0), (5, "c", 1)])
    ],
    "record": [{"passage": "One.\n@highlight\nTwo.", "query": "@placeholder ran.",
                "entities": ["Ann", "Bob", "Ann"], "answers": ["Ann", "Anna", "Ann"]}],
    "rte": [{"premise": "p", "hypothesis": "h", "label": 1}],
    "wic": [{"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": 0}],
    "wsc": [{"text": "Mark Twain told Pete, who slept, that he won.", "span1_text": "Mark Twain",
             "span1_index": 0, "span2_text": "he", "span2_index": 7, "label": 1}],
}  # fmt: skip
READ = {
    "boolq": "boolq question: is it passage: It is.",
    "cb": "cb premise: p hypothesis: h",
    "copa": "copa premise: It rained. choice1: dry choice2: wet question: effect",
    "multirc": "multirc question: Q? answer: a paragraph: P.",
    "record": "record query: @placeholder ran. entities: Ann, Bob passage: One. Two.",
    "rte": "rte premise: p hypothesis: h",
    "wic": "wic word: bank sentence1: A bank. sentence2: The bank.",
    "wsc": "wsc text: # Mark Twain # told Pete, who slept, that * he * won.",
}


def write(folder, name, rows=None, split=None):
    for each in [split] if split else ["train", "validation"]:
        (folder / name).mkdir(exist_ok=True)
        table = pa.Table.from_pylist(ROWS[name] if rows is None else rows)
        pq.write_table(table, folder / name / f"{each}.parquet")
    return replace(OPTIONS, data_dir=str(folder))


@pytest.mark.parametrize("name", superglue.TASKS)
def test_a_task_is_read_from_its_folder(name, tmp_path):
    data = tasks.load(write(tmp_path, name), name)
    spec, validation = data.spec, data.validation["validation"]
    row = validation[0]
    assert source_text(spec, spec.columns, [row[c] for c in spec.columns]) == READ[name]
    if spec.labels:
        assert validation["label"][:] == [r["label"] for r in ROWS[name]]
    assert spec.metrics == {
        "cb": ("macro_f1", "accuracy"),
        "multirc": ("f1", "group_exact_match"),
        "record": ("token_f1", "exact_match"),
    }.get(name, ("accuracy",))


def test_the_answers_of_a_question_stay_together(tmp_path):
    validation = tasks.load(write(tmp_path, "multirc"), "multirc").validation["validation"]
    assert validation["group"][:] == ["0/4", "0/4", "0/5"]


def test_every_answer_of_record_is_trained_on_and_any_is_right(tmp_path):
    data = tasks.load(write(tmp_path, "record"), "record")
    assert data.train["label"][:] == ["Ann", "Anna"]
    assert data.validation["validation"]["references"][:] == [["Ann", "Anna"]]


def test_the_hub_s_parquet_copy_is_meant(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    place = tasks.sources(OPTIONS, "wsc")["train"].hub
    assert str(place) == "hub aps/super_glue config wsc.fixed split train at refs/convert/parquet"


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("boolq", {"label": 2}, "has the label 2; expected 0 to 1 .False, True."),
        ("boolq", {"passage": None}, "has 1 empty values in the column passage"),
        ("cb", {"label": 3}, "has the label 3; expected 0 to 2"),
        ("wsc", {"span2_index": 3}, "in which word 3 is not 'he'"),
        ("record", {"answers": []}, "has a question without an answer"),
    ],
)
def test_bad_rows_are_one_line_that_names_the_file(name, changes, problem, tmp_path):
    options = write(tmp_path, name, [{**ROWS[name][0], **changes}])
    with pytest.raises(ValueError, match=problem) as error:
        tasks.load(options, name)
    assert str(error.value).startswith(f"{tmp_path}/{name}/train.parquet has")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", superglue.TASKS)
def test_a_missing_column_is_named(name, tmp_path):
    (first, *_) = superglue.TASKS[name].columns
    rows = [{k: v for k, v in row.items() if k != first} for row in ROWS[name]]
    with pytest.raises(ValueError, match=rf"train.parquet has the columns .*; expected .*{first}"):
        tasks.load(write(tmp_path, name, rows), name)


def test_a_missing_split_is_a_problem(tmp_path):
    options = write(tmp_path, "cb", split="train")
    found = tasks.sources(options, "cb")
    assert found["train"].available
    assert found["validation"].problem == (
        f"task.data_dir={tmp_path} lacks a split: looked for cb/validation.parquet and "
        "cb/validation-*-of-*.parquet (all parts); put it there"
    )


def test_there_are_no_out_of_domain_sets():
    with pytest.raises(ConfigError, match=r"task.ood=\[imdb\] is not an option of task=superglue"):
        tasks.sources(replace(OPTIONS, ood=("imdb",)), "cb")


@pytest.mark.parametrize("name", superglue.TASKS)
def test_what_a_classifier_can_do(name):
    sizes = {"d_model": 1, "d_ff": 1, "num_layers": 1}
    bert = Model(name="bert", family="bert", **sizes)
    assert tasks.form_problem(OPTIONS, name, Model(name="t5", family="t5", **sizes)) is None
    problem = tasks.form_problem(OPTIONS, name, bert)
    if name in ("boolq", "cb", "rte", "wic"):
        assert problem is None
    else:
        assert problem == (
            f"model=bert is of the family bert and task=superglue/{name} is answered by a text; "
            "use a model of the family t5 or switch, or task.members=[boolq,cb,rte,wic]"
        )
