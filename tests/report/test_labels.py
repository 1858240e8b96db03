"""Rows and columns in words."""

from __future__ import annotations

import dataclasses

import pytest

from moe_runner.options.folders import option_folders
from moe_runner.report.labels import label, names_of, said
from moe_runner.report.study_table import names_in
from moe_runner.sweeps.study import read_study, study_names
from tests.plans import planned
from tests.report.test_beside import plan, study  # noqa: F401

FOLDERS = option_folders()
GRIDS = [(n, p) for n in study_names(FOLDERS) for p in read_study(FOLDERS, n).grids]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("method.top_k", 16, "top-k 16"),
        ("method.num_experts", 64, "64 experts"),
        ("method.layers", "last-even:1", "last even layer"),
        ("method.layers", "last-even:12", "last 12 even layers"),
        ("method.layers", "last:15", "last 15 layers"),
        ("method.layers", "all", "all layers"),
        ("method.layers", (28, 30), "layers 28, 30"),
        ("method.select", "not_top", "not-top-k experts"),
        ("method.clustering", "random", "random groups"),
        ("method.shared", True, "one shared adapter"),
        ("method.normalize_gate", False, "no normalize gate"),
        ("method.hypernet_lr_scale", 0.1, "hypernetwork's rate x 0.1"),
        ("task.train_fraction", 0.1, "10% of the data"),
        ("trainer.weight_decay", 0.01, "weight decay 0.01"),
        ("weights", "05387f41011fdab0", "weights 05387f"),
        ("weights", "hub bert at 05387f41011fdab0", "weights 05387f"),
    ],
)
def test_an_option_is_said_in_words(key, value, words):
    assert said(key, value) == words


def test_rows_say_what_differs_and_nothing_else(plan):  # noqa: F811
    of = study(
        {"method": "dense", "task": ["glue_mini/cola", "glue_mini/rte"]},
        {"method": "emoe", "method.top_k": [16, 32], "task": ["glue_mini/cola", "glue_mini/rte"]},
        rows=("tuning", "method", "method.num_experts", "method.top_k"), columns=("model", "task"),
    )  # fmt: skip
    rows, columns = names_in(plan(of))
    assert list(rows.words.items()) == [
        ("full dense", "dense"),
        ("full emoe num_experts=64 top_k=16", "emoe, top-k 16 of 64"),
        ("full emoe num_experts=64 top_k=32", "emoe, top-k 32 of 64"),
    ]
    assert rows.shared == "full, 64 experts"
    assert list(columns.words.values()) == ["cola", "rte"]
    assert columns.shared == "bert_tiny"


def test_what_would_no_longer_tell_rows_apart_is_said_in_full(plan):  # noqa: F811
    jobs = plan(study({"method": "emoe", "method.top_k": [16, 32], "task": "glue_mini/rte"})).jobs
    keys = ("method", "method.top_k")
    names = names_of({label(job.run, keys): job.run for job in jobs}, keys)
    assert list(names.words.values()) == ["top-k 16 of 64", "top-k 32 of 64"]
    assert names.shared == "emoe"
    one = names_of({"x": jobs[0].run}, keys)
    assert one["x"] == "emoe, top-k 16 of 64"
    assert one["unknown"] == "unknown"


def test_two_local_models_are_their_folder_names(plan):  # noqa: F811
    run = plan(study({"method": "dense", "task": "glue_mini/rte"})).jobs[0].run
    runs = {
        name: dataclasses.replace(run, model=dataclasses.replace(run.model, path=f"/data/{name}"))
        for name in ("first-bert", "second-bert")
    }
    names = names_of(runs, ("model", "task"))
    assert list(names.words.values()) == ["first-bert", "second-bert"]


@pytest.mark.parametrize(("name", "profile"), GRIDS)
def test_words_tell_the_rows_of_every_study_apart(name, profile):
    for names in names_in(planned(name, profile)):
        assert len(set(names.words.values())) == len(names.words)
        assert not any("=" in words or "None" in words for words in names.words.values())
