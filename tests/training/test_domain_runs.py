"""Whole runs on images: what is trained, measured, written, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe_runner import train
from moe_runner.backbones.weights import find_weights
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.options.settings import Logger, Paths, Settings
from moe_runner.options.task import DomainBedTask
from moe_runner.options.training import Search, Trainer, Tuning
from moe_runner.registry import METHODS
from moe_runner.runs.result import figures_by_set
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training import fit
from moe_runner.training.execute import execute
from moe_runner.training.forms.domain_generalisation import DomainTrainer
from tests.methods.rows import a_few
from tests.tasks.suites.test_domainbed import PACS, write_domains

SMALL = {"num_experts": 4, "top_k": 2}
DENSE = Dense()


@pytest.fixture
def settings(tmp_path):
    """Make settings of two updates of vit_tiny on digits."""

    def build(
        method=DENSE, tuning="full", members=("colored_digits/minus_90",), task=(), **trainer
    ):
        lora = {"rank": 2, "alpha": 4, "dropout": 0.1} if tuning == "lora" else {}
        suite = "domainbed" if members[0].startswith("pacs") else "domainbed_mini"
        given = {"drop_path": 0.0, "augment": False, "eval_limit": 8, **dict(task)}
        steps = {"max_steps": 2, "eval_steps": 1, "batch_size": 4, **trainer}
        return Settings(
            method=method,
            model=Model(
                name="vit_tiny", family="vit", bundled=True, d_model=128, d_ff=512, num_layers=4,
                lora_targets=("q_proj", "v_proj"), lr_scale=10.0,
            ),
            tuning=Tuning(name=tuning, learning_rate=5e-5, learning_rates=(5e-5,), **lora),
            task=DomainBedTask(suite=suite, members=tuple(members), **given),
            protocol=Protocol(), search=Search(name="single"), trainer=Trainer(**steps),
            logger=Logger(name="none"), device="cpu", threads=1,
            paths=Paths(output=str(tmp_path / "outputs"), cache=str(tmp_path / "cache")),
        )  # fmt: skip

    return build


def carry_out(settings, number=0):
    """Plan and execute one run; returns its result and its folder."""
    store = Store(train.Path(settings.paths.output))
    run = make_plan(settings).runs[number]
    return execute(run, settings, store).to_json(), store.folder(run.id)


def elsewhere(settings):
    """The same settings with another store."""
    paths = dataclasses.replace(settings.paths, output=settings.paths.output + "2")
    return dataclasses.replace(settings, paths=paths)


# ------------------------------------------------------------------------------- results


def test_every_checkpoint_has_both_splits_of_every_domain(settings):
    result, folder = carry_out(settings(EMoE(num_experts=64, top_k=16)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line, point in zip(lines, result["learning_curve"], strict=True):
        assert line["domains"] == point["domains"]
        assert list(line["domains"]) == ["plus_90", "plus_80", "minus_90"]
        assert all(set(splits) == {"in", "out"} for splits in line["domains"].values())
        trained = [line["domains"][name]["out"] for name in ("plus_90", "plus_80")]
        assert line["primary"] == line["accuracy"] == pytest.approx(np.mean(trained))
        assert sum(map(sum, line["load"])) == 2 * 8 * 17 * 16  # images, tokens, experts of each
    best = max(result["learning_curve"], key=lambda point: point["primary"])
    assert result["primary"] == pytest.approx(best["primary"])
    ood = result["ood_metrics"]["minus_90"]["accuracy"]
    assert ood == pytest.approx(best["domains"]["minus_90"]["in"])
    assert result["skipped"] == {}
    assert 0 < result["data_share_of_time"] < 1
    assert result["tokens_per_second"] == pytest.approx(17 * result["examples_per_second"])


def test_tokens_are_counted_in_all_processes():
    trainer = DomainTrainer.__new__(DomainTrainer)
    trainer.state, trainer.tokens_per_image = SimpleNamespace(global_step=3), 17
    trainer.args = SimpleNamespace(gradient_accumulation_steps=2, train_batch_size=4, world_size=5)
    assert trainer.tokens_seen() == 3 * 2 * 4 * 5 * 17


def test_a_mean_over_domains_does_not_weigh_them_by_size():
    trainer = DomainTrainer.__new__(DomainTrainer)
    trainer.metric_names, trainer.domain = ("accuracy",), np.array([0, 0, 0, 4])
    logits = np.eye(2)[[1, 1, 1, 1]]
    prediction = dataclasses.make_dataclass("P", ["predictions", "label_ids"])(
        logits, np.array([1, 1, 1, 0])
    )
    assert trainer.compute_task_metrics(prediction) == {"accuracy": 0.5, "primary": 0.5}


@pytest.mark.parametrize("name", a_few(METHODS))
def test_every_method_runs_on_images(name, settings):
    method = METHODS[name]
    options = {name: value for name, value in SMALL.items() if hasattr(method(), name)}
    given = settings(method(**options), max_steps=1)
    result, _ = carry_out(given)
    assert np.isfinite(result["id_metrics"]["training_domains"]["loss"])
    converted = method.__name__ not in ("Dense", "NoisyTuning")
    assert bool(result["converted_layers"]) == converted


@pytest.mark.parametrize("method", [Dense(), EMoE(**SMALL)], ids=["dense", "emoe"])
def test_lora_trains_lora_and_head(method, settings):
    given = settings(method, "lora")
    ready = fit.build(make_plan(given).runs[0], train.find_resources(given))
    trained = [n for n, p in ready.backbone.model.named_parameters() if p.requires_grad]
    assert sum(".lora_A." in name for name in trained) == 8  # query and value of four layers
    assert {n for n in trained if ".lora_" not in n} == {"classifier.weight", "classifier.bias"}
    assert np.isfinite(carry_out(given)[0]["id_metrics"]["training_domains"]["loss"])


def test_the_optimiser_is_adam_on_all_parameters_with_the_benchmarks_decay(settings, monkeypatch):
    seen = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    carry_out(settings(weight_decay=0.125))
    groups = seen[0].param_groups
    assert {group["weight_decay"] for group in groups} == {0.125}
    assert {group["lr"] for group in groups} == {5e-4}  # constant
    assert type(seen[0]) is torch.optim.Adam


def test_training_learns_the_colours(settings):
    given = settings(
        EMoE(num_experts=64, top_k=16), task={"eval_limit": 40}, learning_rate=2e-3,
        max_steps=20, eval_steps=10, batch_size=32,
    )  # fmt: skip
    result, _ = carry_out(given)
    last = result["learning_curve"][-1]
    assert last["primary"] > 0.75  # the colour is right for 85% of the training domains
    assert last["domains"]["minus_90"]["in"] < 0.35  # and for 10% of the other one


# ------------------------------------------------------------------------------- resuming


def numbers(result: dict) -> dict:
    """Keep what must be equal to the bit."""
    keys = ("id_metrics", "ood_metrics", "primary", "best_epoch", "learning_curve", "routing")
    return {key: result[key] for key in keys}


@pytest.mark.long
@pytest.mark.parametrize("kill", [5, 7])
def test_a_kill_anywhere_gives_the_same_numbers(kill, settings, tmp_path, monkeypatch):
    root = write_domains(tmp_path / "data", counts=(4, 9, 6, 5))
    given = settings(
        EMoE(**SMALL), members=["pacs/photo"], batch_size=12, max_steps=9, eval_steps=4,
        save_steps=3, task={"data_dir": str(root), "augment": True, "drop_path": 0.3},
    )  # fmt: skip
    whole, _ = carry_out(given)
    given, original, seen = elsewhere(given), torch.optim.Adam.step, []

    def step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == kill:
            raise RuntimeError("killed")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(RuntimeError, match="killed"):
        carry_out(given)
    monkeypatch.undo()
    result, _ = carry_out(given)
    assert result["resumed_at_update"] == {5: 4, 7: 6}[kill]
    assert numbers(result) == numbers(whole)


def test_the_trial_seed_decides_the_split_and_the_augmentation_the_images(settings, tmp_path):
    root = write_domains(tmp_path / "data")
    given = settings(members=["pacs/photo"], batch_size=12, task={"data_dir": str(root)})
    run = make_plan(given).runs[0]
    resources = train.find_resources(given)
    rows = [
        fit.build(dataclasses.replace(run, seed=seed), resources).data.train["image"][:]
        for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]


# ------------------------------------------------------------------------------- real images


def test_real_images_train_from_the_folder(settings, shared_data):
    task = {"data_dir": str(shared_data / "images"), "augment": True, "drop_path": 0.1}
    given = settings(EMoE(**SMALL), members=["pacs/sketch"], batch_size=12, task=task)
    result, _ = carry_out(given)
    assert list(result["learning_curve"][0]["domains"]) == list(PACS)
    assert set(result["data"]) == set(PACS)


def test_another_size_of_image_interpolates_the_positions(settings):
    result, _ = carry_out(settings(task={"image_size": 16}))
    assert result["tokens_per_second"] == pytest.approx(5 * result["examples_per_second"])
    with pytest.raises(ConfigError, match="task.image_size=20 does not divide by the 8 pixels"):
        carry_out(settings(task={"image_size": 20}))


# ------------------------------------------------------------------------------- plans


def test_the_size_of_the_images_is_the_backbones(settings):
    given = settings()
    assert find_weights(given.model).image_size() == 32
    assert make_plan(given).runs[0].task.image_size == 32
    assert find_weights(dataclasses.replace(given.model, bundled=False)).image_size() == 224


def test_a_batch_that_does_not_divide_by_the_training_domains_is_refused(settings):
    with pytest.raises(ConfigError) as caught:
        make_plan(settings(members=["rotated_digits/0"], batch_size=64))
    assert str(caught.value) == (
        "trainer.batch_size=64 does not divide by the 5 training domains; it is the size of one "
        "update: use a multiple of 5, such as 65"
    )
    with pytest.raises(ConfigError, match="trainer.accumulate=4; .* use a multiple of 20"):
        make_plan(settings(members=["rotated_digits/0"], batch_size=64, accumulate=4))


def test_gradient_accumulation_takes_every_domain_in_each_micro_batch(settings):
    result, _ = carry_out(settings(batch_size=8, accumulate=2))
    assert result["updates"] == 2


def test_pairs_are_runs_of_their_own_and_the_single_ones_are_shared(settings):
    given = settings(members=["colored_digits/plus_90"])
    (single,) = make_plan(given).runs
    pairs = dataclasses.replace(given, task=dataclasses.replace(given.task, pairs=True))
    runs = make_plan(dataclasses.replace(pairs, trainer=Trainer(batch_size=2))).runs
    assert [run.task_name for run in runs] == [
        "colored_digits/plus_90",
        "colored_digits/plus_90+plus_80",
        "colored_digits/plus_90+minus_90",
    ]
    again = make_plan(dataclasses.replace(pairs, trainer=given.trainer)).runs[0]
    assert again.id == single.id


# ------------------------------------------------------------------------------- afterwards


@pytest.mark.parametrize("export", ["dense", "moe"])
def test_a_tuned_model_is_written_with_its_preprocessing(export, settings):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from moe_runner import from_pretrained

    given = dataclasses.replace(settings(EMoE(**SMALL)), export=export)
    _, folder = carry_out(given)
    load = from_pretrained if export == "moe" else AutoModelForImageClassification.from_pretrained
    model = load(folder / "model")
    assert model.config.id2label == {0: "low", 1: "high"}
    assert model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape == (2, 2)
    processor = AutoImageProcessor.from_pretrained(folder / "model", backend="pil")
    assert list(processor.image_mean) == [0.5] * 3


def test_a_kept_run_is_evaluated_again(settings):
    from moe_runner.training.evaluate import evaluate_kept

    given = dataclasses.replace(settings(EMoE(**SMALL)), keep_model="best")
    given = dataclasses.replace(given, task=dataclasses.replace(given.task, ood=("all",)))
    result, _ = carry_out(given)
    run = make_plan(given).runs[0]
    store = Store(train.Path(given.paths.output))
    found = figures_by_set(evaluate_kept(run, given, store, train.find_resources(given)))
    assert found == result["ood_metrics"]
