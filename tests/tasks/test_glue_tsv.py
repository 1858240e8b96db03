"""GLUE as its own site gives it: tsv files with columns of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_runner import tasks
from moe_runner.options.task import TextTask

MNLI = "index\tsentence1\tsentence2\tlabel1\tgold_label"
FILES = {  # as in the archives; a quote is a letter
    "CoLA": ("cola", 'gj04\t1\t\tOur "friends.\ngj04\t0\t*\tThem cat.\n', [1, 0]),
    "SST-2": ("sst2", 'sentence\tlabel\nfine film \t1\nno "good\t0\n', [1, 0]),
    "MRPC": ("mrpc", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA\tB\r\n", [1]),
    "STS-B": ("stsb", "index\tsentence1\tsentence2\tscore\n0\tA\tB\t3.8\n", [3.8]),
    "QQP": (
        "qqp",
        "id\tquestion1\tquestion2\tis_duplicate\n" + "1\tA\tB\t0\n" * 3 + "2\tcut\n",
        [0, 0, 0],
    ),
    "MNLI": (
        "mnli",
        f"{MNLI}\n0\tA\tB\tx\tneutral\n1\tA\tB\tx\tcontradiction\n2\tA\tB\tx\t-\n",
        [1, 2],
    ),
    "QNLI": ("qnli", "index\tquestion\tsentence\tlabel\n0\tA\tB\tnot_entailment\n", [1]),
    "RTE": ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n", [0]),
}


def write(root: Path, folder: str, content: str) -> None:
    (root / folder).mkdir()
    for name in ("train", "dev", "dev_matched", "dev_mismatched"):
        (root / folder / f"{name}.tsv").write_text(content, encoding="utf-8", newline="")


@pytest.mark.parametrize("folder", FILES)
@pytest.mark.parametrize("whole", [True, False])
def test_every_task_is_read_from_the_folder_of_all_or_its_own(folder, whole, tmp_path):
    name, content, labels = FILES[folder]
    write(tmp_path, folder, content)
    place = tmp_path if whole else tmp_path / folder
    options = TextTask(suite="glue", members=(name,), data_dir=str(place))
    data = tasks.load(options, name)
    assert data.train["label"][:] == pytest.approx(labels)
    first, *_ = data.spec.validation
    assert data.validation[first]["label"][:] == pytest.approx(labels)
    texts = {data.train[column][0] for column in data.spec.columns}
    assert texts & {"A", 'Our "friends.', "fine film "}
    assert "GLUE's own tsv" in tasks.fingerprint(options, name)["train"]


def test_rows_that_are_cut_are_counted_and_many_are_an_error(tmp_path, caplog):
    write(tmp_path, "QQP", FILES["QQP"][1])
    options = TextTask(suite="glue", members=("qqp",), data_dir=str(tmp_path))
    tasks.load(options, "qqp")
    assert "1 rows with too few columns are left out" in caplog.text
    (tmp_path / "QQP" / "train.tsv").write_text(FILES["QQP"][1] + "3\tcut\n4\tcut\n")
    with pytest.raises(ValueError, match="3 of 6 rows have too few columns"):
        tasks.load(options, "qqp")


def test_a_file_of_another_task_is_named(tmp_path):
    write(tmp_path, "RTE", FILES["SST-2"][1])
    options = TextTask(suite="glue", members=("rte",), data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="has the columns sentence, label; GLUE's rte has"):
        tasks.load(options, "rte")
