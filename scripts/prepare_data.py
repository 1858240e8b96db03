"""Download the data of a task into a folder, or check a local copy, with checksums.

`python scripts/prepare_data.py glue --folder /data/glue`    then: moe-run task.data_dir=...
`python scripts/prepare_data.py gluex --folder /data/glue`     with the OOD sets, in /data/glue/ood
`python scripts/prepare_data.py wikitext2 --folder /data/wikitext`

What is in the folder already is checked, what is not comes from the Hugging Face Hub. The folder's
SHA256SUMS (as of `sha256sum`) is compared where it names a file and completed where it does not.
Exit code 1 if something that a run needs is missing or damaged.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from moe_runner import hub, tasks
from moe_runner.downloads import fetching
from moe_runner.files import write_atomic
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import read_option
from moe_runner.options.folders import option_folders
from moe_runner.options.task import Task
from moe_runner.registry import SUITES
from moe_runner.tasks.places import HubSplit

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Wanted:
    """A split of the Hub, and the folder that its files keep their path in."""

    place: HubSplit
    folder: Path


@dataclass
class Findings:
    """What the folder has and lacks."""

    files: list[Path] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # split -> why, and what to do
    optional: dict[str, str] = field(default_factory=dict)  # the same; a run does without it
    wanted: dict[str, Wanted] = field(default_factory=dict)  # what the Hub may have of it


def main() -> None:
    """Check, download what is missing, check again, write the checksums."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="moe-report tasks lists the tasks"
    )
    parser.add_argument("task", help="as in moe-run task=..., such as glue, glue/cola, wikitext2")
    parser.add_argument("--folder", type=Path, help="default: data/<suite>")
    arguments = parser.parse_args()
    try:
        sys.exit(prepare(arguments.task, arguments.folder))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk, a broken connection
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def prepare(name: str, folder: Path | None = None) -> int:
    """Prepare the data of one task option.

    Args:
        name: of a file in conf/task.
        folder: of the data; None: `data/<suite>`.

    Returns:
        The exit code.

    Raises:
        ConfigError: for an unknown task.
        OSError: if the folder cannot be written, or a download fails.
    """
    options = read_options(name)
    folder = (folder or Path("data") / options.suite).expanduser()
    every = [tasks.sources(options, member).values() for member in options.members]
    if all(source.generated is not None for found in every for source in found):
        print(f"task={name} is generated; there is nothing to prepare")
        return 0
    options = replace(options, data_dir=str(folder), ood_dir=str(folder / "ood"))
    found = look(options)
    if found.wanted and hub.reachable():
        download(found.wanted)
        found = look(options)
    damaged = check_sums(found.files, folder)
    for split, text in found.optional.items():
        print(f"not there, and not needed: {split}: {text}")
    for split, text in found.missing.items():
        print(f"missing: {split}: {text}", file=sys.stderr)
    for file in damaged:
        line = f"damaged: {file} differs from {folder / SUMS}; delete it and run this again"
        print(line, file=sys.stderr)
    if found.missing and not hub.reachable():
        print("the Hub is unreachable, so nothing was downloaded", file=sys.stderr)
    if found.missing or damaged:
        return 1
    ood = f" task.ood_dir={folder / 'ood'}" if options.ood else ""
    print(f"{len(found.files)} files are complete: moe-run task={name} task.data_dir={folder}{ood}")
    return 0


def read_options(name: str) -> Task:
    """Read an option file of conf/task.

    Raises:
        ConfigError: if there is none of this name.
    """
    tree = read_option(option_folders(), "task", name)
    problems: list[str] = []
    options = build(SUITES[tree["suite"]].options, tree, "task", problems)
    if options is None or problems:
        raise ConfigError(*problems)
    return options


def look(options: Task) -> Findings:
    """Look for every split of every member in the folder, and on the Hub for what is not there."""
    found = Findings()
    online = replace(options, data_dir=None, ood_dir=None)
    for member in options.members:
        here = tasks.sources(options, member)
        found.files += [file for s in here.values() for file in s.files if file not in found.files]
        lacking = {
            split: source
            for split, source in here.items()
            if not source.available or source.hub is not None  # a run would ask the Hub for it
        }
        elsewhere = tasks.sources(online, member) if lacking else {}
        for split, source in lacking.items():
            where = found.optional if source.problem is None else found.missing
            where[f"{member} {split}"] = (
                source.problem or source.absent or f"is on the {source.hub}"
            )
            places = {name: each.hub for name, each in elsewhere.items()}
            place, train = places.get(split), places.get("train")
            if place is not None:
                own = train is not None and place.hub_id == train.hub_id  # mrpc's partner qqp
                root = options.data_dir if own else f"{options.ood_dir}/{Path(split).name}"
                found.wanted[f"{member} {split}"] = Wanted(place, Path(str(root)))
    return found


def download(wanted: Mapping[str, Wanted]) -> None:
    """Download the parquet files of splits, and compare them with the checksums of the Hub.

    Args:
        wanted: by a name for the bar.

    Raises:
        OSError: if a download fails, or a file is not what the Hub says.
    """
    from huggingface_hub import HfApi, hf_hub_download  # only now: it reads HF_HUB_OFFLINE

    api = HfApi()
    with progress("downloading") as advance:
        for key, each in wanted.items():
            place = each.place
            at = {"repo_type": "dataset", "revision": place.revision}
            start = f"{place.config}/{place.split}"
            starts = (f"{start}-", f"{start}/")
            if place.config == "default":  # of a repository with one configuration
                starts += (f"data/{place.split}-",)
            try:
                with fetching("dataset", place.hub_id, place.revision):
                    names = [
                        name
                        for name in api.list_repo_files(place.hub_id, **at)
                        if name.startswith(starts) and name.endswith(".parquet")
                    ]
                    infos = api.get_paths_info(place.hub_id, names, **at) if names else []
            except OSError as error:
                reason = str(error).strip().partition("\n")[0]
                print(f"cannot ask the Hub for {place}: {reason}", file=sys.stderr)
                continue
            if not names:
                print(f"the Hub has no file {start}*.parquet in {place.hub_id}", file=sys.stderr)
            advance(key, 0, sum(info.size for info in infos))
            for info in infos:
                bar = forwarding(lambda done, key=key: advance(key, done, 0))
                with fetching("dataset", place.hub_id, place.revision):
                    file = Path(
                        hf_hub_download(
                            place.hub_id, info.path, local_dir=each.folder, tqdm_class=bar, **at
                        )
                    )
                if info.lfs is not None and sha256(file) != info.lfs.sha256:
                    file.unlink()
                    raise OSError(f"{file} was damaged on the way and is removed; run this again")


def forwarding(advance: Callable[[int], object]) -> type:
    """Make a bar of huggingface_hub that shows nothing and tells us how many bytes came."""
    from huggingface_hub.utils import tqdm

    class Forwarding(tqdm):
        """See `forwarding`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            """Pass on the bytes that came."""
            advance(int(n or 0))

    return Forwarding


def check_sums(files: Sequence[Path], folder: Path) -> list[Path]:
    """Compare files with SHA256SUMS of the folder, and add those that it does not name.

    Args:
        files: within the folder.
        folder: has SHA256SUMS, or gets it.

    Returns:
        The files that differ.

    Raises:
        OSError: if SHA256SUMS cannot be written.
    """
    if not files:
        return []
    place = folder if folder.is_dir() else folder.parent  # one text file instead of a folder
    listed = read_sums(place / SUMS)
    found: dict[str, str] = {}
    with progress("checking") as advance:
        advance("", 0, sum(file.stat().st_size for file in files))
        for file in files:
            name = file.relative_to(place).as_posix()
            found[name] = sha256(file)
            advance(name, file.stat().st_size, 0)
    new = {name: digest for name, digest in found.items() if name not in listed}
    if new:
        lines = sorted((listed | new).items())
        write_atomic(place / SUMS, "".join(f"{digest}  {name}\n" for name, digest in lines))
        print(f"{len(new)} checksums added to {place / SUMS}")
    if same := sum(listed.get(name) == digest for name, digest in found.items()):
        print(f"{same} files agree with {place / SUMS}")
    return [place / name for name, digest in found.items() if listed.get(name, digest) != digest]


def read_sums(file: Path) -> dict[str, str]:
    """Read a file of `sha256sum`: name -> digest; empty if there is none."""
    if not file.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name.lstrip("*").removeprefix("./"): digest for digest, name in filter(None, lines)}


def sha256(file: Path) -> str:
    """Hash the content of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def progress(what: str) -> Iterator:
    """Show a bar of bytes on a terminal.

    Yields:
        (name, bytes done, bytes more to do) -> None.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=0)

        def advance(name: str, done: int, more: int) -> None:
            total = (bar.tasks[task].total or 0) + more
            bar.update(task, total=total, advance=done, description=f"{what} {name}")

        yield advance


if __name__ == "__main__":
    main()
