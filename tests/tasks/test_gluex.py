from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import TextTask
from moe_runner.tasks import gluex
from moe_runner.tasks.suites import glue

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
SINGLE = {"sentence": ["a", "b", "c"], "label": [0, 1, 0]}
PAIR = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [0, 1, 0]}
NLI = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [0, 1, 0]}


def write(path: Path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.fixture
def options(tmp_path):
    """Options with tiny sst2 and mnli in data_dir, and an empty ood_dir."""
    for split in ("train", "validation"):
        write(tmp_path / "glue" / "sst2" / f"{split}.parquet", SINGLE)
    for split in ("train", "validation_matched"):
        write(tmp_path / "glue" / "mnli" / f"{split}.parquet", NLI)
    (tmp_path / "ood").mkdir()
    return TextTask(
        suite="glue",
        members=("sst2",),
        data_dir=str(tmp_path / "glue"),
        ood=("all",),
        ood_dir=str(tmp_path / "ood"),
    )


def test_the_tables_agree():
    assert set(gluex.PAPER) == set(glue.TASKS)
    assert set(gluex.MORE) <= set(glue.TASKS)
    used = {name for task in glue.TASKS for name in gluex.ood_names(task)}
    assert used == set(gluex.PARTNERS)
    for task, spec in glue.TASKS.items():
        assert spec.ood == gluex.PAPER[task]
        for name in gluex.ood_names(task):
            partner = gluex.PARTNERS[name]
            assert len(partner.columns) == len(spec.columns), name
            metrics = ("pearson", "spearman") if task == "stsb" else ("accuracy",)
            assert partner.metrics == metrics


def test_all_is_the_papers_map():
    assert glue.TASKS["sst2"].ood == ("imdb", "yelp", "amazon", "flipkart")
    assert glue.TASKS["qnli"].ood == ("newsqa",)
    assert sum(len(names) for names in gluex.PAPER.values()) == 18  # 16 pairs, Twitter is two sets


def test_no_set_is_chosen_by_default(options):
    assert tasks.load(replace(options, ood=()), "sst2").ood == {}


def test_all_takes_what_is_there_and_marks_the_rest_not_available(tmp_path, options):
    write(tmp_path / "ood" / "imdb" / "test.parquet", SINGLE)
    write(tmp_path / "ood" / "flipkart.parquet", SINGLE)
    write(tmp_path / "ood" / "advglue_sst2" / "test.parquet", SINGLE)  # not one of the paper's
    data = tasks.load(options, "sst2")
    found = {name: split and len(split) for name, split in data.ood.items()}
    assert found == {"imdb": 3, "yelp": None, "amazon": None, "flipkart": 3}
    assert data.ood_specs["imdb"].columns == ("sentence",)
    assert data.ood_specs["imdb"].metrics == ("accuracy",)
    assert data.ood["imdb"].features["label"].names == ["negative", "positive"]
    prints = tasks.fingerprint(options, "sst2")
    assert prints["ood/yelp"] == "not available"
    assert prints["ood/imdb"].startswith("sha256 ")


def test_a_set_that_was_named_must_be_there(options):
    sources = tasks.sources(replace(options, ood=("flipkart",)), "sst2")
    assert sources["ood/flipkart"].problem == (
        "task.ood=[flipkart] is not there and has no public Hub id; put flipkart/test.parquet, "
        f"flipkart/test-*-of-*.parquet or flipkart.parquet into task.ood_dir={options.ood_dir}"
    )
    line = tasks.sources(replace(options, ood=("all", "imdb")), "sst2")["ood/imdb"].problem
    assert line is not None
    assert line.startswith("cannot load 'stanfordnlp/imdb' (plain_text, test): not in the local")
    assert line.endswith(
        f"; put imdb/test.parquet, imdb/test-*-of-*.parquet or imdb.parquet into "
        f"task.ood_dir={options.ood_dir}"
    )
    without = tasks.sources(replace(options, ood=("flipkart",), ood_dir=None), "sst2")
    assert str(without["ood/flipkart"].problem).endswith(
        "use task.ood_dir=<folder> with flipkart/test.parquet"
    )
    with pytest.raises(ConfigError, match="flipkart"):
        tasks.load(replace(options, ood=("flipkart",)), "sst2")


def test_an_unknown_set_names_the_nearest_and_all_of_the_task(options):
    with pytest.raises(ConfigError) as error:
        tasks.sources(replace(options, ood=("imbd", "snli")), "sst2")
    first, second = error.value.problems
    assert first == (
        "task.ood=[imbd] is not an option of task=glue/sst2; did you mean imdb? "
        "(all, imdb, yelp, amazon, flipkart, advglue_sst2)"
    )
    assert second.startswith("task.ood=[snli] is not an option of task=glue/sst2")


def test_a_set_of_another_member_is_no_mistake_in_a_suite(tmp_path, options):
    write(tmp_path / "ood" / "snli" / "test.parquet", PAIR)
    suite = replace(options, members=("sst2", "mnli"), ood=("snli",))
    assert "ood/snli" not in tasks.sources(suite, "sst2")
    assert "ood/snli" in tasks.sources(suite, "mnli")


@pytest.mark.parametrize("columns", [PAIR, NLI])
def test_files_in_the_form_of_the_hub_are_read_too(tmp_path, options, columns):
    columns = {**columns, "label": [2, -1, 0]}  # SNLI has rows without a gold label
    write(tmp_path / "ood" / "snli" / "plain_text" / "test-00000-of-00001.parquet", columns)
    data = tasks.load(replace(options, ood=("snli",)), "mnli")
    assert data.ood["snli"].to_dict() == {
        "sentence1": ["a", "c"],
        "sentence2": ["d", "f"],
        "label": [2, 0],
    }


def test_labels_of_another_task_are_an_error(tmp_path, options):
    write(tmp_path / "ood" / "imdb.parquet", {**SINGLE, "label": [0, 2, 1]})
    with pytest.raises(ValueError, match=r"imdb.parquet has the label 2; expected 0 to 1"):
        tasks.load(options, "sst2")


def test_splits_of_glue_come_from_glue(tmp_path, options):
    qqp = {"question1": ["a"], "question2": ["b"], "label": [1]}
    write(tmp_path / "glue" / "qqp" / "validation.parquet", qqp)
    for split in ("train", "validation"):
        write(tmp_path / "glue" / "mrpc" / f"{split}.parquet", PAIR)
    data = tasks.load(replace(options, ood=("qqp",)), "mrpc")
    assert data.ood["qqp"].to_dict() == qqp
    assert data.ood_specs["qqp"].columns == ("question1", "question2")
    assert data.ood_specs["qqp"].metrics == ("accuracy",)  # without F1, as in EMoE's code


def test_mismatched_is_a_partner_of_mnli(tmp_path, options):
    write(tmp_path / "glue" / "mnli" / "validation_mismatched.parquet", NLI)
    data = tasks.load(options, "mnli")
    assert list(data.ood) == ["snli", "sick_nli", "mismatched"]
    assert len(data.ood["mismatched"]) == 3
    assert data.ood_specs["mismatched"].columns == ("premise", "hypothesis")


def test_the_hub_is_the_source_of_what_the_folder_lacks(options, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    prints = tasks.fingerprint(options, "sst2")
    assert prints["ood/amazon"] == (
        "hub fancyzhx/amazon_polarity config amazon_polarity split test at main"
    )
    assert prints["ood/flipkart"] == "not available"


def test_eval_limit_holds_for_every_set(tmp_path, options):
    write(tmp_path / "ood" / "imdb.parquet", SINGLE)
    data = tasks.load(replace(options, eval_limit=2), "sst2")
    assert (len(data.train), len(data.validation["validation"]), len(data.ood["imdb"])) == (3, 2, 2)


REAL = {
    "cola": {"cola_ood": 516, "blimp": 2680},
    "sst2": {"imdb": 1000, "yelp": 800, "amazon": 800, "flipkart": 1400, "advglue_sst2": 148},
    "mrpc": {"qqp": 1000, "twitter_pit2015": 838, "twitter_url": 4000},
    "stsb": {"sick_sts": 4927},
    "qqp": {"mrpc": 408, "twitter_pit2015": 838, "twitter_url": 4000, "advglue_qqp": 78},
    "mnli": {"snli": 4000, "sick_nli": 4927, "advglue_mnli": 121, "advglue_mnli_mm": 162},
    "qnli": {"trecqa": 1517, "advglue_qnli": 148},
}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_partners_load(name):
    glue_dir, ood_dir = str(DATA / "glue"), str(DATA / "ood")
    options = TextTask(
        suite="glue", members=(name,), data_dir=glue_dir, ood_dir=ood_dir, ood=tuple(REAL[name])
    )
    data = tasks.load(options, name)
    assert {ood: len(split) for ood, split in data.ood.items()} == REAL[name]
    for ood, split in data.ood.items():
        assert split.column_names == [*data.ood_specs[ood].columns, "label"]
