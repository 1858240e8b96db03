"""An evaluation takes texts of like length together; what it finds is that of the plain order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler

from moe_runner.options.folders import option_folders
from moe_runner.options.settings import Logger
from moe_runner.runs.store import RunFolder
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan
from moe_runner.training import trainer as trainers
from moe_runner.training.callbacks import ShowProgress
from moe_runner.training.fit import Resources, build, make_trainer, predict


def evaluated(tmp_path: Path, monkeypatch, *, sort: bool, **choices):
    """Evaluate a new model on the validation set."""
    common = {"paths.output": str(tmp_path), "task.eval_limit": 70, "task.limit": 32}
    settings = compose_settings(option_folders(), {**common, **choices})
    (run,) = make_plan(settings).runs
    resources = Resources(torch.device("cpu"), 1, tmp_path / "clusters", Logger(name="none"), False)
    ready = build(run, resources)
    spec = ready.data.spec
    data = ready.encode(ready.data.validation["validation"], spec.columns)
    widths = []

    def note(model, args, kwargs):
        if "input_ids" in kwargs:  # not in generation
            widths.append(kwargs["input_ids"].shape)

    ready.backbone.model.register_forward_pre_hook(note, with_kwargs=True)
    progress = ShowProgress("", spec.metrics)
    if not sort:
        monkeypatch.setattr(trainers, "depends_on_batch", lambda model: True)
    trainer = make_trainer(run, RunFolder(tmp_path / "run"), resources, ready, data, data, progress)
    found = predict(trainer, data, spec.metrics)
    lengths = [len(ids) for ids in data["input_ids"]]
    return found, widths, lengths, trainer


@pytest.mark.long
@pytest.mark.parametrize(
    "choices",
    [
        {"task": "glue_mini/stsb", "method": "emoe", "trainer.eval_batch_size": 16},
        {"task": "glue_mini/rte", "method": "dense", "trainer.eval_batch_size": 16},
    ],
    ids=["regression", "classes"],
)
def test_the_figures_are_those_of_the_plain_order_and_there_is_less_padding(
    choices, tmp_path, monkeypatch
):
    found, widths, lengths, _ = evaluated(tmp_path, monkeypatch, sort=True, **choices)
    plain, before, _, trainer = evaluated(tmp_path, monkeypatch, sort=False, **choices)
    assert isinstance(trainer._get_eval_sampler(trainer.eval_dataset), SequentialSampler)
    assert [width for _, width in widths] == sorted(lengths, reverse=True)[::16]
    assert sum(rows * width for rows, width in widths) < sum(rows * width for rows, width in before)
    assert found.examples == plain.examples == 70
    assert found.metrics == pytest.approx(plain.metrics, abs=1e-6)
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.routing == pytest.approx(plain.routing, abs=1e-3)


def test_generated_answers_are_scored_with_their_own_references(tmp_path, monkeypatch):
    choices = {
        "model": "switch_tiny", "method": "dense", "task": "squad_mini",
        "trainer.eval_batch_size": 16, "task.eval_limit": 40,
    }  # fmt: skip
    found, _, lengths, trainer = evaluated(tmp_path, monkeypatch, sort=True, **choices)
    assert lengths != sorted(lengths, reverse=True)
    order = trainer.order
    assert trainer.in_order(np.arange(40)[order]).tolist() == list(range(40))
    plain = evaluated(tmp_path, monkeypatch, sort=False, **choices)[0]
    assert found.metrics == pytest.approx(plain.metrics, abs=1e-6)


@pytest.mark.parametrize("key", ["protocol.jitter_in_evaluation", "protocol.capacity_factor"])
def test_where_the_neighbours_in_a_batch_matter_the_order_stays(key, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert not trainers.depends_on_batch(model)
    if key == "protocol.jitter_in_evaluation":
        model[0].jitter_in_evaluation = True
        assert trainers.depends_on_batch(model)
        return
    settings = compose_settings(
        option_folders(), {"paths.output": str(tmp_path), "method": "gmoe", key: 1.0}
    )
    (run,) = make_plan(settings).runs[:1]
    resources = Resources(torch.device("cpu"), 1, tmp_path / "clusters", Logger(name="none"), False)
    assert trainers.depends_on_batch(build(run, resources).backbone.model)
