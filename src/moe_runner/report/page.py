"""The HTML page of a report: one file, no network, everything escaped."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from moe_runner.analysis.stored import Analysis
from moe_runner.console import clear
from moe_runner.files import write_atomic
from moe_runner.metrics import shown
from moe_runner.report.provenance import provenance_sheet
from moe_runner.report.sheet import Sheet, blocks
from moe_runner.runs.result import Result
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import Study
from moe_runner.sweeps.study_plan import StudyPlan

WIDTH = 165  # characters: what a table may have side by side in a window of 1400 pixels
TEMPLATE = Path(__file__).parent / "page.html.jinja"


@dataclass(frozen=True)
class Section:
    """One study on the page.

    Args:
        plan: the study.
        sheets: its tables, ours first.
        plots: PNG files.
    """

    plan: StudyPlan
    sheets: Sequence[Sheet]
    plots: Sequence[Path]


@dataclass(frozen=True)
class Verdicts:
    """What a study says, on top of the page.

    Args:
        study: the study.
        sheet: its effects, each with a verdict.
        summary: how many of each.
    """

    study: Study
    sheet: Sheet
    summary: str


def write_page(
    file: Path,
    sections: Sequence[Section],
    verdicts: Sequence[Verdicts],
    results: Mapping[str, Result],
    store: Store,
    analyses: Sequence[Analysis] = (),
) -> None:
    """Write the page.

    Args:
        file: to write to.
        sections: the studies; none: a page of analyses alone.
        verdicts: of those that have something to say.
        results: by run id.
        store: tells the state of the runs that have none.
        analyses: what the experts of kept runs are.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["clear"] = clear
    environment.filters["blocks"] = lambda sheet: blocks(sheet, WIDTH)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    jobs = {job.run.id: job for section in sections for job in section.plan.jobs}
    studies: dict[str, list[str]] = {}
    for section in sections:
        for job in section.plan.jobs:
            studies.setdefault(job.run.id, []).append(section.plan.study.name)
    rows = [
        {
            "id": run_id,
            "studies": studies[run_id],
            **{name: clear(str(value)) for name, value in job.run.axes().items()},
            "state": "done" if run_id in results else store.status(run_id).state,
            "primary": "" if run_id not in results else primary(results[run_id]),
            "seconds": round(results[run_id].wall_seconds, 1) if run_id in results else "",
            "config": json.dumps(job.run.settings(), indent=1, sort_keys=True),
        }
        for run_id, job in jobs.items()
    ]
    text = template.render(
        sections=sections,
        analyses=analyses,
        verdicts=verdicts,
        rows=rows,
        profile=sections[0].plan.profile if sections else "",
        done=sum(row["state"] == "done" for row in rows),
        results=results,
        missing={section.plan.study.name: missing(section.plan) for section in sections},
        others=other_pages(file),
        came=provenance_sheet(results, store),
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )
    write_atomic(file, text)


def missing(plan: StudyPlan) -> str:
    """Say what a study lacks on this machine, and for how many runs."""
    counts = Counter(problem for job in plan.jobs for problem in job.problems)
    words = [f"{problem} ({count} runs)" for problem, count in counts.items()]
    return "; ".join([*plan.gaps, *words]) or "nothing"


def other_pages(file: Path) -> list[str]:
    """List the folders beside a page's own that have a page, too: other profiles, own runs."""
    if file.parent.parent.name != "reports":
        return []  # a place of the user's: what lies beside it is not ours
    return sorted(
        page.parent.name
        for page in file.parent.parent.glob("*/index.html")
        if page.parent.name != file.parent.name
    )


def primary(result: Result) -> str:
    """Write a result's primary metric."""
    return shown(result.primary, result.metrics)


def data_uri(file: Path) -> str:
    """Put a picture into the page itself."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
