"""An analysis as it lies in its folder, for its own page and that of the tables. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moe_runner.files import read_json, write_json
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import Store

FILE = "analysis.json"  # written last
FORMAT = 1


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Args:
        file: PNG.
        caption: what it shows, and what it leaves out.
    """

    file: Path
    caption: str


@dataclass(frozen=True)
class Analysis:
    """What was found of one or several models.

    Args:
        name: of its folder.
        title: for people.
        runs: ids of the runs among the models.
        notes: what a reader must know.
        sheets: tables.
        pictures: of the same.
        files: names of all files that were written for it.
    """

    name: str
    title: str
    runs: tuple[str, ...]
    notes: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    pictures: tuple[Picture, ...]
    files: tuple[str, ...] = ()


def analyses_folder(output: Path) -> Path:
    """Tell where analyses are, a folder each."""
    return output / "analysis"


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Write down an analysis whose pictures are in the folder; files of an older one go.

    Raises:
        OSError: if it cannot be written.
    """
    old = folder / FILE
    if old.exists():
        try:
            left = set(map(str, read_json(old)["files"])) - set(analysis.files)
        except (ValueError, LookupError, TypeError):
            left = set()  # of another version, or damaged: its files stay
        for name in left:
            if name == Path(name).name:
                (folder / name).unlink(missing_ok=True)
    content: dict[str, Any] = asdict(analysis)
    content["pictures"] = [
        {"file": picture.file.name, "caption": picture.caption} for picture in analysis.pictures
    ]
    write_json(old, {"format": FORMAT, **content})


def read_analysis(file: Path) -> Analysis:
    """Read an analysis back.

    Args:
        file: an analysis.json, its pictures beside it.

    Raises:
        StoreError: if it is damaged, of another version, or a picture is gone.
    """
    try:
        tree = read_json(file)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}; this version reads {FORMAT}")
        found = Analysis(
            name=str(tree["name"]),
            title=str(tree["title"]),
            runs=tuple(map(str, tree["runs"])),
            notes=tuple(map(str, tree["notes"])),
            sheets=tuple(read_sheet(each) for each in tree["sheets"]),
            pictures=tuple(
                Picture(file.parent / Path(each["file"]).name, str(each["caption"]))
                for each in tree["pictures"]
            ),
            files=tuple(map(str, tree["files"])),
        )
        gone = [picture.file.name for picture in found.pictures if not picture.file.is_file()]
        if gone:
            raise ValueError(f"{gone[0]} is gone")
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(
            f"{file} is damaged ({error}); delete {file.parent}, or analyse again"
        ) from error
    return found


def read_sheet(tree: dict[str, Any]) -> Sheet:
    """Read a table back."""
    return Sheet(
        title=str(tree["title"]),
        header=tuple(map(str, tree["header"])),
        rows=tuple(
            tuple(Entry(str(cell["text"]), bool(cell["best"])) for cell in row)
            for row in tree["rows"]
        ),
        caption=str(tree["caption"]),
        words=int(tree["words"]),
    )


def analyses_of(store: Store, run_ids: Iterable[str]) -> list[Analysis]:
    """Read the analyses of some runs; one of a run that was repeated since then says so.

    Args:
        store: of the runs.
        run_ids: an analysis counts if one of its runs is among them.

    Raises:
        StoreError: if one is damaged.
    """
    wanted, found = set(run_ids), []
    for file in sorted(analyses_folder(store.root.parent).glob(f"*/{FILE}")):
        analysis = read_analysis(file)
        if not wanted & set(analysis.runs):
            continue
        stale = [run_id for run_id in analysis.runs if is_newer(store, run_id, file)]
        if stale:
            note = f"Run again since this analysis: moe-report analyze {' '.join(stale)}"
            analysis = replace(analysis, notes=(note, *analysis.notes))
        found.append(analysis)
    return found


def is_newer(store: Store, run_id: str, file: Path) -> bool:
    """Tell whether a run came to its result after a file was written."""
    result = store.folder(run_id) / "result.json"
    return result.exists() and result.stat().st_mtime > file.stat().st_mtime
