"""Find out that local files are unchanged copies of the Hub's, and of which commit."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from moe_runner.hub import COMMIT
from moe_runner.runs.identity import file_hashes

NOTES = Path(".cache/huggingface/download")  # in a folder of `hf download --local-dir`
SHA256 = re.compile("[0-9a-f]{64}")


def downloaded_commit(files: Sequence[Path], memo: Path | None = None) -> str | None:
    """Find the commit of the Hub that files were fetched from and still agree with.

    `hf download --local-dir` and scripts/prepare_data.py note commit and SHA-256 beside what they
    fetch; the content is compared with the note, not its time.

    Args:
        files: of one split.
        memo: file that remembers content hashes; see `content_hash`.

    Returns:
        40 hex digits; None if a file has no note, or was changed since, or two commits are noted.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    notes = {os.path.abspath(file): _note(file) for file in files}
    if not all(notes.values()):
        return None
    if file_hashes(list(notes), memo) != {file: note[1] for file, note in notes.items() if note}:
        return None
    commits = {note[0] for note in notes.values() if note}
    return commits.pop() if len(commits) == 1 else None


def _note(file: Path) -> tuple[str, str] | None:
    """Read the note of a file, in the folder or one above: commit and SHA-256."""
    path = Path(os.path.abspath(file))
    for folder in path.parents:
        note = folder / NOTES / f"{path.relative_to(folder)}.metadata"
        try:
            commit, digest, *_ = note.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            continue
        return (commit, digest) if COMMIT.fullmatch(commit) and SHA256.fullmatch(digest) else None
    return None
