"""The published tables, each with its source and confidence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "published.yaml"
Published = float | int | str | None  # a cell; None: not available


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table or figure of a paper, as far as its numbers are known.

    Args:
        id: its name in published.yaml.
        paper: emoe, hypermoe, or external (an anchor, no target).
        where: in the paper.
        metric: what the numbers are, in words.
        columns: names.
        measures: of each column what may stand beside it: names of metrics (a mean of several:
            "accuracy + f1"); `score`: a mean over tasks with metrics of which more is better, in
            percent; `rank`: a mean rank; `none`: nothing of ours is of its kind.
        rows: name -> a number (or text) for each column; None: not available.
        std: the same for standard deviations, where they are known.
        source: where the numbers were read.
        confidence: verified or secondary, for all or by part of the table.
        notes: what to know.
        no_study: why no study shows it; empty: one does.
    """

    id: str
    paper: str
    where: str
    metric: str
    columns: tuple[str, ...]
    measures: tuple[str, ...]
    rows: Mapping[str, tuple[Published, ...]]
    std: Mapping[str, tuple[Published, ...]]
    source: str
    confidence: str
    notes: tuple[str, ...]
    no_study: str = ""

    def measure(self, column: str) -> str:
        """Say what may stand beside a column, see `measures`."""
        return self.measures[self.columns.index(column)]


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Read all published tables, by id."""
    tree = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    tables = [read_table(entry, tree["sources"]) for entry in tree["tables"]]
    return {table.id: table for table in tables}


def read_table(entry: Mapping[str, Any], sources: Mapping[str, str]) -> PublishedTable:
    """Turn an entry of published.yaml into a table; keys of sources are spelled out."""
    rows, std = {}, {}
    for name, cells in entry["rows"].items():
        if isinstance(cells, dict):
            rows[name], std[name] = tuple(cells["mean"]), tuple(cells["std"])
        else:
            rows[name] = tuple(cells)
    columns = tuple(str(column) for column in entry["columns"])
    measures = entry["measures"]
    if isinstance(measures, str):
        measures = [measures] * len(columns)
    confidence = entry["confidence"]
    if isinstance(confidence, dict):
        confidence = ", ".join(f"{part}: {word}" for part, word in confidence.items())
    source = entry["source"]
    return PublishedTable(
        id=entry["id"],
        paper=entry["paper"],
        where=entry["where"],
        metric=entry["metric"],
        columns=columns,
        measures=tuple(measures),
        rows=rows,
        std=std,
        source=re.sub(r"\b(\w+)\b", lambda match: sources.get(match[0], match[0]), source),
        confidence=confidence,
        notes=tuple(note.rstrip(".") for note in entry.get("notes", ())),
        no_study=entry.get("no_study", ""),
    )
