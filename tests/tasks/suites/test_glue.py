import itertools
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import TextTask
from moe_runner.tasks.suites import glue

DATA = Path(__file__).parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
OPTIONS = TextTask(suite="glue", members=tuple(glue.TASKS))


def write(path: Path, rows: int = 6, **columns):
    """Write a parquet file; by default `rows` rows of CoLA with alternating labels."""
    if not columns:
        columns = {"sentence": [f"{path.stem} {i}" for i in range(rows)], "label": [0, 1] * 3}
        columns = {name: values[:rows] for name, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def cola(tmp_path):
    write(tmp_path / "cola" / "train.parquet")
    write(tmp_path / "cola" / "validation.parquet", rows=4)
    return replace(OPTIONS, data_dir=str(tmp_path))


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "reachable", lambda: False)


def test_the_eight_tasks_and_their_metrics():
    metrics = {name: spec.metrics for name, spec in glue.TASKS.items()}
    assert metrics == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
    }
    epochs = {name: tuple(spec.recipe.epochs.values()) for name, spec in glue.TASKS.items()}
    assert [name for name in epochs if epochs[name] == (3, 5, 5)] == ["qqp", "mnli", "qnli"]
    assert {*epochs.values()} == {(3, 5, 5), (10, 20, 20)}
    assert tasks.spec(OPTIONS, "mnli").validation == ("validation_matched", "validation_mismatched")


def test_planning_imports_nothing_heavy(cola):
    code = (
        "import sys\n"
        "from moe_runner import hub, tasks\n"
        "from moe_runner.options.task import TextTask\n"
        "from moe_runner import metrics\n"
        "from moe_runner.tasks import gluex, places, suite, tables\n"
        "from moe_runner.tasks.suites import glue, glue_mini\n"
        f"options = {cola!r}\n"
        "tasks.fingerprint(options, 'cola')\n"
        "tasks.fingerprint(TextTask(suite='glue_mini', members=('rte',), ood=('all',)), 'rte')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'numpy', 'pyarrow',\n"
        "         'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_per_task_with_a_file_per_split(cola):
    data = tasks.load(cola, "cola")
    assert data.train.column_names == ["sentence", "label"]
    assert data.train["sentence"][0] == "train 0"
    assert data.train.features["label"].names == ["unacceptable", "acceptable"]
    assert {name: len(split) for name, split in data.validation.items()} == {"validation": 4}
    assert data.ood == {}


@pytest.mark.parametrize("subfolder", ["", "data", "cola"])
def test_file_names_of_the_hub(tmp_path, subfolder):
    folder = tmp_path / "cola" / subfolder
    for split in ("train", "validation"):
        write(folder / f"{split}-00000-of-00002.parquet")
        write(folder / f"{split}-00001-of-00002.parquet", rows=5)
    options = replace(OPTIONS, data_dir=str(tmp_path))
    assert [p.name for p in tasks.sources(options, "cola")["train"].files] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(tasks.load(options, "cola").train) == 11


def test_half_a_download_is_a_problem(tmp_path, cola):
    (tmp_path / "cola" / "train.parquet").unlink()
    write(tmp_path / "cola" / "train-00000-of-00002.parquet")
    assert tasks.sources(cola, "cola")["train"].problem is not None


def test_files_of_another_split_are_not_merged(tmp_path, cola):
    write(tmp_path / "cola" / "validation_in_domain.parquet")
    write(tmp_path / "cola" / "validation_in_domain-00000-of-00001.parquet")
    assert [file.name for file in tasks.sources(cola, "cola")["validation"].files] == [
        "validation.parquet"
    ]
    (tmp_path / "cola" / "validation.parquet").unlink()
    assert tasks.sources(cola, "cola")["validation"].files == ()


def test_missing_files_are_a_problem_that_says_what_was_looked_for(tmp_path, cola):
    (tmp_path / "cola" / "train.parquet").unlink()
    line = tasks.sources(cola, "cola")["train"].problem
    assert line == (
        f"task.data_dir={tmp_path} lacks a split: looked for cola/train.parquet and "
        "cola/train-*-of-*.parquet (all parts); put it there, or use task=glue_mini/cola"
    )
    with pytest.raises(ConfigError, match="looked for cola/train.parquet"):
        tasks.load(cola, "cola")


def test_all_missing_files_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        tasks.load(replace(OPTIONS, data_dir=str(tmp_path / "nowhere")), "rte")
    assert len(error.value.problems) == 2
    assert "nowhere is not a folder: looked for rte/train.parquet" in error.value.problems[0]


def test_wrong_columns_name_file_found_and_expected(tmp_path, cola):
    file = write(tmp_path / "cola" / "train.parquet", text=["a"], label=[1])
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole text is compared
        tasks.load(cola, "cola")
    assert str(error.value) == f"{file} has the columns text, label; expected sentence, label"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"sentence": ["a", "b"], "label": [0, 2]}, "the label 2; expected 0 to 1 (unacceptable"),
        ({"sentence": ["a", "b"], "label": [0, -2]}, "the label -2; expected 0 to 1"),
        ({"sentence": ["a", "b"], "label": [-1, -1]}, "no labelled row"),
        ({"sentence": ["a", None], "label": [0, 1]}, "1 empty values in the column sentence"),
        ({"sentence": ["a", "b"], "label": [0, None]}, "1 empty values in the column label"),
        ({"sentence": ["a", "b"], "label": ["0", "1"]}, "type string in the column label"),
        ({"sentence": ["a", "b"], "label": [0.5, 1.0]}, "type double in the column label"),
        ({"sentence": [1, 2], "label": [0, 1]}, "type int64 in the column sentence"),
    ],
)
def test_wrong_values_are_an_error_that_names_the_file(tmp_path, cola, columns, complaint):
    file = write(tmp_path / "cola" / "validation.parquet", **columns)
    with pytest.raises(ValueError, match="validation.parquet has") as error:
        tasks.load(cola, "cola")
    assert str(error.value).startswith(f"{file} has ")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def named(path: Path, names: list[str], numbers: list[int]) -> None:
    """Write a file whose schema names its labels."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(sentence=Value("string"), label=ClassLabel(names=names))
    rows = {"sentence": [f"s {i}" for i in range(len(numbers))], "label": numbers}
    Dataset.from_dict(rows, features=features).to_parquet(path)


def test_labels_are_taken_by_the_names_of_the_file_s_schema(tmp_path, cola, caplog):
    names = ["unacceptable", "acceptable"]
    named(tmp_path / "cola" / "train.parquet", names, [0, 1, 1, 0])
    named(tmp_path / "cola" / "validation.parquet", names[::-1], [1, 0, 0, 1])  # the same classes
    data = tasks.load(cola, "cola")
    assert data.train["label"][:] == data.validation["validation"]["label"][:] == [0, 1, 1, 0]
    assert caplog.text.count("names its labels in another order") == 1


def test_other_names_at_the_same_places_are_taken_by_number(tmp_path, cola, caplog):
    for names in (["0", "1"], ["unacceptable", "fine"]):
        named(tmp_path / "cola" / "train.parquet", names, [0, 1, 1, 0])
        assert tasks.load(cola, "cola").train["label"][:] == [0, 1, 1, 0]
    assert "order" not in caplog.text


def test_a_known_name_at_another_place_among_others_is_refused(tmp_path, cola):
    named(tmp_path / "cola" / "train.parquet", ["acceptable", "bad"], [0, 1])
    with pytest.raises(ValueError, match=r"train.parquet names its labels acceptable, bad; exp"):
        tasks.load(cola, "cola")


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_that_are_names_are_mapped(tmp_path, cola, kind):
    labels = pa.array(["Acceptable", "unacceptable", "acceptable"]).cast(kind)
    write(tmp_path / "cola" / "train.parquet", sentence=["a", "b", "c"], label=labels)
    assert tasks.load(cola, "cola").train["label"][:] == [1, 0, 1]
    labels = pa.array(["acceptable", "acceptible"]).cast(kind)
    write(tmp_path / "cola" / "train.parquet", sentence=["a", "b"], label=labels)
    with pytest.raises(ValueError, match="has the label 'acceptible' .*; expected one of unacc"):
        tasks.load(cola, "cola")


def test_a_score_outside_0_to_5_or_nan_is_an_error(tmp_path):
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    options = replace(OPTIONS, data_dir=str(tmp_path))
    write(tmp_path / "stsb" / "validation.parquet", **texts, label=[0, 5])  # integers will do
    for wrong in (5.5, -1.0, float("nan")):
        write(tmp_path / "stsb" / "train.parquet", **texts, label=[1.0, wrong])
        with pytest.raises(ValueError, match=f"has the label {wrong}; expected 0.0 to 5.0"):
            tasks.load(options, "stsb")


def test_rows_without_a_gold_label_are_left_out(tmp_path, cola):
    write(tmp_path / "cola" / "train.parquet", sentence=["a", "b", "c"], label=[1, -1, 0])
    assert tasks.load(cola, "cola").train["sentence"][:] == ["a", "c"]


def test_limits_take_a_random_subset_in_order(tmp_path, cola):
    sentences = [f"{i:03}" for i in range(100)]
    write(tmp_path / "cola" / "train.parquet", sentence=sentences, label=[0, 1] * 50)
    options = replace(cola, limit=10, eval_limit=3)
    data = tasks.load(options, "cola")
    expected = [sentences[i] for i in sorted(random.Random(0).sample(range(100), 10))]
    assert data.train["sentence"][:] == expected
    assert len(data.validation["validation"]) == 3
    assert len(tasks.load(replace(cola, limit=1000), "cola").train) == 100


def test_fractions_are_random_nested_and_of_the_training_set_alone(tmp_path, cola):
    sentences = [f"{i:03}" for i in range(100)]
    write(tmp_path / "cola" / "train.parquet", sentence=sentences, label=[0, 1] * 50)

    def drawn(**changes) -> list[str]:
        data = tasks.load(replace(cola, **changes), "cola")
        assert len(data.validation["validation"]) == 4
        return data.train["sentence"][:]

    parts = [drawn(train_fraction=share) for share in (0.001, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 10, 50, 100]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
        assert large == sorted(large)
    assert parts[1] != sentences[:10]
    assert drawn(train_fraction=0.1) == parts[1]
    assert drawn(train_fraction=0.1, data_seed=1) != parts[1]
    limited = drawn(limit=10)
    assert set(drawn(limit=10, train_fraction=0.5)) < set(limited)
    assert len(drawn(limit=10, train_fraction=0.5)) == 5


def test_a_file_that_is_not_parquet_is_named(tmp_path, cola):
    file = tmp_path / "cola" / "train.parquet"
    file.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet") as error:
        tasks.load(cola, "cola")
    assert str(error.value).startswith(f"{file} cannot be read as parquet: ")
    assert "\n" not in str(error.value)


def test_mismatched_may_be_missing_and_matched_may_not(tmp_path):
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0]}
    for split in ("train", "validation_matched"):
        write(tmp_path / "mnli" / f"{split}.parquet", **columns)
    options = replace(OPTIONS, data_dir=str(tmp_path))
    source = tasks.sources(options, "mnli")["validation_mismatched"]
    assert source.problem is None
    assert not source.available
    assert "validation_mismatched.parquet" in str(source.absent)
    data = tasks.load(options, "mnli")
    assert data.validation["validation_mismatched"] is None
    assert len(data.validation["validation_matched"]) == 2
    assert tasks.fingerprint(options, "mnli")["validation_mismatched"] == "not available"
    (tmp_path / "mnli" / "validation_matched.parquet").unlink()
    assert tasks.sources(options, "mnli")["validation_matched"].problem is not None


def test_the_fingerprint_is_of_content_not_place(tmp_path, cola):
    memo = tmp_path / "memo.json"
    before = tasks.fingerprint(cola, "cola", memo)
    assert set(before) == {"train", "validation"}
    shutil.copytree(tmp_path / "cola", tmp_path / "copy" / "cola")
    assert tasks.fingerprint(replace(cola, data_dir=str(tmp_path / "copy")), "cola") == before
    write(tmp_path / "cola" / "train.parquet", sentence=["x"], label=[0])
    after = tasks.fingerprint(cola, "cola", memo)
    assert after["train"] != before["train"]
    assert after["validation"] == before["validation"]


@pytest.mark.usefixtures("no_hub")
def test_without_folder_cache_and_hub_the_problem_says_so():
    source = tasks.sources(OPTIONS, "rte")["train"]
    assert source.problem == (
        "cannot load 'nyu-mll/glue' (rte, train): not in the local Hugging Face cache and the Hub "
        "is unreachable; use task.data_dir=<folder>, or task=glue_mini/rte"
    )
    assert tasks.fingerprint(OPTIONS, "rte") == {  # the same with a connection
        "train": "hub nyu-mll/glue config rte split train at main",
        "validation": "hub nyu-mll/glue config rte split validation at main",
    }


@pytest.mark.usefixtures("no_hub")
def test_a_copy_in_the_hub_cache_is_read_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--me--glue"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "v2").write_text("abc")
    for split in ("train", "validation"):
        write(folder / "snapshots" / "abc" / "cola" / f"{split}-00000-of-00001.parquet")
    options = replace(OPTIONS, hub_id="me/glue", revision="v2")
    assert len(tasks.load(options, "cola").train) == 6
    assert tasks.fingerprint(options, "cola")["train"] == (
        "hub me/glue config cola split train at v2"
    )


@pytest.mark.usefixtures("no_hub")
def test_a_copy_in_the_cache_of_datasets_is_read_without_the_hub(tmp_path, monkeypatch, cola):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    folder = tmp_path / "arrow" / "me___glue" / "cola" / "0.0.0" / "abc"
    tasks.load(cola, "cola").train.save_to_disk(str(tmp_path / "saved"))
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        shutil.copy(
            tmp_path / "saved" / "data-00000-of-00001.arrow", folder / f"glue-{split}.arrow"
        )
    data = tasks.load(replace(OPTIONS, hub_id="me/glue"), "cola")
    assert data.train["sentence"][:] == tasks.load(cola, "cola").train["sentence"][:]


def test_what_is_not_cached_is_loaded_from_the_hub(tmp_path, monkeypatch, cola):
    import datasets

    asked = []
    small = tasks.load(cola, "cola").train

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options))
        return small

    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(tasks.load(OPTIONS, "cola").train) == 6
    assert sorted(asked, key=str) == [
        ("nyu-mll/glue", "cola", {"split": split, "revision": "main"})
        for split in ("train", "validation")
    ]


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("cola", 8551, 1043),
        ("sst2", 67349, 872),
        ("mrpc", 3668, 408),
        ("stsb", 5749, 1500),
        ("qqp", 8999, 1000),
        ("mnli", 8999, 9815),
        ("qnli", 8999, 5463),
    ],
)
def test_real_data_have_their_published_sizes(name, train, validation):
    data = tasks.load(replace(OPTIONS, data_dir=str(DATA / "glue")), name)
    assert len(data.train) == train
    assert len(data.validation[data.spec.validation[0]]) == validation
    assert data.train.column_names == [*data.spec.columns, "label"]
    assert all(isinstance(text, str) for text in data.train[data.spec.columns[-1]][:10])


@needs_data
def test_real_rte_is_a_problem_where_it_is_not_there():
    if (DATA / "glue" / "rte").is_dir():
        pytest.skip("RTE is there")
    sources = tasks.sources(replace(OPTIONS, data_dir=str(DATA / "glue")), "rte")
    assert all(source.problem for source in sources.values())
