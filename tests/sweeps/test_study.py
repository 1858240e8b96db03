"""Studies: their files, their plans, and that a job of a plan is the run it was planned as."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

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


PLAIN = r"(\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./:+%@-]*"
WORDS = ["nan", "-inf", "NULL", "True", "off", "2024", "1e3", "1_000", "last-even:1", "a:", "~/x"]
TEXTS = (
    st.text(st.characters(exclude_categories=("Cs",)))
    | st.text("'\"\\,:=(){}[]$ .aA1-+~#@!\n")
    | st.from_regex(PLAIN, fullmatch=True)
    | st.sampled_from(WORDS)
)
KEYS = st.text("ab_ -:=,(){}[]\\", min_size=1).filter(lambda key: key.strip() == key)
LEAVES = TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_hydra_reads_the_overrides_of_any_choices_as_they_were(value):
    (word,) = as_overrides({"task.template": value})
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert repr(override.value()) == repr(value)  # "2024" and 2024 differ, True and 1 too


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("last-even:1", "last-even:1"),
        ("/data/v2", "/data/v2"),
        ("data (v2)/", "'data (v2)/'"),
        ("summarize: {source}", "'summarize: {source}'"),
        ("it's", r"'it\'s'"),
        ("2024", "'2024'"),
        (["cola", "a, b"], "[cola,'a, b']"),
        ({"full": "1", "a b": None}, r"{full:'1',a\ b:null}"),
    ],
)
def test_only_texts_that_need_quotes_have_them(value, word):
    assert as_overrides({"x": value}) == [f"x={word}"]


def test_a_job_reaches_hydra_with_its_texts(tmp_path):
    choices = {"paths.output": f"{tmp_path}/out, (1)", "logger.group": "2024"}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", as_overrides(choices))
    assert (cfg.paths.output, cfg.logger.group) == tuple(choices.values())


@pytest.mark.parametrize(
    ("profile", "label"),
    [("paper", "emoe layers=last-even:12"), ("mini", "emoe layers=last-even:1")],
)
def test_the_published_layers_stand_beside_the_same_share_of_ours(profile, label):
    """Every second layer of the upper half: 12 of gpt2_xl's 48, 1 of bert_tiny's 4."""
    plan = planned("emoe_layers", profile)
    (pairing,) = plan.study.beside
    assert list(pairing.rows) == ["dense", label]
    rule = label.partition("=")[2]
    (model,) = {job.run.model for job in plan.jobs if getattr(job.run.method, "layers", "") == rule}
    assert int(rule.partition(":")[2]) == model.num_layers // 4


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean emoe_gates"):
        read_study(FOLDERS, "emoe_gate")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  rows:", "  row:", "study.row=.* is not an option of study"),
        ("    mini:", "    tiny:", "study.grids.tiny is no profile; use mini, small or paper"),
        ("  paper: emoe", "  paper: nature", "study.paper=nature is not valid"),
        ("study:", "studies:", "study is missing; write study:"),
        ("  grids:", "  beside: [emoe]\n  grids:", "study.beside is not valid; use a list of"),
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


HEAD = "title: a, paper: ours, rows: [method], columns: [task]"


@pytest.mark.parametrize(
    ("grids", "problem"),
    [
        ("", "study.grids is missing; give a grid per profile: "),
        (", grids: [mini]", "study.grids is missing; give a grid per profile: "),
        (", grids: {mini: }", "study.grids.mini.blocks is missing; give a list of mappings: "),
        (", grids: {mini: {common: {seed: 0}}}", "study.grids.mini.blocks is missing; give a list"),
        (", grids: {mini: {blocks: {seed: 0}}}", "study.grids.mini.blocks={seed:0} is not valid; "),
        (
            ", grids: {mini: {blocks: [dense]}}",
            "study.grids.mini.blocks=[dense] is not valid; use ",
        ),
        (
            ", grids: {mini: {blocks: [{seed: 0}], common: a}}",
            "study.grids.mini.common=a is not valid; use a mapping: ",
        ),
    ],
)
def test_a_study_without_blocks_is_told_in_one_line(grids, problem, tmp_path):
    file = tmp_path / "study" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"study: {{{HEAD}{grids}}}\n")
    with pytest.raises(ConfigError) as caught:
        read_study((*FOLDERS, tmp_path), "mine")
    (line,) = caught.value.problems
    assert line.startswith(f"{file}: {problem}")


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
