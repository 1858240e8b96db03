"""Runs of a sweep share what is read and tokenised; the cache changes no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from moe_runner.methods.dense.options import Dense
from moe_runner.runs.result import Result
from moe_runner.runs.store import RunFolder, Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training.execute import execute
from moe_runner.training.fit import Resources, carry_out


def test_another_method_tokenises_nothing_and_another_length_does(make_settings, monkeypatch):
    def run(settings) -> Result:
        (planned,) = make_plan(settings).runs
        return execute(planned, settings, Store(Path(settings.paths.output)))

    calls = []
    plain = Dataset.map

    def counting(self, *args, **kwargs):
        calls.append(len(self))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", counting)
    dense = make_settings("bert", Dense(), max_steps=2)
    run(dense)
    assert calls == [96, 40, 20]  # training, validation, out of domain
    run(make_settings("bert", max_steps=2))
    assert len(calls) == 3
    run(replace(dense, task=replace(dense.task, max_length=8)))
    assert len(calls) == 6


def test_without_a_cache_the_numbers_are_the_same(make_settings, only_run, tmp_path):
    settings = make_settings("bert", Dense(), epochs=1)
    planned = only_run(settings)
    resources = Resources(
        device=torch.device("cpu"), threads=1, cluster_cache=tmp_path / "clusters",
        logger=settings.logger, keep_model=False,
    )  # fmt: skip
    found = []
    for name, cache in (("none", None), ("first", tmp_path / "x"), ("second", tmp_path / "x")):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        found.append(carry_out(planned, folder, replace(resources, data_cache=cache)))
    for key in ("id_metrics", "ood_metrics", "learning_curve"):
        assert getattr(found[0], key) == getattr(found[1], key) == getattr(found[2], key)
