"""How a report came about: what its runs were computed with, and what wrote the report."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe_runner.console import clear
from moe_runner.files import masked, parse_json
from moe_runner.report.sheet import Entry, Sheet
from moe_runner.runs.environment import environment
from moe_runner.runs.result import Result
from moe_runner.runs.store import Store

VERSIONS = ("moe-runner", "torch", "transformers", "datasets", "numpy", "scipy")
MOST = 6  # different values of one thing that are shown


def provenance_sheet(results: Mapping[str, Result], store: Store) -> Sheet:
    """Lay out command, commit, versions, hardware and date: of the runs, and of the report.

    Args:
        results: by run id.
        store: of the runs, each with its environment.json and status.json.
    """
    runs = of_runs(results, store)
    own = environment(None)
    report = {
        "command": command(),
        "commit": commit(own),
        "versions": versions(own),
        "hardware": hardware(own),
        "date": f"{datetime.now(UTC).isoformat(timespec='minutes').replace('+00:00', '')} UTC",
    }
    rows = [(name, runs.get(name, ""), report[name]) for name in report]
    return Sheet(
        title="How this came about",
        header=("", f"the {len(results)} finished runs", "this report"),
        rows=tuple(tuple(map(Entry, row)) for row in rows),
        caption="every run's own: config.yaml and environment.json in its folder",
        words=3,
        name="provenance",
    )


def command() -> str:
    """Write the command line of this process, without secrets."""
    name = Path(sys.argv[0]).name
    return clear(masked(shlex.join([name, *sys.argv[1:]])))


def of_runs(results: Mapping[str, Result], store: Store) -> dict[str, str]:
    """Sum up what runs were computed with."""
    contents: Counter[bytes] = Counter()
    for run_id in results:
        contents[content(store.folder(run_id) / "environment.json")] += 1
    found: dict[str, Counter[str]] = {
        name: Counter() for name in ("commit", "versions", "hardware")
    }
    for text, count in contents.items():
        tree = parsed(text)
        if tree is None:
            for counter in found.values():
                counter["not recorded"] += count
            continue
        found["commit"][commit(tree)] += count
        found["versions"][versions(tree)] += count
        found["hardware"][hardware(tree)] += count
    devices = Counter(result.device for result in results.values())
    summed = {name: listed(counter) for name, counter in found.items()}
    if devices:
        summed["hardware"] += f"; device {listed(devices)}"
    dates = sorted(started(results, store))
    if dates:
        first, last = dates[0][:16], dates[-1][:16]
        summed["date"] = f"{first} UTC" if first == last else f"{first} to {last} UTC"
    return {**summed, "command": "moe-run, see the head of each study and the settings of each run"}


def started(results: Iterable[str], store: Store) -> Iterable[str]:
    """Give the times at which runs began, as far as that is recorded."""
    for run_id in results:
        tree = parsed(content(store.folder(run_id) / "status.json"))
        if tree is not None and isinstance(tree.get("started"), str):
            yield tree["started"]


def content(file: Path) -> bytes:
    """Read a file; nothing if that cannot be done."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def parsed(text: bytes) -> dict[str, Any] | None:
    """Read an object of JSON; None if it is none."""
    try:
        tree = parse_json(text)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def listed(counter: Counter[str]) -> str:
    """Write different values, with how many runs have each if there are several."""
    if len(counter) == 1:
        return next(iter(counter))
    words = [f"{value} ({count} runs)" for value, count in counter.most_common(MOST)]
    more = len(counter) - MOST
    return "; ".join([*words, *([f"and {more} more"] if more > 0 else [])])


def commit(tree: Mapping[str, Any]) -> str:
    """Name the commit of an environment."""
    git = tree.get("git")
    if not isinstance(git, Mapping) or not git.get("commit"):
        return "no repository"
    return str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")


def versions(tree: Mapping[str, Any]) -> str:
    """Name the versions of an environment."""
    packages = tree.get("packages")
    known = packages if isinstance(packages, Mapping) else {}
    words = [f"{name} {known[name]}" for name in VERSIONS if known.get(name)]
    return ", ".join([f"python {tree.get('python', '?')}", *words])


def hardware(tree: Mapping[str, Any]) -> str:
    """Name the machine of an environment."""
    memory = tree.get("memory_bytes")
    parts = [str(tree.get("cpu", "?")), f"{tree.get('cores', '?')} cores"]
    parts += [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int | float) else []
    parts += [str(tree["platform"])] if tree.get("platform") else []
    return ", ".join(parts)
