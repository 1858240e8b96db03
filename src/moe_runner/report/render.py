"""Render studies: tables as Markdown, LaTeX and CSV, plots, and one HTML page of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from moe_runner.analysis.stored import analyses_of
from moe_runner.files import read_json, unfinished, write_atomic, write_json
from moe_runner.report.page import Section, Verdicts, write_page
from moe_runner.report.sheet import Sheet, plain_label, to_csv, to_latex, to_markdown
from moe_runner.report.study_sheet import sheets
from moe_runner.report.tidy import tidy_sheet
from moe_runner.report.verdicts import claims, summed_up, verdict_sheet
from moe_runner.runs.objects import StoreError
from moe_runner.runs.result import Result
from moe_runner.runs.store import RunFolder, Store
from moe_runner.sweeps.study_plan import StudyPlan

FORMATS = ("md", "latex", "csv", "html")
TEX = r"""\documentclass{article}
\usepackage[margin=1cm,landscape]{geometry}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\end{document}
"""


def render(
    plans: Sequence[StudyPlan], store: Store, out: Path, formats: Sequence[str]
) -> list[Path]:
    """Render studies from what is in the store; two into one folder at once do so in turn.

    Args:
        plans: the studies.
        store: holds the results.
        out: the folder to write to; it is made.
        formats: some of `FORMATS`; html includes the plots.

    Returns:
        The files that were written: tables.md; tables.tex, a document, and tables/<table>.tex, each
        a table for one's own; <table>.csv as shown and <study>-tidy.csv, every number unrounded;
        plots/; index.html.

    Raises:
        StoreError: with a line for every result that is damaged, or for a damaged analysis.
        OSError: if a file cannot be written; it is named.
    """
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        for left in (
            *unfinished(out),
            *unfinished(out / "plots"),
            *unfinished(out / "tables"),
        ):  # of killed ones
            left.unlink()
        return _render(plans, store, out, formats)


def _render(
    plans: Sequence[StudyPlan], store: Store, out: Path, formats: Sequence[str]
) -> list[Path]:
    results = store.results_of(job.run.id for plan in plans for job in plan.jobs)
    laid = {plan.study.name: sheets(plan, results) for plan in plans}
    verdicts = {}
    for plan in plans:
        if (sheet := verdict_sheet(plan, found := claims(plan, results))) is not None:
            verdicts[plan.study.name] = Verdicts(plan.study, sheet, summed_up(found))
    every = [each.sheet for each in verdicts.values()]
    every += [sheet for found in laid.values() for sheet in found]
    files: list[Path] = []

    def write(name: str, text: str) -> None:
        write_atomic(out / name, text)
        files.append(out / name)

    if "md" in formats:
        write("tables.md", "\n".join(to_markdown(sheet) for sheet in every))
    if "latex" in formats:
        write("tables.tex", TEX % "\n".join(fitted(sheet) for sheet in every))
        (out / "tables").mkdir(exist_ok=True)
        for name, sheet in named_sheets(laid, verdicts):
            write(f"tables/{name}.tex", to_latex(sheet, label=name))
    if "csv" in formats:
        for name, sheet in named_sheets(laid, verdicts):
            write(f"{name}.csv", to_csv(sheet))
        for plan in plans:
            if plan.jobs:
                write(f"{plan.study.name}-tidy.csv", to_csv(tidy_sheet(plan, results)))
    if "html" in formats:
        from moe_runner.report.plots import draw_study  # matplotlib: seconds

        plots = out / "plots"
        plots.mkdir(exist_ok=True)
        sections = []
        for plan in plans:
            drawn = drawn_before(plan, results, store, plots)
            if drawn is None:
                drawn = draw_study(plan, results, loads_of(plan, store), plots)
                remember(plan, results, store, plots, drawn)
            files += drawn
            sections.append(Section(plan, laid[plan.study.name], drawn))
        said, analyses = list(verdicts.values()), analyses_of(store, results)
        write_page(out / "index.html", sections, said, results, store, analyses)
        files.append(out / "index.html")
    return files


def drawn_before(
    plan: StudyPlan, results: Mapping[str, Result], store: Store, plots: Path
) -> list[Path] | None:
    """Find the plots of a study that were drawn from the same results; None: they are to be drawn.

    A page has every study, and most have not changed since it was last written.
    """
    try:
        tree = read_json(plots / f".{plan.study.name}.json")
        files = [plots / Path(str(name)).name for name in tree["files"]]
        known = tree["from"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    whole = all(file.exists() and file.with_suffix(".pdf").exists() for file in files)
    return files if whole and known == drawn_from(plan, results, store) else None


def remember(
    plan: StudyPlan, results: Mapping[str, Result], store: Store, plots: Path, files: Sequence[Path]
) -> None:
    """Write down what the plots of a study were drawn from."""
    content = {"from": drawn_from(plan, results, store), "files": [file.name for file in files]}
    write_json(plots / f".{plan.study.name}.json", content)


def drawn_from(plan: StudyPlan, results: Mapping[str, Result], store: Store) -> str:
    """Sum up all that the plots of a study depend on: its runs' files, the study, our code."""
    content = sha256()
    for file in sorted(Path(__file__).parent.iterdir()):
        if file.is_file():
            content.update(file.read_bytes())
    content.update(repr((plan.study, plan.profile)).encode())
    for job in plan.jobs:
        content.update(job.run.id.encode())
        for name in ("result.json", "metrics.jsonl") if job.run.id in results else ():
            with suppress(FileNotFoundError):
                found = (store.folder(job.run.id) / name).stat()
                content.update(f"{found.st_mtime_ns} {found.st_size}".encode())
    return content.hexdigest()


def named_sheets(
    laid: Mapping[str, Sequence[Sheet]], verdicts: Mapping[str, Verdicts]
) -> Iterator[tuple[str, Sheet]]:
    """Give every table with the name of its files: <study>, <study>-ood, <study>-beside-<table>."""
    used: dict[str, int] = {}
    for study, found in laid.items():
        first = [verdicts[study].sheet] if study in verdicts else []
        for sheet in [*first, *found]:
            name = f"{study}-{plain_label(sheet.name)}" if sheet.name else study
            used[name] = used.get(name, 0) + 1
            yield (name if used[name] == 1 else f"{name}-{used[name]}"), sheet


def fitted(sheet: Sheet) -> str:
    """Write as LaTeX, scaled down to the width of the page."""
    text = to_latex(sheet)
    text = text.replace(
        r"\begin{tabular}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else"
        r"\width\fi}{!}{\begin{tabular}",
    )
    return text.replace(r"\end{tabular}", r"\end{tabular}}")


def loads_of(plan: StudyPlan, store: Store) -> Mapping[str, list[dict[str, Any]]]:
    """Read the evaluations of a study that draws the load of its experts.

    Raises:
        StoreError: if a metrics.jsonl is damaged.
    """
    if plan.study.plot != "heatmap":
        return {}
    found = {}
    for job in plan.jobs:
        folder = store.folder(job.run.id)
        try:
            found[job.run.id] = lines = RunFolder(folder).metrics()
        except ValueError as error:  # it names file and line
            raise StoreError(str(error)) from error
        for line in lines:
            try:
                [float(n) for n in (line.get("load") or [[]])[0]]
            except (TypeError, ValueError, LookupError) as error:
                raise StoreError(
                    f"{folder}/metrics.jsonl has a load of experts that is no list of numbers "
                    f"({error}); delete that line"
                ) from error
    return found
