import hashlib
from pathlib import Path

import pytest

from moe_runner import tasks
from moe_runner.options.task import TextTask
from moe_runner.runs.identity import content_hash
from moe_runner.tasks.downloaded import NOTES, downloaded_commit

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def fetched(folder: Path, name: str, content: str, commit: str = COMMIT) -> Path:
    """Write a file and its note, as `hf download --local-dir` leaves them."""
    file, note = folder / name, folder / NOTES / f"{name}.metadata"
    file.parent.mkdir(parents=True, exist_ok=True)
    note.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    note.write_text(f"{commit}\n{hashlib.sha256(content.encode()).hexdigest()}\n1712656091.1\n")
    return file


def test_files_as_they_were_fetched_are_of_their_commit(tmp_path):
    files = [fetched(tmp_path, f"cola/train-0000{i}-of-00002.parquet", f"{i}") for i in (0, 1)]
    assert downloaded_commit(files, tmp_path / "memo.json") == COMMIT
    assert downloaded_commit(files, tmp_path / "memo.json") == COMMIT  # remembered


def test_a_changed_file_is_ones_own(tmp_path):
    file = fetched(tmp_path, "train.parquet", "content")
    file.write_text("changed")
    assert downloaded_commit([file]) is None


def test_without_a_note_of_each_file_there_is_no_commit(tmp_path):
    files = [fetched(tmp_path, f"{name}.parquet", name) for name in ("a", "b")]
    (tmp_path / NOTES / "b.parquet.metadata").unlink()
    assert downloaded_commit(files) is None
    (tmp_path / NOTES / "b.parquet.metadata").write_text("cut off")
    assert downloaded_commit(files) is None


def test_files_of_two_commits_are_no_commit(tmp_path):
    files = [fetched(tmp_path, f"{commit[0]}.parquet", "x", commit) for commit in (COMMIT, OTHER)]
    assert downloaded_commit(files) is None
    assert downloaded_commit(files[1:]) == OTHER


@pytest.mark.parametrize("changed", [False, True])
def test_the_fingerprint_of_a_split_is_the_hubs_until_it_is_changed(changed, tmp_path):
    file = fetched(tmp_path, "cola/train-00000-of-00001.parquet", "content")
    if changed:
        file.write_text("changed")
    options = TextTask(suite="glue", members=("cola",), data_dir=str(tmp_path))
    assert tasks.fingerprint(options, "cola")["train"] == (
        f"sha256 {content_hash([file])}"
        if changed
        else f"hub nyu-mll/glue config cola split train at {COMMIT}"
    )
