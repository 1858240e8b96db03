"""Records, prompts and MMLU's files: what is read, and every kind of bad input."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moe_runner import tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import InstructTask
from moe_runner.tasks import instructions, mmlu
from moe_runner.tasks.mini.instruct import QUESTIONS, SOLVED, SUBJECTS, questions, records

OPTIONS = InstructTask(suite="instruct", members=("alpaca",), validation_size=2)
MINI = InstructTask(suite="instruct_mini", members=("instruct",), ood=("all",))
RECORD = {"instruction": "Add.", "input": "1 2", "output": "3"}


def write_records(file: Path, rows: list[dict]) -> InstructTask:
    lines = "\n".join(json.dumps(row) for row in rows)
    file.write_text(json.dumps(rows) if file.suffix == ".json" else lines, encoding="utf-8")
    return replace(OPTIONS, data_dir=str(file))


def write_mmlu(folder: Path, subject: str = "anatomy", **lines: str) -> InstructTask:
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        text = lines.get(split, '"A, quoted?",one,two,three,four,C\nWhat?,1,2,3,4,A\n')
        (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return replace(OPTIONS, ood=("mmlu",), ood_dir=str(folder))


# ------------------------------------------------------------------------------- records


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_records_of_every_format_are_divided_into_train_and_held_out(suffix, tmp_path):
    rows = [{**RECORD, "output": str(i)} for i in range(300)]
    file = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write_records(file, rows)
    options = replace(OPTIONS, data_dir=str(tmp_path), validation_size=20)
    data = tasks.load(options, "alpaca")
    held_out = data.validation["validation"]
    assert held_out is not None
    assert len(held_out) == 20
    assert len(data.train) == 256  # of 280: a multiple of 128
    assert data.train.column_names == ["instruction", "input", "output"]
    assert not set(data.train["output"]) & set(held_out["output"])
    other = tasks.load(replace(options, data_seed=1), "alpaca").validation["validation"]
    assert other is not None
    assert set(other["output"]) != set(held_out["output"])
    few = tasks.load(replace(options, limit=50, eval_limit=5), "alpaca")
    assert len(few.train) == 50  # fewer than 128 are not cut
    assert few.validation["validation"] is not None
    assert len(few.validation["validation"]) == 5


def test_an_input_may_be_missing_and_seed_tasks_are_read(tmp_path):
    rows = [
        {"instruction": "Hi.", "output": "Hello."},
        {"instruction": "Sum.", "input": None, "output": "3"},
        {"instruction": "Opposite.", "instances": [{"input": "hot", "output": "cold"}]},
    ]
    options = write_records(tmp_path / "seed.jsonl", rows)
    found = instructions.read_records(tasks.sources(options, "alpaca")["train"])
    assert [record["input"] for record in found] == ["", "", "hot"]
    assert [record["output"] for record in found] == ["Hello.", "3", "cold"]


def test_other_names_of_columns(tmp_path):
    rows = [{"q": f"Q{i}", "c": f"C{i}", "a": f"A{i}"} for i in range(5)]
    options = replace(write_records(tmp_path / "own.jsonl", rows), members=("instruct",))
    place = tasks.sources(options, "instruct")["train"]
    assert instructions.read_records(place, ("q", "a"))[1] == {
        "instruction": "Q1", "input": "", "output": "A1"
    }  # fmt: skip
    assert instructions.read_records(place, ("q", "c", "a"))[4]["input"] == "C4"
    with pytest.raises(ValueError, match="has the columns q, c, a; it lacks answer"):
        instructions.read_records(place, ("q", "answer"))
    data = tasks.load(replace(options, columns=("q", "a")), "instruct")
    assert len(data.train) == 3
    (tmp_path / "own.csv").write_text("q,a\n" + "Ask,Answer\n" * 4)
    options = replace(options, data_dir=str(tmp_path / "own.csv"), columns=("q", "a"))
    assert tasks.load(options, "instruct").train["output"][:] == ["Answer"] * 2


@pytest.mark.parametrize(
    ("role", "content", "user", "assistant"),
    [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")],
)
def test_conversations(role, content, user, assistant, tmp_path, caplog):
    def said(*messages: tuple[str, str]) -> dict:
        return {"messages": [{role: who, content: text} for who, text in messages]}

    rows = [
        said((user, "Hi"), (assistant, "Hello")),
        said(("system", "Be kind."), (user, "Hi"), (assistant, "Dear"), (user, "And?")),
    ]
    place = tasks.sources(write_records(tmp_path / "chat.jsonl", rows), "alpaca")["train"]
    found = instructions.read_records(place, ("messages",))
    assert [record["instruction"] for record in found] == ["Hi", "Be kind.\n\nHi"]
    assert [record["output"] for record in found] == ["Hello", "Dear"]
    assert "1 of 2 conversations go on after the first answer" in caplog.text
    place = tasks.sources(write_records(tmp_path / "x.jsonl", [said((user, "Hi"))]), "alpaca")
    with pytest.raises(ValueError, match="record 1 has no question with an answer in the column"):
        instructions.read_records(place["train"], ("messages",))


def chats(folder: Path, *messages: tuple[str, object]) -> InstructTask:
    rows = [{"messages": [{"role": who, "content": what} for who, what in messages]}]
    return write_records(folder / "chat.jsonl", rows)


def test_the_parts_of_a_message_are_joined(tmp_path):
    parts = [{"type": "text", "text": "Look."}, "And?"]
    options = chats(tmp_path, ("system", parts[:1]), ("user", parts), ("assistant", parts[:1]))
    (record,) = instructions.read_records(tasks.sources(options, "alpaca")["train"], ("messages",))
    assert (record["instruction"], record["output"]) == ("Look.\n\nLook.\nAnd?", "Look.")


@pytest.mark.parametrize("content", [None, 3, [], [{"type": "image", "url": "x"}]])
@pytest.mark.parametrize("wrong", ["system", "user", "assistant"])
def test_a_message_that_is_no_text_is_named(wrong, content, tmp_path):
    said = {"system": "Be kind.", "user": "Hi", "assistant": "Dear", wrong: content}
    options = replace(chats(tmp_path, *said.items()), columns=("messages",))
    line = rf"chat\.jsonl: record 1 has a message of {wrong} whose content is no text"
    with pytest.raises(ValueError, match=line):
        tasks.load(options, "alpaca")


def test_a_column_that_is_no_conversation_is_named(tmp_path):
    options = write_records(tmp_path / "x.jsonl", [{"messages": 3}])
    with pytest.raises(ValueError, match="record 1 has no question with an answer in the column"):
        tasks.load(replace(options, columns=("messages",)), "alpaca")


@pytest.mark.parametrize("name", ["instruction", "input", "output"])
def test_half_a_character_is_named(name, tmp_path):
    options = write_records(tmp_path / "x.jsonl", [RECORD, {**RECORD, name: "a \ud83d b"}])
    with pytest.raises(ValueError, match=f"row 2 has half a character in the column {name}"):
        tasks.load(options, "alpaca")


def test_a_table_of_validation_is_read_and_others_are_named(tmp_path, caplog):
    for name, count in {"train": 7, "val": 3, "test": 1, "more": 1}.items():
        rows = [{**RECORD, "output": f"{name} {n}"} for n in range(count)]
        write_records(tmp_path / f"{name}.jsonl", rows)
    options = replace(OPTIONS, data_dir=str(tmp_path))
    data = tasks.load(options, "alpaca")
    assert data.train["output"][:] == [f"train {n}" for n in range(7)]
    assert data.validation["validation"]["output"][:] == [f"val {n}" for n in range(3)]
    assert "not read: more.jsonl, test.jsonl; only train and validation are" in caplog.text
    both = tasks.fingerprint(options, "alpaca")
    assert both["train"] != both["validation"]
    limited = tasks.load(replace(options, limit=4, eval_limit=2), "alpaca")
    assert (len(limited.train), len(limited.validation["validation"])) == (4, 2)
    (tmp_path / "val.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no record for validation"):
        tasks.load(options, "alpaca")


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_table_that_is_no_train_is_not_trained_on(name, tmp_path):
    write_records(tmp_path / f"{name}.jsonl", [RECORD] * 9)
    problem = tasks.sources(replace(OPTIONS, data_dir=str(tmp_path)), "alpaca")["train"].problem
    assert problem == (
        f"task.data_dir={tmp_path} has no train table (it has {name}.jsonl); "
        "name one train, or give its path"
    )


def test_own_instructions_need_a_place():
    problem = tasks.sources(replace(OPTIONS, members=("instruct",)), "instruct")["train"].problem
    assert (
        problem == "task=instruct needs task.data_dir=<file or folder>, or task.hub_id=<data set>"
    )


BAD = [
    ({"instruction": "Add.", "input": ""}, "record 2 has no text for output"),
    ({"output": "3"}, "record 2 has no text for instruction"),
    ({"instruction": None, "output": 3}, "record 2 has no text for instruction and output"),
    ({**RECORD, "input": ["x"]}, "record 2 has no text for input"),
    ("text", "row 2 is no object"),
]


@pytest.mark.parametrize(("row", "line"), BAD)
def test_a_record_without_what_is_needed_is_named(row, line, tmp_path):
    options = write_records(tmp_path / "train.json", [RECORD, row, RECORD])
    with pytest.raises(ValueError, match=line) as caught:
        tasks.load(options, "alpaca")
    assert str(tmp_path / "train.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf_8_or_not_json_is_named_with_the_line(tmp_path):
    file = tmp_path / "train.jsonl"
    options = replace(OPTIONS, data_dir=str(file))
    file.write_bytes(json.dumps(RECORD).encode() + b'\n{"instruction": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl: about row 2 is not utf-8 \(invalid"):
        tasks.load(options, "alpaca")
    file.write_text(json.dumps(RECORD) + "\n{not json\n")
    with pytest.raises(ValueError, match=r"train\.jsonl: row 2 is no JSON"):
        tasks.load(options, "alpaca")
    (tmp_path / "x.json").write_text('{\n"instruction": {"0": "Add."}\n}')
    with pytest.raises(ValueError, match=r"x\.json holds one object; write an array of rows"):
        tasks.load(replace(OPTIONS, data_dir=str(tmp_path / "x.json")), "alpaca")


def test_a_place_without_records_is_a_problem_of_the_plan(tmp_path, monkeypatch):
    def problem(path: Path) -> str | None:
        options = replace(OPTIONS, data_dir=str(path))
        return tasks.sources(options, "alpaca")["train"].problem

    given = f"task.data_dir={tmp_path}"
    assert problem(tmp_path / "no") == (
        f"{given}/no does not exist; give a file or a folder with csv, tsv, json, jsonl or parquet"
    )
    assert problem(tmp_path) == (
        f"{given} holds no records: looked for files of type csv, tsv, json, jsonl or parquet"
    )
    (tmp_path / "notes.txt").touch()
    assert problem(tmp_path / "notes.txt") == (
        f"{given}/notes.txt is not a file of records; "
        "give one of type csv, tsv, json, jsonl or parquet"
    )
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    assert problem(tmp_path) == (
        f"{given}: there are several files (a.json, b.json); "
        "give the path of one, or all parts of it"
    )
    (tmp_path / "alpaca_data.json").touch()
    assert problem(tmp_path) is None
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    from_hub = tasks.sources(OPTIONS, "alpaca")["train"].problem
    assert from_hub is not None
    assert from_hub.startswith("cannot load 'tatsu-lab/alpaca'")
    assert from_hub.endswith("use task.data_dir=<file or folder>, or task=instruct_mini")


def test_too_few_records_are_told(tmp_path):
    options = write_records(tmp_path / "train.json", [RECORD] * 2)
    with pytest.raises(ValueError, match="task.validation_size=2 leaves none of the 2 records"):
        tasks.load(options, "alpaca")


@pytest.mark.parametrize("template", instructions.TEMPLATES)
def test_a_prompt_holds_instruction_and_input_as_they_are(template):
    text = instructions.prompt(template, "Use {input} twice.", "{instruction}")
    assert text.index("Use {input} twice.") < text.index("{instruction}")
    without = instructions.prompt(template, "Sing.", "")
    assert "Sing." in without
    assert "nput" not in without


def test_the_alpaca_prompt_is_that_of_the_data_set():
    assert instructions.prompt("alpaca", "Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Add.\n\n### Input:\n1 2\n\n### Response:"
    )


# ------------------------------------------------------------------------------- MMLU


def test_csv_of_mmlu_is_read_with_its_solved_examples(tmp_path):
    options = replace(write_mmlu(tmp_path), shots=2)
    place = tasks.sources(replace(options, data_dir=str(tmp_path)), "alpaca")["ood/mmlu"]
    assert [file.name for file in place.files] == ["anatomy_test.csv", "anatomy_dev.csv"]
    found = mmlu.load(place, options)
    assert found is not None
    assert found["split"] == ["test", "test", "dev", "dev"]
    first = found[0]
    assert first["question"] == "A, quoted?"
    assert first["choices"] == ["one", "two", "three", "four"]
    assert first["answer"] == 2
    limited = mmlu.load(place, replace(options, eval_limit=1))
    assert limited is not None
    assert limited["split"] == ["test", "dev", "dev"]


def test_a_folder_of_mmlu_without_a_subject_is_a_problem_of_the_plan(tmp_path):
    options = replace(OPTIONS, ood=("mmlu",), ood_dir=str(tmp_path))
    assert mmlu.source(options).problem == (
        f"task.ood_dir={tmp_path} has no subject of MMLU: "
        f"looked for {tmp_path}/test/<subject>_test.csv"
    )
    write_mmlu(tmp_path)
    assert mmlu.source(options).available
    missing = tmp_path / "dev" / "anatomy_dev.csv"
    missing.unlink()
    assert mmlu.source(options).problem == (
        f"task.ood_dir={tmp_path} lacks the solved examples of 1 subjects: {missing}; "
        "add them, or use task.shots=0"
    )
    assert mmlu.source(replace(options, shots=0)).available


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("What?,1,2,3,A", "got 5 fields"),
        ("What?,1,2,3,4,E", "got 6 fields and the answer 'E'"),
        ("What?,1,2,3,4,5,A", "got 7 fields"),
    ],
)
def test_a_malformed_row_of_mmlu_is_named(row, line, tmp_path):
    options = write_mmlu(tmp_path, test=f"What?,1,2,3,4,A\n{row}\n")
    with pytest.raises(ValueError, match=line) as caught:
        mmlu.load(mmlu.source(options), options)
    assert str(caught.value).startswith(f"{tmp_path}/test/anatomy_test.csv:2 is malformed; ")


def test_a_file_of_mmlu_that_is_empty_or_not_utf_8_is_named(tmp_path):
    options = write_mmlu(tmp_path, test="")
    with pytest.raises(ValueError, match="anatomy_test.csv has no question"):
        mmlu.load(mmlu.source(options), options)
    (tmp_path / "test" / "anatomy_test.csv").write_bytes(b"caf\xe9,1,2,3,4,A\n")
    with pytest.raises(ValueError, match=r"anatomy_test.csv is not UTF-8"):
        mmlu.load(mmlu.source(options), options)


def test_without_the_harness_a_named_set_is_a_problem_and_others_are_absent(monkeypatch, tmp_path):
    write_mmlu(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a)
    )
    options = replace(OPTIONS, data_dir=str(tmp_path), ood=("mmlu",), ood_dir=str(tmp_path))
    assert tasks.sources(options, "alpaca")["ood/mmlu"].problem == (
        "task.ood=[mmlu] is evaluated by lm-evaluation-harness, which is not installed; "
        "pip install -e '.[llm]'"
    )
    place = tasks.sources(replace(options, ood=("all",)), "alpaca")["ood/mmlu"]
    assert place.problem is None
    assert place.absent is not None
    assert tasks.load(MINI, "instruct").ood == {"mmlu_mini": None}


def test_an_unknown_set_is_one_line():
    with pytest.raises(ConfigError, match=r"task.ood=\[mmul\] is not an option.*mean mmlu\?"):
        tasks.sources(replace(OPTIONS, ood=("mmul",)), "alpaca")


# ------------------------------------------------------------------------------- generated


def test_generated_records_and_questions_are_right_and_repeatable():
    made = records(seed=0)
    assert made == records(seed=0)
    assert made != records(seed=1)
    assert len({tuple(record.values()) for record in made}) == len(made)
    assert all(record["instruction"] and record["output"] for record in made)
    asked = questions(seed=0)
    assert len(asked) == len(SUBJECTS) * (QUESTIONS + SOLVED)
    assert {question["answer"] for question in asked} == {0, 1, 2, 3}
    for question in asked:
        assert len(set(question["choices"])) == 4
        if question["subject"] != "reviews":  # the right choice, and no other, is told
            told = question["question"].partition(". ")[0].lower() + "."
            right = question["choices"][question["answer"]].lower()
            assert right in told
    known = {record["instruction"] for record in made}
    told = {question["question"] for question in asked if question["subject"] != "reviews"}
    assert not known & told  # of other scenes


def test_the_real_records_and_questions(shared_data):
    options = replace(
        OPTIONS,
        data_dir=str(shared_data / "instruct"),
        ood=("mmlu",),
        ood_dir=str(shared_data),
        validation_size=100,
    )
    data = tasks.load(options, "alpaca")
    assert len(data.train) == 896  # 7 * 128 of 899
    held_out = data.validation["validation"]
    assert held_out is not None
    assert sum(bool(text) for text in [*data.train["input"], *held_out["input"]]) > 400
    found = data.ood["mmlu"]
    assert found is not None
    assert len(set(found["subject"])) == 10
    assert found["split"].count("dev") == 50
    assert min(found["answer"]) == 0
    assert max(found["answer"]) == 3
