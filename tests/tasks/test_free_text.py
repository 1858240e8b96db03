"""Summarisation, SQuAD and mixtures: from folders, and generated."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import GenerationTask, TextTask
from moe_runner.registry import SUITES
from moe_runner.tasks.mini import grammar, texts

ANSWERS = {"text": ["It", "It", "me"], "answer_start": [0, 0, 6]}
ROWS = {
    "xsum": {"document": "A long story.", "summary": "A story.", "id": "1"},
    "cnn_dailymail": {"article": "A long story.", "highlights": "A story.", "id": "1"},
    "squad": {"question": "Who?", "context": "It is me.", "answers": ANSWERS, "title": "T"},
}
COLUMNS = {"xsum": "document, summary", "cnn_dailymail": "article, highlights"}
COLUMNS["squad"] = "question, context, answers"


def options_of(name, **changes):
    suite = "squad" if name == "squad" else "summarisation"
    return GenerationTask(suite=suite, members=(name,), **changes)


def write(folder, name, rows=None, splits=("train", "validation")):
    (folder / name).mkdir()
    for split in splits:
        table = pa.Table.from_pylist([ROWS[name]] * 5 if rows is None else rows)
        pq.write_table(table, folder / name / f"{split}.parquet")
    return options_of(name, data_dir=str(folder))


@pytest.mark.parametrize("name", ["xsum", "cnn_dailymail"])
def test_summaries_from_a_folder(name, tmp_path):
    data = tasks.load(write(tmp_path, name), name)
    assert data.train.column_names == ["document", "label", "references"]
    assert data.train[0] == {
        "document": "A long story.",
        "label": "A story.",
        "references": ["A story."],
    }


def test_the_first_examples_of_the_validation_set_are_evaluated(tmp_path):
    rows = [{**ROWS["xsum"], "document": f"Story {i}."} for i in range(9)]
    options = replace(write(tmp_path, "xsum", rows), eval_limit=3, limit=4)
    data = tasks.load(options, "xsum")
    assert data.validation["validation"]["document"][:] == ["Story 0.", "Story 1.", "Story 2."]
    assert len(data.train) == 4


def test_a_question_has_several_right_answers(tmp_path):
    data = tasks.load(write(tmp_path, "squad"), "squad")
    row = data.validation["validation"][0]
    assert row["label"] == "It"
    assert row["references"] == ["It", "me"]


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_column_is_named(name, tmp_path):
    options = write(tmp_path, name, [{"other": "x"}])
    with pytest.raises(ValueError, match=rf"has the columns other; expected {COLUMNS[name]}$"):
        tasks.load(options, name)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("xsum", {"document": None}, "has empty values in the column document; expected texts"),
        ("xsum", {"summary": 3}, "has values of type int in the column summary; expected texts"),
        ("squad", {"answers": {"text": [], "answer_start": []}}, "has a question without an answe"),
    ],
)
def test_bad_rows_are_one_line_that_names_the_file(name, changes, problem, tmp_path):
    options = write(tmp_path, name, [{**ROWS[name], **changes}])
    with pytest.raises(ValueError, match=f"^{tmp_path}/{name}/train.parquet {problem}"):
        tasks.load(options, name)


def test_an_empty_file_is_told(tmp_path):
    options = write(tmp_path, "xsum")
    table = pq.read_table(tmp_path / "xsum/train.parquet").slice(0, 0)
    pq.write_table(table, tmp_path / "xsum/train.parquet")
    with pytest.raises(ValueError, match="has no row; expected at least one"):
        tasks.load(options, "xsum")


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_split_is_a_problem_with_a_remedy(name, tmp_path):
    options = write(tmp_path, name, splits=("train",))
    problem = tasks.sources(options, name)["validation"].problem
    assert problem.startswith(f"task.data_dir={tmp_path} lacks a split: looked for {name}/valid")
    assert problem.endswith(f"put it there, or use task={options.suite}_mini")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("xsum", "hub EdinburghNLP/xsum config default split train at main"),
        ("cnn_dailymail", "hub abisee/cnn_dailymail config 3.0.0 split train at main"),
        ("squad", "hub rajpurkar/squad config plain_text split train at main"),
    ],
)
def test_places_on_the_hub(name, place, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert str(tasks.sources(options_of(name), name)["train"].hub) == place


@pytest.mark.parametrize("suite", ["summarisation", "squad", "summarisation_mini", "squad_mini"])
def test_there_are_no_out_of_domain_sets(suite):
    (name, *_) = SUITES[suite].specs
    with pytest.raises(ConfigError, match=r"task.ood=\[imdb\] is not an option of task="):
        tasks.sources(GenerationTask(suite=suite, members=(name,), ood=("imdb",)), name)


# Generated


@pytest.mark.parametrize("make", [texts.summaries, texts.questions])
def test_generated_texts_are_of_their_seed_and_split(make):
    train, validation, other = make("train"), make("validation"), make("validation", seed=1)
    assert validation == make("validation")
    assert validation != other
    for split, rows in (("train", train), ("validation", validation)):
        for column in rows.values():
            assert len(column) == texts.SIZES[split]
    whole = {"document", "context"} & set(train)
    for split, rows in (("train", train), ("validation", validation)):
        for text in rows[whole.copy().pop()]:
            for sentence in text.removesuffix(".").split(". "):
                assert grammar.is_held_out(sentence) == (split == "validation")


def test_an_answer_stands_in_its_text_once():
    rows = texts.questions("validation")
    for context, answers in zip(rows["context"], rows["answers"], strict=True):
        (text,), (start,) = answers["text"], answers["answer_start"]
        assert context[start : start + len(text)] == text
        assert context.lower().count(text.lower()) == 1
    asked = {question.split()[0] for question in rows["question"]}
    assert asked == {"Who", "What", "Whom", "Where", "When"}


def test_a_summary_is_shorter_than_its_text_and_not_its_first_sentence_only():
    rows = texts.summaries("validation")
    pairs = list(zip(rows["document"], rows["summary"], strict=True))
    assert all(len(summary) < len(document) / 2 for document, summary in pairs)
    assert 0 < sum(document.startswith(s) for document, s in pairs) / len(pairs) < 0.5


@pytest.mark.parametrize("suite", ["summarisation_mini", "squad_mini"])
def test_generated_suites_need_no_files(suite):
    options = GenerationTask(suite=suite, members=(suite,), limit=10, eval_limit=7, data_seed=3)
    assert tasks.fingerprint(options, suite) == dict.fromkeys(
        ("train", "validation"), f"{suite} v1 seed 3"
    )
    data = tasks.load(options, suite)
    assert len(data.train) == 10
    assert len(data.validation["validation"]) == 7


# Mixtures


@pytest.mark.long
def test_a_mixture_has_the_examples_of_all_tasks():
    options = TextTask(
        suite="glue_multitask", members=("glue_mini",), limit=3, eval_limit=2, data_seed=1
    )
    data = tasks.load(options, "glue_mini")
    names = list(data.spec.parts)
    assert data.train["group"][:] == [name for name in names for _ in range(3)]
    assert data.validation["validation"]["group"][:] == [n for n in names for _ in range(2)]
    row = data.train[names.index("stsb") * 3]
    assert row["source"].startswith("stsb sentence1: ")
    assert 0 <= float(row["label"]) <= 5
    assert "mnli/validation_matched" in tasks.fingerprint(options, "glue_mini")


def test_a_mixture_lacks_what_a_task_lacks(tmp_path):
    options = TextTask(suite="glue_multitask", members=("glue",), data_dir=str(tmp_path))
    problems = [source.problem for source in tasks.sources(options, "glue").values()]
    assert len(problems) == 16
    assert all(problem is not None for problem in problems)
