"""result.json: what is written is read back, what older code wrote too, and damage is named."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest

from moe_runner.runs.objects import StoreError
from moe_runner.runs.result import (
    Accuracy,
    Checkpoint,
    Clusters,
    Inference,
    Parameters,
    Scores,
    read_result,
    upgrade,
    write_result,
)
from moe_runner.runs.store import Store
from tests.results import make_result, scores

STORED = sorted((Path(__file__).parents[1] / "stored").glob("*/result.json"))
ID = "0123456789abcdef"


@pytest.fixture
def file(tmp_path):
    """A place for a result."""
    (tmp_path / ID).mkdir()
    return tmp_path / ID / "result.json"


def stored(name: str) -> dict:
    """The content of a result that older code wrote."""
    (file,) = [file for file in STORED if file.parent.name.startswith(name)]
    return json.loads(file.read_text(encoding="utf-8"))


def test_what_is_written_is_read_back(file):
    result = make_result(
        {"method": "emoe", "suite": "domainbed", "task": "pacs/sketch"},
        metrics=("accuracy",),
        settings={"trainer.epochs": 3, "method.layers": [1, 2], "tuning.rank": None},
        id_metrics={
            "training_domains": Scores(
                {"accuracy": 0.5},
                0.5,
                0.7,
                64,
                {"routing/entropy": 0.25, "routing/active": 1.0},
                majority=0.375,
                constant=False,
            ),  # fmt: skip
            "other": None,
        },
        ood_metrics={"mmlu": scores(0.25, **{"accuracy": 0.25, "accuracy/anatomy": 0.5})},
        learning_curve=(Checkpoint(1, 0.5, 0.7, 0.5, {"photo": Accuracy(0.25, 0.75)}),),
        clusters=Clusters(1.5, 2.5),
        routing={"routing/entropy": 0.25, "routing/changed": 0.125},
        skipped={"photo": 2},
        before={"training_domains": scores(0.125, accuracy=0.125)},
        inference=Inference(0.5, 0.75, 64, "torch"),
    )
    write_result(file, result)
    assert read_result(file) == result
    point = json.loads(file.read_text())["learning_curve"][0]
    assert point["domains"] == {"photo": {"in": 0.25, "out": 0.75}}
    assert pickle.loads(pickle.dumps(result)) == result  # it goes from process to process


def test_there_is_no_result_without_a_file(file):
    assert read_result(file) is None


@pytest.mark.parametrize("old", STORED, ids=lambda file: file.parent.name)
def test_a_result_of_older_code_is_written_back_byte_by_byte(old, tmp_path):
    copy = tmp_path / old.parent.name / "result.json"
    copy.parent.mkdir()
    write_result(copy, read_result(old))
    assert copy.read_bytes() == old.read_bytes()


def test_a_result_of_older_code_has_its_figures():
    (file,) = [file for file in STORED if file.parent.name.startswith("88ec")]
    result = read_result(file)
    assert (result.axes.method, result.axes.task, result.axes.seed) == ("emoe", "sst2", 0)
    assert result.primary == result.id_metrics["validation"].metrics["accuracy"] == 0.546875
    assert result.ood_metrics["products"].primary == 0.609375
    assert result.ood_metrics["products"].examples == 64
    assert result.ood_metrics["products"].routing["routing/active"] == 1.0
    assert [point.step for point in result.learning_curve] == [2, 4, 6, 8, 10, 12]
    assert result.parameters.active_per_token < result.parameters.total == 1099138
    assert result.clusters.inertia < result.clusters.random_inertia
    assert 0 < result.routing["routing/changed"] < 1


def test_the_domains_of_older_code_are_read():
    (file,) = [file for file in STORED if file.parent.name.startswith("82f7")]
    last = read_result(file).learning_curve[-1]
    assert last.domains["plus_90"] == Accuracy(in_split=0.515625, out_split=0.578125)


LATER = ("settings", "threads", "clusters", "skipped", "data_share_of_time")


@pytest.mark.parametrize(
    "absent",
    [
        LATER,  # commits 61d9056 to dcdf9f3
        ("clusters", "skipped", "data_share_of_time"),  # 9aab4db to 137b21e
        ("skipped", "data_share_of_time"),  # 103f0ad to f5acfca
        (),
    ],
)
def test_a_key_that_came_later_has_a_stated_meaning_where_it_is_absent(absent):
    tree = {key: value for key, value in stored("f95e").items() if key not in absent}
    before = json.dumps(tree)
    meant = {"settings": {}, "threads": None, "clusters": None, "skipped": {}}
    meant["data_share_of_time"] = None
    assert upgrade(tree) == {**stored("f95e"), **{key: meant[key] for key in absent}}
    assert json.dumps(tree) == before


def test_the_first_results_counted_lora_among_the_parameters(tmp_path):
    tree = {key: value for key, value in stored("88ec").items() if key not in LATER}
    total = {"total": 1120, "dense": 1000, "trainable": 150, "active_per_token": 620}
    tree["parameters"] = total
    file = tmp_path / tree["id"] / "result.json"
    file.parent.mkdir()
    file.write_text(json.dumps(tree))
    result = read_result(file)
    assert result.parameters == Parameters(
        dense=1000, total=1000, active_per_token=500, lora=120, trainable=150
    )
    assert result.threads is result.clusters is result.speed.data_share_of_time is None


def without(tree: dict, key: str) -> dict:
    return {name: value for name, value in tree.items() if name != key}


AGAIN = f"delete it and run {ID} again"
DAMAGE = {  # what is wrong -> the change of a good file, and what is said of it
    "newer": (lambda t: {**t, "schema": 2}, "has schema=2, and this version reads 1"),
    "no schema": (lambda t: without(t, "schema"), "has schema=None"),
    "foreign": (lambda t: {**t, "id": "f" * 16}, "is the result of the run ffffffffffffffff"),
    "no primary": (lambda t: without(t, "primary"), "missing 1 required .* 'primary'"),
    "NaN": (lambda t: {**t, "primary": math.nan}, "has primary=nan, which is no number"),
    "text": (lambda t: {**t, "primary": "0.5"}, "is damaged: primary is '0.5', not a number"),
    "true": (lambda t: {**t, "primary": True}, "is damaged: primary is True, not a number"),
    "NaN of a set": (
        lambda t: {**t, "ood_metrics": {"a": {"primary": math.nan, "loss": 1, "examples": 1}}},
        "has a/primary=nan, which is no number",
    ),
    "metric": (lambda t: {**t, "metrics": ["glow"]}, "has the metric glow, which is not known"),
    "metric of a set": (
        lambda t: {
            **t,
            "id_metrics": {"a": {"glow": 0.5, "primary": 0.5, "loss": 1, "examples": 1}},
        },
        "has the metric glow, which is not known",
    ),
    "no axes": (lambda t: without(t, "axes"), "is damaged: no 'axes'"),
    "axes lack": (lambda t: {**t, "axes": without(t["axes"], "seed")}, "damaged: Axes missing 1"),
    "set lacks": (
        lambda t: {**t, "id_metrics": {"a": {"primary": 0.5, "examples": 1}}},
        "is damaged: no 'loss'",
    ),
    "set": (lambda t: {**t, "id_metrics": {"a": 0.5}}, "is damaged"),
    "curve": (lambda t: {**t, "learning_curve": [{"step": 1}]}, "is damaged: no 'epoch'"),
    "unknown": (lambda t: {**t, "mood": 1}, "is damaged: Result got an unexpected .* 'mood'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_result_is_one_line_with_file_and_remedy(kind, file, tmp_path):
    change, said = DAMAGE[kind]
    file.write_text(json.dumps(change(make_result().to_json())))
    with pytest.raises(StoreError, match=said) as error:
        read_result(file)
    line = str(error.value)
    assert line.startswith(f"{file} ")
    assert line.endswith(AGAIN)
    assert "\n" not in line


def test_a_folder_with_another_runs_files_is_told(tmp_path):
    store = Store(tmp_path)
    (good,) = [file for file in STORED if file.parent.name.startswith("f95e")]
    store.root.mkdir()
    shutil.copytree(good.parent, store.folder(ID))
    with pytest.raises(StoreError, match=f"{ID}/result.json is the result of the run f95e"):
        list(store.results())


@pytest.mark.parametrize(
    "result",
    [
        make_result(primary=math.nan),
        make_result(id="f" * 16),
        make_result(ood_metrics={"a": scores(math.nan)}),
        make_result(metrics=("glow",)),
    ],
    ids=["NaN", "foreign", "NaN of a set", "metric"],
)
def test_what_could_not_be_read_is_not_written(result, file):
    with pytest.raises(StoreError):
        write_result(file, result)
    assert not file.exists()


def test_infinite_scores_and_those_of_mixtures_are_read(file):
    mixture = make_result(
        primary=math.inf,
        metrics=("cola/matthews", "mrpc/f1"),
        id_metrics={"validation": scores(math.inf, **{"cola/matthews": 0.5, "mrpc/f1": 0.25})},
    )
    write_result(file, mixture)
    assert read_result(file) == mixture
