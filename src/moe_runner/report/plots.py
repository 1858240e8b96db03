"""The plots of a study, each as PNG and PDF. matplotlib is imported when a plot is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_runner.files import replacing
from moe_runner.report.plot_frontier import frontier
from moe_runner.report.plot_kinds import KINDS
from moe_runner.report.plot_runs import curves, rank_diagram, scatter
from moe_runner.report.ranking import ranking_of
from moe_runner.report.study_table import Results, tabulate
from moe_runner.sweeps.study_plan import StudyPlan

DPI = 130


def draw_study(
    plan: StudyPlan, results: Results, lines: Mapping[str, Any], out: Path
) -> list[Path]:
    """Draw what a study has to show.

    Args:
        plan: the study.
        results: by run id.
        lines: lines of metrics.jsonl by run id.
        out: folder of the files `<study>-<kind>.png` and `.pdf`.

    Returns:
        The PNG files; none for a study without a finished run.
    """
    runs = [job.run for job in plan.jobs if job.run.id in results]
    if not runs:
        return []
    table = tabulate(plan, results)
    ranking = ranking_of(table)
    figures: dict[str, Any] = {}
    figures[plan.study.plot] = KINDS[plan.study.plot](plan, table, runs, lines)
    figures["ranks"] = None if ranking is None else rank_diagram(plan.study.title, ranking)
    figures["curves"] = curves(plan, table, runs, results)
    figures["frontier"] = frontier(plan, table, results)
    figures["id-ood"] = scatter(plan, table, runs, results)
    files = []
    for kind, figure in figures.items():
        if figure is None:
            continue
        file = out / f"{plan.study.name}-{kind}.png"
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
        figure.set_layout_engine("none")  # it is laid out: once is enough
        with replacing(file.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
        files.append(file)
    return files
