"""MMLU: four-way multiple-choice questions by subject, from csv files or the Hub.

Source: Hendrycks et al., arXiv:2009.03300; the csv layout of its authors, cais/mmlu on the Hub.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import InstructTask
from moe_runner.tasks.places import HubSplit, Source, hub_source
from moe_runner.tasks.tables import chosen_rows, read_table

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "cais/mmlu"
LETTERS = "ABCD"
COLUMNS = ("subject", "question", "choices", "split")  # beside them: answer, 0 to 3
HARNESS = "lm_eval"  # the package of lm-evaluation-harness


def harness_problem(set_name: str) -> str | None:
    """Say that lm-evaluation-harness is not installed; None if it is."""
    if importlib.util.find_spec(HARNESS) is not None:
        return None
    return (
        f"task.ood=[{set_name}] is evaluated by lm-evaluation-harness, which is not installed; "
        "pip install -e '.[llm]'"
    )


def source(options: InstructTask) -> Source:
    """Say where the questions are: in `task.ood_dir` if that is given, else on the Hub.

    Args:
        options: `ood_dir` is the folder of dev/ and test/, or has it as its subfolder mmlu/.

    Returns:
        The source; with a problem if it can't be had, or nothing can evaluate it.
    """
    if problem := harness_problem("mmlu"):
        return Source(problem=problem)
    if options.ood_dir is None:
        remedy = "use task.ood_dir=<folder of csv files>, or task.ood=[]"
        place = HubSplit(hub_id=HUB_ID, config="all", split="test")
        dev = HubSplit(hub_id=HUB_ID, config="all", split="dev")
        found, solved = hub_source(place, remedy), hub_source(dev, remedy)
        return found if found.problem else Source(hub=place, problem=solved.problem)
    folder = Path(options.ood_dir).expanduser()
    folder = folder / "mmlu" if (folder / "mmlu").is_dir() else folder
    given = f"task.ood_dir={options.ood_dir}"
    questions = sorted((folder / "test").glob("*_test.csv"))
    if not questions:
        return Source(
            problem=f"{given} has no subject of MMLU: looked for {folder}/test/<subject>_test.csv"
        )
    solved_files = [folder / "dev" / f"{subject_of(file)}_dev.csv" for file in questions]
    missing = [str(file) for file in solved_files if not file.is_file()] if options.shots else []
    if missing:
        return Source(
            problem=f"{given} lacks the solved examples of {len(missing)} subjects: {missing[0]}"
            f"{', ...' if missing[1:] else ''}; add them, or use task.shots=0"
        )
    return Source(files=(*questions, *(solved_files if options.shots else ())))


def subject_of(file: Path) -> str:
    """Take the subject from a file's name: anatomy_test.csv."""
    return file.stem.rpartition("_")[0]


def load(place: Source, options: InstructTask) -> Dataset | None:
    """Read the questions, and the solved examples that stand before them.

    Args:
        place: see `source`.
        options: `eval_limit` keeps a random subset of the questions.

    Returns:
        `subject` and `question` (text), `choices` (four texts), `split` (test, or dev for the
        solved examples) and `answer` (int64, 0 to 3); None if it is not available.

    Raises:
        ValueError: if a row is malformed; names the file and the line.
    """
    if not place.available:
        return None
    rows: list[dict[str, Any]] = []
    if place.hub is not None:
        for split in ("test", "dev"):
            table, _ = read_table(Source(hub=replace(place.hub, config="all", split=split)))
            rows += [
                {**{name: row[name] for name in ("subject", "question", "choices", "answer")},
                 "split": split}
                for row in table.to_pylist()
            ]  # fmt: skip
    for file in place.files:
        rows += read_csv(file)
    return to_dataset(rows, options.eval_limit)


def to_dataset(rows: list[dict[str, Any]], eval_limit: int | None) -> Dataset:
    """Make the data set of `load`, of rows with its keys."""
    from datasets import Dataset, Features, List, Value  # heavy, so here

    questions = [row for row in rows if row["split"] == "test"]
    questions = [questions[i] for i in chosen_rows(len(questions), eval_limit)]
    subjects = {row["subject"] for row in questions}
    solved = [row for row in rows if row["split"] == "dev" and row["subject"] in subjects]
    text = Value("string")
    features = Features(
        {
            "subject": text,
            "question": text,
            "choices": List(text),
            "split": text,
            "answer": Value("int64"),
        }
    )
    return Dataset.from_list([*questions, *solved], features=features)


def read_csv(file: Path) -> list[dict[str, Any]]:
    """Read one file: no header; question, four choices, the letter of the right one.

    Raises:
        ValueError: if the file is not UTF-8, is empty, or a row is malformed.
    """
    subject, _, split = file.stem.rpartition("_")
    found = []
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for fields in reader:
                if len(fields) != 6 or fields[5].strip() not in tuple(LETTERS):
                    raise ValueError(
                        f"{file}:{reader.line_num} is malformed; expected a question, four "
                        f"choices and the letter of the answer, got {len(fields)} fields"
                        + (f" and the answer {fields[5]!r}" if len(fields) == 6 else "")
                    )
                question, *choices, letter = fields
                answer = LETTERS.index(letter.strip())
                found.append(
                    {"subject": subject, "question": question, "choices": choices, "split": split,
                     "answer": answer}
                )  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); convert it") from None
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num} is not csv: {error}") from None
    if not found:
        raise ValueError(f"{file} has no question")
    return found
