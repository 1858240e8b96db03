"""Studies: their files, their plans, and that a job of a plan is the run it was planned as."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF, option_folders
from moe_runner.report.published import published_tables
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import Inventory, list_runs
from moe_runner.sweeps.study import (
    as_overrides,
    expand,
    read_studies,
    read_study,
    study_names,
)
from moe_runner.sweeps.study_plan import plan_study
from tests.plans import planned

FOLDERS = option_folders()
STUDIES = study_names(FOLDERS)
GRIDS = [(name, profile) for name in STUDIES for profile in read_study(FOLDERS, name).grids]


@pytest.fixture
def common(tmp_path):
    return {"paths.output": str(tmp_path), "paths.cache": str(tmp_path / "cache")}


def test_a_profile_that_a_study_does_not_have_is_refused_and_all_leaves_it_out():
    with pytest.raises(
        ConfigError,
        match="study=emoe_gates has no runs of profile=small; use profile=paper or mini",
    ):
        read_studies(FOLDERS, ["emoe_gates"], "small")
    names = [study.name for study in read_studies(FOLDERS, ["all"], "small")]
    assert "emoe_small" in names
    assert "emoe_gates" not in names
    assert "emoe_small" not in [study.name for study in read_studies(FOLDERS, ["all"], "mini")]


def test_the_published_studies_are_those_of_the_papers():
    of_papers = read_studies(FOLDERS, ["published"], "mini")
    every = read_studies(FOLDERS, ["all"], "mini")
    assert {study.paper for study in of_papers} == {"emoe", "hypermoe"}
    assert [study for study in every if study.paper != "ours"] == of_papers
    assert "speed_quality" in {study.name for study in every}
    with pytest.raises(ConfigError, match="study=published has no runs of profile=small; use"):
        read_studies(FOLDERS, ["published"], "small")


def test_there_is_a_study_for_each_published_table_that_runs_can_fill():
    studies = [read_study(FOLDERS, name) for name in STUDIES]
    filled = {name for study in studies for name in study.published}
    filled |= {pairing.table for study in studies for pairing in study.beside}
    published = published_tables()
    assert filled <= published.keys()
    without = {name for name in published.keys() - filled if not published[name].no_study}
    assert without == set(), "neither in a study, nor is it said in published.yaml why not"
    assert {name for name in filled if published[name].no_study} == set()


def test_no_table_of_the_papers_is_left_out():
    """All that are known (../shared) are in published.yaml with the same numbers."""
    file = Path(__file__).parents[3] / "shared" / "paper_tables.yaml"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    known = {each["id"]: each for each in yaml.safe_load(file.read_text())["tables"]}
    assert known.keys() == published_tables().keys()
    for name, table in published_tables().items():
        theirs = Counter(  # one table has rows and columns the other way about
            cell
            for cells in known[name]["rows"].values()
            for cell in (cells["mean"] if isinstance(cells, dict) else cells)
        )
        ours = Counter(cell for cells in table.rows.values() for cell in cells)
        assert theirs - ours == Counter(), name


@pytest.mark.parametrize(("name", "profile"), GRIDS)
def test_a_study_composes_in_all_its_profiles(name, profile):
    plan = planned(name, profile)
    assert plan.gaps == ()
    assert plan.jobs
    assert len({job.run.id for job in plan.jobs}) == len(plan.jobs)


@pytest.mark.parametrize("name", [name for name, profile in GRIDS if profile == "mini"])
def test_a_mini_study_runs_here_and_briefly(name):
    plan = planned(name, "mini")
    assert [job.problems for job in plan.jobs if job.problems] == []
    assert all(job.run.trainer.max_steps <= 100 for job in plan.jobs)


@pytest.mark.parametrize(("name", "most"), [("published", 255), ("all", 380)])
def test_the_mini_profile_has_few_distinct_runs(name, most):
    plans = [planned(study.name, "mini") for study in read_studies(FOLDERS, [name], "mini")]
    assert 100 < len({job.run.id for plan in plans for job in plan.jobs}) <= most


@pytest.mark.parametrize("name", ["emoe_glue_lora", "hypermoe_ablations", "emoe_domainbed"])
@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_choices_of_a_job_make_its_run(name, profile, common, tmp_path):
    for job in plan_study(FOLDERS, read_study(FOLDERS, name), profile, common).jobs[:40:7]:
        settings = compose_settings(FOLDERS, {**job.choices, **common})
        (run,) = list_runs(settings, Inventory(tmp_path / "hashes.json")).runs
        assert run.id == job.run.id


def test_a_run_that_two_blocks_share_is_planned_once(common):
    study = read_study(FOLDERS, "emoe_gates")
    twice = dataclasses.replace(study, grids={"mini": study.grids["mini"] * 2})
    assert len(plan_study(FOLDERS, twice, "mini", common).jobs) == len(
        plan_study(FOLDERS, study, "mini", common).jobs
    )


def test_what_cannot_be_composed_is_a_gap_and_no_run(common):
    study = read_study(FOLDERS, "emoe_gates")
    block = {**study.grids["mini"][0], "model": ["bert_tiny", "bert_huge"]}
    plan = plan_study(FOLDERS, dataclasses.replace(study, grids={"mini": (block,)}), "mini", common)
    assert len(plan.jobs) == 3
    assert [gap.partition(";")[0] for gap in plan.gaps] == ["model=bert_huge is not an option"]


def test_a_list_means_every_element_and_a_nested_one_a_list():
    block = {"model": "bert", "method": ["dense", "emoe"], "method.layers": [[8, 10], [10]]}
    assert [tuple(choices.values()) for choices in expand((block,))] == [
        ("bert", "dense", [8, 10]),
        ("bert", "dense", [10]),
        ("bert", "emoe", [8, 10]),
        ("bert", "emoe", [10]),
    ]


def test_choices_are_written_as_hydra_reads_them():
    choices = {"task": "glue/cola", "trainer.learning_rate": 3e-05, "task.ood": ["all"]}
    assert as_overrides(choices) == [
        "task=glue/cola",
        "trainer.learning_rate=3e-5",
        "task.ood=[all]",
    ]


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean emoe_gates"):
        read_study(FOLDERS, "emoe_gate")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  rows:", "  row:", "study.row=.* is not an option of study"),
        ("    mini:", "    tiny:", "study.grids.tiny is no profile; use mini, small or paper"),
        ("  paper: emoe", "  paper: nature", "study.paper=nature is not valid"),
    ],
)
def test_a_wrong_study_file_is_named_with_its_problem(old, new, problem, tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    file = conf / "study" / "emoe_gates.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=f"emoe_gates.yaml: {problem}"):
        read_study((conf,), "emoe_gates")


@pytest.mark.parametrize(
    ("launcher", "needs", "plugin"),
    [
        ("slurm", "hydra_submitit_launcher", "moe_slurm_launcher"),
        ("ray_cluster", "moe_ray_launcher", "moe_ray_launcher"),
    ],
)
def test_a_launcher_for_a_cluster_composes(launcher, needs, plugin):
    pytest.importorskip(f"hydra_plugins.{needs}", reason="an extra, see pyproject.toml")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert node.hydra.launcher._target_.startswith(f"hydra_plugins.{plugin}")
