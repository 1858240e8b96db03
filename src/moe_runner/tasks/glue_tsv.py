"""The tab-separated files of GLUE's own download: `CoLA/train.tsv`, `MNLI/dev_matched.tsv`.

Source: the format of gluebenchmark.com's archives (unquoted; CoLA without a header).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_runner.tasks.places import Source
from moe_runner.tasks.records import open_text

log = logging.getLogger(__name__)

READING = "GLUE's own tsv"  # how the files are read, before the task's name
COLA = ("source", "label", "mark", "sentence")
# task -> our column -> theirs
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "cola": {"sentence": "sentence", "label": "label"},
    "sst2": {"sentence": "sentence", "label": "label"},
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "stsb": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"},
    "qqp": {"question1": "question1", "question2": "question2", "label": "is_duplicate"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    "qnli": {"question": "question", "sentence": "sentence", "label": "label"},
    "rte": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"},
}
MALFORMED = 0.01  # share of rows with too few columns that is left out (QQP has some)


def tsv_source(data_dir: str, name: str, split: str) -> Source | None:
    """Look for GLUE's own file of a split.

    Args:
        data_dir: `task.data_dir`, the folder of all tasks or of this one.
        name: of the task; its folder's name may have capitals and hyphens.
        split: such as train, validation_matched.

    Returns:
        The source; None if there is none.
    """
    root = Path(data_dir).expanduser()
    if name not in COLUMNS or not root.is_dir():
        return None
    file_name = f"{split.replace('validation', 'dev')}.tsv"
    own = [p for p in sorted(root.iterdir()) if re.sub(r"[\W_]", "", p.name).lower() == name]
    for folder in (*own, root):
        if (folder / file_name).is_file():
            return Source(files=(folder / file_name,), reading=f"{READING} {name}")
    return None


def read_tsv(source: Source) -> Any:
    """Read a file of GLUE.

    Args:
        source: of `tsv_source`.

    Returns:
        A pyarrow table of the task's columns and `label`.

    Raises:
        ValueError: if a column is missing, or too many rows are malformed; names the file.
    """
    import pyarrow as pa  # heavy, so here

    (file,) = source.files
    name = source.reading.rpartition(" ")[2]
    columns = COLUMNS[name]
    with open_text(file) as stream:
        try:
            rows = [line.rstrip("\r\n").split("\t") for line in stream if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not {error.encoding} ({error.reason})") from error
    header = list(COLA) if name == "cola" else rows.pop(0) if rows else []
    if missing := [theirs for theirs in columns.values() if theirs not in header]:
        raise ValueError(
            f"{file} has the columns {', '.join(header)}; GLUE's {name} has {', '.join(missing)}"
        )
    places = {ours: header.index(theirs) for ours, theirs in columns.items()}
    whole = [row for row in rows if len(row) > max(places.values())]
    if lost := len(rows) - len(whole):
        if lost > max(1, MALFORMED * len(rows)):
            raise ValueError(f"{file}: {lost} of {len(rows)} rows have too few columns")
        log.warning("  %s: %d rows with too few columns are left out", file, lost)
    kept = [row for row in whole if row[places["label"]] != "-"]  # no agreement on a label
    found: dict[str, list[Any]] = {
        ours: [row[place] for row in kept] for ours, place in places.items()
    }
    found["label"] = [_label(value) for value in found["label"]]
    return pa.table(found)


def _label(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
