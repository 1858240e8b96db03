"""Carrying out a study: what is handed to the launcher, what is shown, what is left over."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from moe_runner.cli import studies
from moe_runner.cli.launching import LostJob
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options import folders
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.report import store_commands
from moe_runner.runs.environment import environment
from moe_runner.runs.result import Checkpoint, Result
from moe_runner.runs.store import Store
from moe_runner.sweeps.monitor import Monitor
from moe_runner.sweeps.study import ONLY, read_study
from moe_runner.sweeps.study_plan import plan_study, restrict
from tests.results import make_result, scores

STUDY = """\
# @package _global_
hydra: {mode: MULTIRUN}
study:
  title: two methods on two tasks
  paper: ours
  published: [emoe-fig2-lora]
  rows: [method]
  columns: [task]
  grids:
    mini:
      common: {model: bert_tiny, trainer.epochs: 1}
      blocks:
        - {method: [dense, emoe], task: [glue_mini/cola, glue_mini/rte], seed: [0, 1]}
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ whose only study is a small one."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    shutil.rmtree(folder / "study")
    (folder / "study").mkdir()
    (folder / "study" / "small.yaml").write_text(STUDY)
    monkeypatch.setattr(folders, "CONF", folder)
    return folder


@pytest.fixture
def cfg(tmp_path):
    return OmegaConf.create(
        {
            "paths": {"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache")},
            "profile": "mini", "dry_run": False, "rerun": False, "device": "cpu",
            "keep_model": "none", "export": "none", "debug": False, "threads": None,
            "logger": {"name": "none", "project": "moe-runner", "mode": "offline", "group": None},
            "study": {"only": dict.fromkeys(ONLY)}, "trainer": {"precision": "fp32"},
        }
    )  # fmt: skip


@pytest.fixture
def plan(conf, cfg):
    return plan_study(
        (conf,), read_study((conf,), "small"), "mini", {"paths.cache": cfg.paths.cache}
    )


def result_of(run, primary: float) -> Result:
    """Make what tables and plots read."""
    return make_result(
        run.axes(),
        primary,
        id=run.id,
        settings=run.settings(),
        metrics=("accuracy",),
        ood_metrics={"other": scores(primary / 2)},
        learning_curve=(Checkpoint(1, 1.0, 0.5, primary, {}),),
    )


def launcher(store: Store, jobs, failing=()):
    """Pretend to be Hydra's launcher: finish the runs that the overrides mean."""
    seen = []

    def launch(batch, initial_job_idx):
        seen.extend(batch)
        wanted = {tuple(overrides) for overrides in batch}
        for job in jobs:
            mine = [o for o in wanted if set(studies.as_overrides(job.choices)) <= set(o)]
            if not mine:
                continue
            claim = store.claim(job.run.id, config_yaml="", environment=environment(1))
            try:
                with claim as folder:
                    if job.run.id in failing:
                        raise RuntimeError("out of memory")
                    folder.finish(result_of(job.run, 0.5 + 0.1 * job.run.seed))
            except RuntimeError:
                pass
        return [None for _ in batch]

    return SimpleNamespace(launch=launch, seen=seen)


def test_what_is_done_is_not_handed_over_again(conf, cfg, plan, capsys):
    store = Store(conf.parent / "out")
    first = launcher(store, plan.jobs, failing={plan.jobs[2].run.id})
    assert studies.carry_out_study((conf,), "small", cfg, first.launch) == 1
    assert len(first.seen) == len(plan.jobs) == 8
    text = capsys.readouterr()
    assert "not done: " in text.err
    assert "RuntimeError: out of memory" in text.err
    second = launcher(store, plan.jobs)
    assert studies.carry_out_study((conf,), "all", cfg, second.launch) == 0
    assert len(second.seen) == 1
    third = launcher(store, plan.jobs)
    assert studies.carry_out_study((conf,), "small", cfg, third.launch) == 0
    assert third.seen == []
    text = capsys.readouterr()
    assert "not done" not in text.err
    assert "55.0 ± 5.0 (2)" in text.out
    assert "84.35" in text.out  # the published table


def test_a_job_that_came_to_no_end_is_named_with_its_reason(conf, cfg, plan, capsys):
    store = Store(conf.parent / "out")

    def launch(batch, initial_job_idx):
        launcher(store, plan.jobs[1:]).launch(batch, initial_job_idx)
        return [LostJob(batch[0], "its node died on n1 (pid 7)"), *(None for _ in batch[1:])]

    assert studies.carry_out_study((conf,), "small", cfg, launch) == 1
    run = plan.jobs[0].run
    told = f"not done: {run.label} ({run.id}): its node died on n1 (pid 7)"
    assert [line for line in capsys.readouterr().err.splitlines() if "not done" in line] == [told]


def test_a_dry_run_launches_nothing(conf, cfg, plan, capsys):
    cfg.dry_run = True
    assert studies.carry_out_study((conf,), "small", cfg, None) == 0
    assert "distinct runs" in capsys.readouterr().out


def test_an_unknown_study_is_the_users_mistake(conf, cfg, capsys):
    assert studies.carry_out_study((conf,), "smal", cfg, None) == 2
    assert "did you mean small" in capsys.readouterr().err


MISTAKE = "study=small: trainer.epoch=2 is not an option of trainer; did you mean trainer.epochs?\n"


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("common", "blocks"), [(", trainer.epoch: 2", ""), ("", "trainer.epoch: 2")]
)
def test_a_mistake_of_a_study_ends_with_2_and_is_told(dry_run, common, blocks, conf, cfg, capsys):
    file = conf / "study" / "small.yaml"
    text = file.read_text().replace("epochs: 1", f"epochs: 1{common}")
    file.write_text(f"{text}        - {{task: glue_mini/cola, {blocks}}}\n" if blocks else text)
    cfg.dry_run = dry_run
    jobs = [] if common else studies.plan_studies((conf,), ["small"], cfg, {})[0].jobs
    pretended = launcher(Store(conf.parent / "out"), jobs)
    assert studies.carry_out_study((conf,), "small", cfg, pretended.launch) == 2
    assert len(pretended.seen) == (0 if dry_run or common else 8)  # what is right is done
    assert capsys.readouterr().err.endswith(MISTAKE)


def test_of_a_study_without_any_run_the_mistake_is_told_and_not_its_axes(conf, cfg, capsys):
    file = conf / "study" / "small.yaml"
    file.write_text(file.read_text().replace("epochs: 1", "epoch: 2"))
    cfg.study.only = {**cfg.study.only, "method": "emoe"}
    assert studies.carry_out_study((conf,), "small", cfg, pytest.fail) == 2
    assert capsys.readouterr().err == MISTAKE


def test_data_that_is_missing_is_no_mistake(conf, cfg, capsys):
    file = conf / "study" / "small.yaml"
    file.write_text(file.read_text().replace("epochs: 1", "epochs: 1, task.data_dir: /nowhere"))
    cfg.dry_run = True
    assert studies.carry_out_study((conf,), "small", cfg, pytest.fail) == 0
    assert "small lacks: " in capsys.readouterr().out


def handed_over(conf, cfg, store, jobs, arguments=()):
    """Carry out the study with a pretended launcher; the overrides of each job."""
    pretended = launcher(store, jobs)
    studies.carry_out_study((conf,), "small", cfg, pretended.launch, arguments)
    return pretended.seen


@pytest.mark.parametrize(
    ("only", "runs"),
    [
        ({"method": "emoe"}, 4),
        pytest.param({"task": ["cola", "glue_mini/rte"], "seed": 0}, 4, marks=pytest.mark.long),
        ({"method": "emoe", "task": "rte", "seed": [1]}, 1),
        pytest.param({"study": ["small"], "model": "bert_tiny"}, 8, marks=pytest.mark.long),
    ],
)
def test_only_some_runs_of_a_study_are_done(only, runs, conf, cfg, plan, capsys):
    cfg.study.only = {**cfg.study.only, **only}
    seen = handed_over(conf, cfg, Store(conf.parent / "out"), plan.jobs)
    assert len(seen) == runs
    if only.get("seed") == [1]:
        assert {"method=emoe", "task=glue_mini/rte", "seed=1"} <= set(seen[0])
    text = capsys.readouterr()
    assert "not done" not in text.err  # the others were not asked for
    assert "only " in text.out
    assert not (conf.parent / "out" / "reports" / "mini").exists()  # the whole study's
    assert (conf.parent / "out" / "reports" / "mini-part" / "index.html").is_file()


@pytest.mark.parametrize(
    ("only", "problem"),
    [
        ({"method": "emo"}, "study.only.method=emo is in no run; did you mean emoe? (dense, emoe)"),
        ({"seed": [0, 7]}, "study.only.seed=7 is in no run; use some of (0, 1)"),
        (
            {"study": "tiny", "learning_rate": 3.0},
            "study.only.study=tiny is in no run; use some of (small)\n"
            "study.only.learning_rate=3.0 is in no run; use some of (0.0005)",
        ),
    ],
)
def test_a_value_that_no_run_has_is_named(only, problem, conf, cfg, capsys):
    cfg.study.only = {**cfg.study.only, **only}
    assert studies.carry_out_study((conf,), "small", cfg, None) == 2
    assert capsys.readouterr().err == f"{problem}\n"


def test_values_that_no_run_has_together_are_named(plan):
    jobs = tuple(job for job in plan.jobs if (job.run.method.name == "emoe") == bool(job.run.seed))
    split = dataclasses.replace(plan, jobs=jobs)
    with pytest.raises(ConfigError, match="no run has all of method=emoe seed=0"):
        restrict([split], {"method": ["emoe"], "seed": [0]})
    assert len(restrict([split], {"learning_rate": ["5e-4"]})[0].jobs) == len(jobs)


@pytest.mark.long
def test_precision_beside_a_study_goes_into_all_its_runs(conf, cfg, plan, capsys):
    cfg.trainer.precision = "bf16"
    store = Store(conf.parent / "out")
    changed = studies.plan_studies((conf,), ["small"], cfg, {"trainer.precision": "bf16"})[0].jobs
    assert {job.run.id for job in changed}.isdisjoint(job.run.id for job in plan.jobs)
    seen = handed_over(conf, cfg, store, changed, ["study=small", "trainer.precision=bf16"])
    assert len(seen) == 8
    assert all("trainer.precision=bf16" in overrides for overrides in seen)
    assert store.ids() == sorted(job.run.id for job in changed)
    text = capsys.readouterr()
    assert "not done" not in text.err
    assert "trainer.precision=bf16" in text.out
    assert (conf.parent / "out" / "reports" / "mini-bf16" / "index.html").is_file()
    cfg.trainer.precision = "fp32"
    seen = handed_over(conf, cfg, store, plan.jobs)
    assert not any("trainer.precision" in word for overrides in seen for word in overrides)


def test_what_is_given_beside_a_study_goes_to_its_jobs(conf, cfg, plan):
    cfg.logger = {"name": "wandb", "project": "mine", "mode": "online", "group": None}
    cfg.threads, cfg.export = 2, "dense"
    for overrides in handed_over(conf, cfg, Store(conf.parent / "out"), plan.jobs):
        assert {"logger=wandb", "logger.project=mine", "logger.mode=online"} <= set(overrides)
        assert {"logger.group=small", "threads=2", "export=dense"} <= set(overrides)


def test_everything_is_rendered(conf, cfg, plan):
    store = Store(conf.parent / "out")
    studies.carry_out_study((conf,), "small", cfg, launcher(store, plan.jobs).launch)
    folder = conf.parent / "out" / "reports" / "mini"
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")}
    assert {"tables.md", "tables.tex", "small.csv", "small-ood.csv", "index.html"} <= names
    assert {"small-tidy.csv", "tables/small.tex", "tables/small-verdicts.tex"} <= names
    assert {"plots/small-bars.png", "plots/small-curves.pdf", "plots/small-id-ood.png"} <= names
    page = (folder / "index.html").read_text()
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<tr data-studies") == 8


def test_the_monitor_says_every_change_once(plan, conf, capsys):
    store = Store(conf.parent / "out")
    runs = {job.run.id: job.run for job in plan.jobs[:2]}
    first, second = runs.values()
    with Monitor(runs, store) as monitor:
        batch = [studies.as_overrides(job.choices) for job in plan.jobs[:2]]
        launcher(store, plan.jobs[:2], {second.id}).launch(batch, 0)
        monitor.look()
        monitor.look()
    text = capsys.readouterr().err
    assert "\r" not in text
    common, done, failed = text.splitlines()
    assert common == (
        "2 runs, all with model bert_tiny, tuning full, protocol paper, suite glue_mini, lr 0.0005"
    )
    assert re.fullmatch(r"\[1/2\]  done  dense cola seed 0  accuracy 50.0  1 s  \d+ s left", done)
    assert failed == f"[2/2]  failed  dense cola seed 1  ({second.id})"


@pytest.mark.parametrize("width", [80, 40])
def test_a_terminal_shows_what_runs_and_loses_nothing(width, plan, conf):
    store = Store(conf.parent / "out")
    first, second, other = (job.run for job in plan.jobs[:3])
    twin = dataclasses.replace(first, method=EMoE(num_experts=32, top_k=8))
    wide = dataclasses.replace(twin, method=EMoE(num_experts=64))
    capped = dataclasses.replace(second, trainer=dataclasses.replace(other.trainer, max_steps=50))
    monitor = Monitor({run.id: run for run in (first, capped, twin, wide)}, store)
    claims = [
        store.claim(run.id, config_yaml="", environment=environment(1)) for run in (capped, twin)
    ]
    with claims[0] as folder, claims[1]:
        monitor.look()
        folder.log_metrics({"step": 25, "epoch": 1.0, "loss": 0.68})
        console = Console(width=width, file=io.StringIO())
        console.print(monitor.picture(width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == (
        "dense cola seed 1 update 25 of 50 loss 0.680 "
        "emoe cola seed 0 num_experts=32 top_k=8 started "
        "[0/4] 2 running time left not known yet"
    )


def test_an_old_failure_is_not_told_as_a_new_one(plan, conf, capsys):
    store = Store(conf.parent / "out")
    job = plan.jobs[0]
    launcher(store, [job], {job.run.id}).launch([studies.as_overrides(job.choices)], 0)
    with Monitor({job.run.id: job.run}, store) as monitor:
        monitor.look()
    assert capsys.readouterr().err == ""


def test_status_counts_and_names_what_failed(conf, cfg, plan, capsys):
    store = Store(conf.parent / "out")
    batch = [studies.as_overrides(job.choices) for job in plan.jobs[:3]]
    launcher(store, plan.jobs, {plan.jobs[0].run.id}).launch(batch, 0)
    store_commands.status([f"output={conf.parent / 'out'}"])
    text = capsys.readouterr().out
    assert "failed: dense bert_tiny glue_mini/cola" in text
    assert "RuntimeError: out of memory" in text
    row = next(line for line in text.splitlines() if "small" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["2", "", "1", "", "5"]


def test_reports_can_be_of_some_runs_only(conf, plan, capsys):
    output = conf.parent / "out"
    launcher(Store(output), plan.jobs).launch(
        [studies.as_overrides(j.choices) for j in plan.jobs], 0
    )
    words = [f"output={output}", "study.only.method=emoe"]
    store_commands.status([*words, "study.only.seed=0,1"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "small" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["4", "", "", "", ""]
    store_commands.tables([*words, "study.only.task=[cola,rte]"])
    assert "only method=emoe task=cola,rte" in " ".join(capsys.readouterr().out.split())
    assert (output / "reports" / "mini-part" / "tables.md").is_file()
    with pytest.raises(ConfigError, match="study.only.method=emo is in no run"):
        store_commands.tables(["study.only.method=emo", f"output={output}"])


def test_a_study_of_another_precision_is_read_back(conf, cfg, capsys):
    output = conf.parent / "out"
    changed = studies.plan_studies((conf,), ["small"], cfg, {"trainer.precision": "bf16"})[0].jobs
    launcher(Store(output), changed).launch([studies.as_overrides(j.choices) for j in changed], 0)
    words = [f"output={output}", "trainer.precision=bf16"]
    store_commands.status(words)
    row = next(line for line in capsys.readouterr().out.splitlines() if "small" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["8", "", "", "", ""]
    store_commands.tables([*words, "study=small", "format=md"])
    assert "; trainer.precision=bf16" in " ".join(capsys.readouterr().out.split())
    assert [folder.name for folder in (output / "reports").iterdir()] == ["mini-bf16"]
    with pytest.raises(ConfigError, match="trainer.precision=bf1 is not an option; did you mean"):
        store_commands.status([f"output={output}", "trainer.precision=bf1"])


def test_a_study_whose_cells_would_mix_models_is_refused_before_anything_is_run(conf, cfg, capsys):
    file = conf / "study" / "small.yaml"
    file.write_text(file.read_text().replace("model: bert_tiny", "model: [bert_tiny, gpt2_tiny]"))
    assert studies.carry_out_study((conf,), "small", cfg, pytest.fail) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4  # one a cell
    assert lines[0].startswith("study=small: in the cell dense of cola, the runs ")
    assert lines[0].endswith(
        "differ in model (bert_tiny, gpt2_tiny); name it in study.rows or study.columns"
    )


def test_clean_removes_checkpoints_of_finished_runs_only(conf, plan, capsys):
    store = Store(conf.parent / "out")
    for job, ends in zip(plan.jobs, (True, False), strict=False):
        batch = [studies.as_overrides(job.choices)]
        launcher(store, [job], set() if ends else {job.run.id}).launch(batch, 0)
        (store.folder(job.run.id) / "checkpoint").mkdir()
        (store.folder(job.run.id) / "checkpoint" / "weights").write_bytes(b"x" * 2**20)
    words = [f"output={conf.parent / 'out'}"]
    store_commands.clean([*words, "dry_run=true"])
    assert (store.folder(plan.jobs[0].run.id) / "checkpoint").is_dir()
    store_commands.clean(words)
    assert not (store.folder(plan.jobs[0].run.id) / "checkpoint").exists()
    assert (store.folder(plan.jobs[1].run.id) / "checkpoint").is_dir()
    assert "1.0 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["studie=small"], "did you mean study"),
        (["profile=big"], "profile=big is not an option"),
        (["format=pdf"], "format=pdf is not an option"),
        (["study=tiny"], "study=tiny is not an option"),
    ],
)
def test_a_wrong_word_of_moe_report_is_one_line(words, problem, conf):
    with pytest.raises(store_commands.ConfigError, match=problem):
        store_commands.tables([*words, f"output={conf.parent}"])


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """
<pre id="probe"></pre>
<script>
  const shown = () => [...body.rows].filter(row => !row.hidden);
  const column = number => shown().map(row => row.cells[number].textContent);
  const found = {all: shown().length};
  search.value = "emoe RTE";
  search.dispatchEvent(new Event("input"));
  found.searched = shown().length;
  found.count = count.textContent;
  search.value = "";
  search.dispatchEvent(new Event("input"));
  const button = document.querySelectorAll("#runs th button")[8];
  button.click();
  found.seeds = column(8);
  button.click();
  found.reversed = column(8);
  document.querySelector("#probe").textContent = JSON.stringify(found);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_the_list_of_runs_can_be_searched_and_sorted_in_a_browser(conf, cfg, plan, tmp_path):
    store = Store(conf.parent / "out")
    studies.carry_out_study((conf,), "small", cfg, launcher(store, plan.jobs).launch)
    page = (conf.parent / "out" / "reports" / "mini" / "index.html").read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</html>", f"{PROBE}</html>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [str(BROWSER), *options, "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match is not None
    found = json.loads(match[1])
    assert found["all"] == 8
    assert found["searched"] == 2
    assert found["count"] == "2 of 8"
    assert found["seeds"] == ["0"] * 4 + ["1"] * 4
    assert found["reversed"] == ["1"] * 4 + ["0"] * 4


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: apt-get install texlive")
def test_the_latex_compiles(conf, cfg, plan, tmp_path):
    store = Store(conf.parent / "out")
    studies.carry_out_study((conf,), "small", cfg, launcher(store, plan.jobs).launch)
    file = conf.parent / "out" / "reports" / "mini" / "tables.tex"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000


def test_a_damaged_result_is_one_line_and_nothing_is_launched(conf, cfg, plan, capsys):
    store = Store(conf.parent / "out")
    file = store.folder(plan.jobs[0].run.id) / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    pretended = launcher(store, plan.jobs)
    assert studies.carry_out_study((conf,), "small", cfg, pretended.launch) == 2
    assert pretended.seen == []
    err = capsys.readouterr().err
    assert str(file) in err
    assert len(err.splitlines()) == 1
