"""One report of all that is in the store: the page, its files, and what an empty store says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from moe_runner.options.folders import option_folders
from moe_runner.report import command
from moe_runner.report.gather import with_others
from moe_runner.report.page import missing
from moe_runner.report.provenance import listed, of_runs
from moe_runner.report.render import FORMATS, render
from moe_runner.runs.result import write_result
from moe_runner.runs.store import Store
from moe_runner.sweeps.study import read_study
from moe_runner.sweeps.study_plan import Job, StudyPlan, plan_study
from tests.results import make_result, scores

FOLDERS = option_folders()
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def planned(name: str, output) -> StudyPlan:
    common = {"paths.output": str(output), "paths.cache": f"{output}/cache"}
    return plan_study(FOLDERS, read_study(FOLDERS, name), "mini", common)


def fill(store: Store, plan: StudyPlan) -> None:
    """Write a result for every run of a study."""
    for number, job in enumerate(plan.jobs):
        folder = store.folder(job.run.id)
        folder.mkdir(parents=True)
        result = make_result(
            job.run.axes(), 0.5 + number / 100, id=job.run.id, settings=job.run.settings(),
            metrics=("accuracy",), id_metrics={"validation": scores(0.5, accuracy=0.5)},
            ood_metrics={"far": scores(0.4, accuracy=0.4)},
        )  # fmt: skip
        write_result(folder / "result.json", result)
        (folder / "environment.json").write_text(
            json.dumps({
                "python": "3.11.7", "packages": {"torch": "2.13.0", "moe-runner": "0.2.0"},
                "git": {"commit": "abcdef0123456789", "dirty": number == 0}, "cpu": "EPYC",
                "cores": 2, "memory_bytes": 2**34, "platform": "Linux",
            })
        )  # fmt: skip
        (folder / "status.json").write_text(
            json.dumps({"state": "done", "started": f"2026-11-{number + 1:02d}T10:00:00+00:00"})
        )


@pytest.fixture
def output(tmp_path):
    """A store with all runs of emoe_gates, and nothing else."""
    output = tmp_path / "out"
    fill(Store(output), planned("emoe_gates", output))
    return output


@pytest.mark.parametrize("words", [[], ["study=all", "profile=small"]])
def test_an_empty_store_says_so_in_three_lines(words, tmp_path, capsys):
    assert command.run(["tables", *words, f"output={tmp_path}/none"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 3
    assert f"has results in {tmp_path}/none (0 finished runs in all)" in out
    assert not (tmp_path / "none" / "reports").exists()


@pytest.mark.long
def test_every_study_with_results_is_in_the_report_whatever_was_asked_for(output, capsys):
    fill(Store(output), planned("hypermoe_squad", output))
    words = ["format=md,csv,html", f"output={output}"]
    assert command.run(["tables", "study=hypermoe_squad", *words]) == 0
    printed = capsys.readouterr().out
    assert "emoe_gates: " not in printed  # only what was asked for is printed
    folder = output / "reports" / "mini"
    page = (folder / "index.html").read_text()
    for name in ("emoe_gates", "hypermoe_squad"):
        assert f'<section id="{name}">' in page
        assert (folder / f"{name}-tidy.csv").is_file()
    assert "emoe_glue_full" not in page  # has nothing
    assert command.run(["tables", "study=emoe_gates", *words, f"to={output}/one"]) == 0
    assert "hypermoe_squad" not in (output / "one" / "index.html").read_text()


def test_the_others_are_not_planned_where_they_have_nothing(output, monkeypatch):
    plans = [planned("emoe_gates", output)]
    monkeypatch.setattr("moe_runner.report.gather.plan_study", lambda *_: pytest.fail("planned"))
    assert with_others(plans, FOLDERS, "mini", {}, Store(output)) == plans


@pytest.mark.long
def test_a_damaged_result_of_another_study_is_named_and_spoils_no_report(output, capsys):
    other = planned("hypermoe_squad", output)
    fill(Store(output), other)
    (Store(output).folder(other.jobs[0].run.id) / "result.json").write_text("{")
    plans = [planned("emoe_gates", output)]
    common = {"paths.output": str(output), "paths.cache": f"{output}/cache"}
    assert with_others(plans, FOLDERS, "mini", common, Store(output)) == plans
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("study=hypermoe_squad is not in the report: ")
    assert other.jobs[0].run.id in line


def test_the_page_tells_command_commit_versions_hardware_and_date(output, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/moe-report", "tables", "title=<b>"])
    render([planned("emoe_gates", output)], Store(output), output / "r", ["html"])
    page = (output / "r" / "index.html").read_text()
    for text in (
        "moe-report tables &#39;title=&lt;b&gt;&#39;", "abcdef012345 with changes (1 runs)",
        "abcdef012345 (2 runs)", "python 3.11.7, moe-runner 0.2.0, torch 2.13.0",
        "EPYC, 2 cores, 16 GiB, Linux; device cpu", "2026-11-01T10:00 to 2026-11-03T10:00 UTC",
        "moe-run study=emoe_gates profile=mini",
    ):  # fmt: skip
        assert text in page, text


def test_what_is_not_recorded_or_damaged_is_said(output):
    store = Store(output)
    ids = store.ids()
    results = store.results_of(ids)
    (store.folder(ids[0]) / "environment.json").write_text("{")
    (store.folder(ids[1]) / "environment.json").unlink()
    assert "not recorded (2 runs)" in of_runs(results, store)["commit"]
    from collections import Counter

    many = listed(Counter({str(number): 9 - number for number in range(8)}))
    assert many.endswith("5 (4 runs); and 2 more")


def test_missing_here_says_what(output):
    plan = planned("emoe_gates", output)
    jobs = tuple(Job(job.run, job.choices, ("no such data",)) for job in plan.jobs)
    assert (
        missing(StudyPlan(plan.study, "mini", jobs, ("a gap",))) == "a gap; no such data (3 runs)"
    )
    assert missing(plan) == "nothing"


def test_a_plot_is_drawn_again_only_if_its_runs_changed(output, monkeypatch):
    store, plan = Store(output), planned("emoe_gates", output)
    drawn = []
    from moe_runner.report import plots

    real = plots.draw_study
    monkeypatch.setattr(plots, "draw_study", lambda *a: drawn.append(a[0].study.name) or real(*a))
    first = render([plan], store, output / "r", FORMATS)
    assert render([plan], store, output / "r", FORMATS) == first
    assert drawn == ["emoe_gates"]
    run_id = store.ids()[0]
    (store.folder(run_id) / "metrics.jsonl").write_text('{"step": 1, "load": [[1, 2]]}\n')
    render([plan], store, output / "r", FORMATS)
    assert drawn == ["emoe_gates"] * 2
    first[-2].unlink()  # a picture
    render([plan], store, output / "r", FORMATS)
    assert len(drawn) == 3


FRAME = """
<!doctype html><iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{page}">
</iframe><pre id="probe"></pre><script>
  const frame = document.querySelector("#frame");
  frame.addEventListener("load", () => {{
    const inside = frame.contentDocument;
    const cut = [...inside.querySelectorAll("*")].filter(e => {{
      const box = e.getBoundingClientRect();
      return box.width > 0 && box.right > {width} + 1;
    }}).map(e => e.tagName + " " + e.textContent.slice(0, 40));
    document.querySelector("#probe").textContent = JSON.stringify(cut.slice(0, 5));
  }});
</script>
"""


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [375, 1400])
def test_nothing_on_the_page_is_cut(output, tmp_path, width):
    fill(Store(output), planned("emoe_glue_full", output))
    plans = [planned(name, output) for name in ("emoe_gates", "emoe_glue_full")]
    render(plans, Store(output), tmp_path / "r", ["html"])
    page = (tmp_path / "r" / "index.html").read_text().replace("<details>", "<details open>")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page, quote=True)))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000",
        f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=10000", "--dump-dom",
        frame.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match is not None
    assert html.unescape(match[1]) == "[]"
