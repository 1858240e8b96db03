"""Whole runs on tiny backbones: what trains, what is written, resuming, failing."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from moe_runner import train
from moe_runner.backbones.weights import Weights
from moe_runner.cli.ending import end
from moe_runner.files import write_json
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Logger
from moe_runner.options.training import Trainer
from moe_runner.runs.result import figures_by_set
from moe_runner.runs.store import Store
from moe_runner.training import checkpoint, evaluate, fit
from moe_runner.training.evaluate import evaluate_kept
from moe_runner.training.execute import execute


def carry_out(settings, run):
    """Execute a run as the command does; returns the content of result.json and the folder."""
    store = Store(train.Path(settings.paths.output))
    return execute(run, settings, store).to_json(), store.folder(run.id)


@pytest.mark.parametrize("method", [Dense(), EMoE(num_experts=4, top_k=2)], ids=["dense", "emoe"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_every_text_family_trains_and_evaluates(family, method, make_settings, only_run):
    settings = make_settings(family, method, epochs=1)
    run = only_run(settings)
    result, folder = carry_out(settings, run)
    assert result["id"] == run.id
    assert -1 <= result["primary"] <= 1
    assert set(result["ood_metrics"]) == {"cola_ood"}
    assert result["id_metrics"]["validation"]["examples"] == 40
    assert result["parameters"]["total"] == result["parameters"]["dense"]
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    layers = 0 if method == Dense() else 2 if family == "t5" else 1
    assert len(line["load"]) == layers
    if layers:
        assert result["flops_per_token"]["converted"] < result["flops_per_token"]["dense"]
        assert 0 <= result["routing"]["routing/changed"] <= 1
        assert 0 < result["routing"]["routing/entropy"] <= 1
    assert not (folder / "checkpoint").exists()


def test_a_finished_run_is_not_repeated(make_settings, only_run, monkeypatch):
    settings = make_settings(epochs=1)
    run = only_run(settings)
    first, _ = carry_out(settings, run)
    monkeypatch.setattr(fit, "carry_out", lambda *_: pytest.fail("trained again"))
    assert carry_out(settings, run)[0] == first


def test_rerun_repeats_to_the_bit(make_settings, only_run):
    settings = make_settings(epochs=2)
    run = only_run(settings)
    first, _ = carry_out(settings, run)
    again, _ = carry_out(dataclasses.replace(settings, rerun=True), run)
    assert numbers(again) == numbers(first)


def cut_short(settings, run, monkeypatch, at: int) -> None:
    """Begin a run, and let an update fail."""
    original, seen = torch.optim.AdamW.step, []

    def failing_step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == at:
            raise RuntimeError("the power went off")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing_step)
        with pytest.raises(RuntimeError, match="power"):
            carry_out(settings, run)


def test_a_rerun_that_was_cut_short_goes_on(make_settings, only_run, monkeypatch, caplog):
    settings = dataclasses.replace(make_settings(epochs=3), rerun=True, keep_model="best")
    run = only_run(settings)
    expected, folder = carry_out(dataclasses.replace(settings, rerun=False), run)
    (folder / "ood.json").write_text("{}")  # of the weights that are now forgotten
    cut_short(settings, run, monkeypatch, at=15)
    assert not (folder / "ood.json").exists()
    with caplog.at_level("INFO"):
        again, _ = carry_out(settings, run)
    assert "going on from update 12" in caplog.text
    assert numbers(again) == numbers(expected)


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "expected"),
    [("constant", 0.0, [1.0] * 4), ("constant", 0.5, [0.0, 0.5, 1.0, 1.0]),
     ("linear", 0.5, [0.0, 0.5, 1.0, 0.5])],
)  # fmt: skip
def test_every_schedule_warms_up(schedule, warmup_ratio, expected):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    options = Trainer(schedule=schedule, warmup_ratio=warmup_ratio)
    made = get_scheduler(fit.schedule_of(options), optimizer, 4 * warmup_ratio, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert rates == expected


@pytest.mark.parametrize("convert_at", ["both", "eval"])
def test_clusters_may_have_the_seed_of_their_run(convert_at, make_settings, only_run):
    def carried_out(**options):
        method = EMoE(num_experts=4, top_k=2, clustering="random", convert_at=convert_at, **options)
        settings = make_settings("bert", method, epochs=1)
        run = only_run(dataclasses.replace(settings, seed=3))
        return run.id, numbers(carry_out(settings, run)[0])

    (own, found), (given, expected), (fixed, other) = (
        carried_out(cluster_seed=None), carried_out(cluster_seed=3), carried_out()
    )  # fmt: skip
    assert len({own, given, fixed}) == 3
    assert found == expected != other


def numbers(result: dict) -> dict:
    """Keep what must be equal to the bit."""
    keys = ("id_metrics", "ood_metrics", "primary", "best_epoch", "learning_curve", "routing")
    return {key: result[key] for key in keys}


@pytest.mark.long
def test_an_error_in_the_middle_of_an_epoch_and_a_second_try_give_the_same_numbers(
    make_settings, only_run, monkeypatch
):
    settings = make_settings(epochs=3, save_steps=5)
    run = only_run(settings)
    whole, _ = carry_out(settings, run)

    settings = dataclasses.replace(
        settings, paths=dataclasses.replace(settings.paths, output=settings.paths.output + "2")
    )
    cut_short(settings, run, monkeypatch, at=22)
    result, _ = carry_out(settings, run)
    assert result["resumed_at_update"] == 20
    assert numbers(result) == numbers(whole)


def stopped_after_training(settings, run, monkeypatch) -> dict:
    """Stop a run between the end of its training and its result; what the next call finds."""
    with monkeypatch.context() as patch:
        patch.setattr(fit, "evaluate_ood", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carry_out(settings, run)
    return carry_out(settings, run)[0]


def elsewhere(settings):
    """The same settings with another store."""
    paths = dataclasses.replace(settings.paths, output=settings.paths.output + "2")
    return dataclasses.replace(settings, paths=paths)


@pytest.mark.parametrize(
    "trainer",
    [
        {"epochs": 20, "patience": 1, "learning_rate": 1e-9},
        {"epochs": 5, "max_steps": 18},
        {"epochs": 2},
    ],
    ids=["early stop", "max_steps", "all epochs"],
)
def test_a_kill_after_training_ended_does_not_train_on(
    trainer, make_settings, only_run, monkeypatch
):
    settings = make_settings(**trainer)
    run = only_run(settings)
    whole, _ = carry_out(settings, run)
    result = stopped_after_training(elsewhere(settings), run, monkeypatch)
    assert result["updates"] == whole["updates"]
    assert numbers(result) == numbers(whole)


@pytest.mark.long
@pytest.mark.parametrize("grouping", [False, True])
def test_a_kill_anywhere_gives_the_same_numbers(grouping, make_settings, only_run, monkeypatch):
    settings = make_settings(epochs=3, save_steps=4, length_grouping=grouping)  # 12 ends an epoch
    run = only_run(settings)
    whole, _ = carry_out(settings, run)
    original = fit.RunTrainer.evaluate
    step = torch.optim.AdamW.step
    for kill in ("before the first evaluation", "in the third epoch"):
        settings = elsewhere(settings)
        seen = []

        def failing_evaluate(self, *args, **kwargs):
            raise RuntimeError("killed")

        def failing_step(self, *args, seen=seen, **kwargs):
            seen.append(1)
            if len(seen) == 31:
                raise RuntimeError("killed")
            return step(self, *args, **kwargs)

        if kill == "in the third epoch":
            monkeypatch.setattr(torch.optim.AdamW, "step", failing_step)
        else:
            monkeypatch.setattr(fit.RunTrainer, "evaluate", failing_evaluate)
        with pytest.raises(RuntimeError, match="killed"):
            carry_out(settings, run)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        monkeypatch.setattr(fit.RunTrainer, "evaluate", original)
        result, _ = carry_out(settings, run)
        assert result["resumed_at_update"] > 0
        assert numbers(result) == numbers(whole), kill


def test_a_store_that_was_moved_goes_on_with_its_best_epoch(make_settings, only_run, monkeypatch):
    settings = make_settings(epochs=3, save_steps=5)
    run = only_run(settings)
    whole, _ = carry_out(settings, run)
    settings = elsewhere(settings)
    monkeypatch.setattr(fit, "evaluate_ood", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        carry_out(settings, run)
    monkeypatch.undo()
    moved = elsewhere(settings)
    train.Path(settings.paths.output).rename(moved.paths.output)
    result, _ = carry_out(moved, run)
    assert numbers(result) == numbers(whole)


def test_lora_is_not_counted_as_conversion(make_settings, only_run):
    settings = make_settings(method=Dense(), tuning="lora", epochs=1)
    result, _ = carry_out(settings, only_run(settings))
    assert result["flops_per_token"]["dense"] == result["flops_per_token"]["converted"]
    assert result["parameters"]["dense"] == result["parameters"]["total"]
    assert result["parameters"]["lora"] == 8 * 2 * (16 + 16)


def test_lora_trains_lora_and_head_alike_for_dense_and_emoe(make_settings, only_run):
    trained = {}
    for method in (Dense(), EMoE(num_experts=4, top_k=2)):
        settings = make_settings(method=method, tuning="lora")
        ready = fit.build(only_run(settings), train.find_resources(settings))
        trained[method.name] = {
            name: p.shape for name, p in ready.backbone.model.named_parameters() if p.requires_grad
        }
    assert trained["dense"] == trained["emoe"]
    names = trained["emoe"]
    assert {"classifier.weight", "classifier.bias"} < set(names)
    assert all(".lora_" in name or name.startswith("classifier") for name in names)
    assert sum(".lora_A." in name for name in names) == 8  # query and value of four layers


def test_lora_leaves_the_frozen_weights_alone_and_resumes(make_settings, only_run):
    settings = make_settings(tuning="lora", epochs=1)
    settings = dataclasses.replace(settings, keep_model="best")
    run = only_run(settings)
    _, folder = carry_out(settings, run)
    kept = load_file(folder / "checkpoint/best" / checkpoint.WEIGHTS)
    assert not any("embeddings" in name or "experts.keys" in name for name in kept)
    assert any(".lora_B." in name and tensor.any() for name, tensor in kept.items())


def test_gradient_accumulation_is_the_same_as_one_large_batch(
    make_settings, only_run, backbone_folder, tmp_path
):
    still = tmp_path / "still"  # without dropout, whose masks depend on the shape of a batch
    still.mkdir()
    for file in backbone_folder("bert").iterdir():
        (still / file.name).write_bytes(file.read_bytes())
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    losses = []
    for accumulate in (1, 4):
        settings = make_settings(epochs=1, accumulate=accumulate, learning_rate=1e-3)
        settings = dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, path=str(still))
        )
        result, _ = carry_out(settings, only_run(settings))
        losses.append(result["id_metrics"]["validation"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_training_stops_after_patience_epochs_without_a_better_metric(make_settings, only_run):
    settings = make_settings(epochs=20, patience=2, learning_rate=1e-9)
    result, _ = carry_out(settings, only_run(settings))
    assert result["updates"] == 3 * 12
    assert result["best_epoch"] == 1


def test_a_diverging_run_fails_with_its_reason_and_is_tried_again(make_settings, only_run):
    settings = make_settings(epochs=1, learning_rate=1e9, max_grad_norm=0.0)
    run = only_run(settings)
    with pytest.raises((FloatingPointError, ValueError), match="learning_rate|step size"):
        carry_out(settings, run)
    store = Store(train.Path(settings.paths.output))
    assert store.status(run.id).state == "failed"
    assert "Error" in (store.folder(run.id) / "error.txt").read_text()
    assert train.attempt(run, settings, store, {}) is None
    assert store.status(run.id).attempts == 2
    assert end([(run, store)], print, reasons={}) == 1


def test_a_kept_run_is_evaluated_on_other_sets_without_training(
    make_settings, only_run, monkeypatch
):
    settings = dataclasses.replace(make_settings(epochs=1), keep_model="best")
    bare = dataclasses.replace(settings, task=dataclasses.replace(settings.task, ood=()))
    run, with_ood = only_run(bare), only_run(settings)
    assert run.id != with_ood.id
    carry_out(bare, run)
    expected, _ = carry_out(settings, with_ood)
    resources = train.find_resources(settings)
    store = Store(train.Path(settings.paths.output))
    kept = store.folder(run.id) / "checkpoint"
    found = figures_by_set(evaluate_kept(run, settings, store, resources))
    assert found == expected["ood_metrics"]
    assert [path.name for path in kept.iterdir()] == ["best"]  # no optimizer state

    wandb = dataclasses.replace(resources, logger=Logger(name="wandb", mode="offline"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # whoever imports it gets an error
    meanwhile = {"of another evaluation": {"loss": 1.0}}
    real = evaluate.evaluate_ood

    def slowly(*args):
        write_json(store.folder(run.id) / "ood.json", meanwhile)
        return real(*args)

    monkeypatch.setattr(evaluate, "evaluate_ood", slowly)
    assert figures_by_set(evaluate_kept(run, settings, store, wandb)) == found
    written = json.loads((store.folder(run.id) / "ood.json").read_text())
    assert written.keys() == {*meanwhile, "cola_ood"}
    with pytest.raises(ConfigError, match="names no set"):
        evaluate_kept(run, bare, store, resources)
    other = Path(shutil.copytree(settings.task.data_dir, store.root.parent / "data"))
    shutil.copy(other / "cola/validation.parquet", other / "cola/train.parquet")
    elsewhere = dataclasses.replace(settings.task, data_dir=str(other))
    with pytest.raises(ConfigError, match=r"the data \(train\) are not those that it was tuned on"):
        evaluate_kept(run, dataclasses.replace(settings, task=elsewhere), store, resources)
    monkeypatch.setattr(Weights, "fingerprint", lambda self: "of other weights")
    with pytest.raises(ConfigError, match="are not those that it was tuned from"):
        evaluate_kept(run, settings, store, resources)


def test_a_run_that_was_not_kept_cannot_be_evaluated(make_settings, only_run):
    settings = make_settings(epochs=1)
    run = only_run(settings)
    store, resources = Store(train.Path(settings.paths.output)), train.find_resources(settings)
    with pytest.raises(ConfigError, match="is not done"):
        evaluate_kept(run, settings, store, resources)
    carry_out(settings, run)
    with pytest.raises(ConfigError, match="keep_model=best rerun=true"):
        evaluate_kept(run, settings, store, resources)


def test_the_load_counts_every_real_token_top_k_times(make_settings, only_run):
    settings = make_settings(epochs=1, eval_batch_size=7)
    run = only_run(settings)
    _, folder = carry_out(settings, run)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    ready = fit.build(run, train.find_resources(settings))
    texts = ready.data.validation["validation"]["sentence"]
    tokens = sum(len(ready.backbone.processor(text)["input_ids"]) for text in texts)
    assert [sum(load) for load in line["load"]] == [2 * tokens]


def test_bf16_trains_on_this_device(make_settings, only_run):
    settings = make_settings(epochs=1, precision="bf16")
    result, _ = carry_out(settings, only_run(settings))
    assert math.isfinite(result["id_metrics"]["validation"]["loss"])


def test_fp16_is_refused_where_the_device_has_none(make_settings, only_run):
    settings = make_settings(epochs=1, precision="fp16")
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        carry_out(settings, only_run(settings))


def test_length_grouping_changes_the_batches_and_the_id(make_settings, only_run):
    plain, grouped = make_settings(epochs=1), make_settings(epochs=1, length_grouping=True)
    assert only_run(plain).id != only_run(grouped).id
    result, _ = carry_out(grouped, only_run(grouped))
    assert result["updates"] == 12


def test_wandb_stays_offline_and_in_the_folder(make_settings, only_run, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    settings = make_settings(epochs=1)
    settings = dataclasses.replace(settings, logger=Logger(name="wandb"))
    run = only_run(settings)
    assert run.id == only_run(make_settings(epochs=1)).id
    _, folder = carry_out(settings, run)
    assert list(folder.glob("wandb/offline-run-*"))


def offline_records(folder: Path) -> list:
    """Read what `wandb sync` would send: records of a log of blocks of 32 KiB, as in LevelDB."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, parts, records = file.read_bytes(), 7, b"", []
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def test_wandb_gets_the_group_settings_metrics_and_a_table(
    make_settings, only_run, tmp_path, monkeypatch
):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    settings = make_settings(epochs=2)
    settings = dataclasses.replace(settings, logger=Logger(name="wandb", group="a_study"))
    run = only_run(settings)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", "set back after the test")
    result, folder = carry_out(settings, run)
    assert not list((tmp_path / "home").rglob("staging"))
    assert list(folder.glob("wandb/artifacts/staging"))
    records = offline_records(folder)
    (opened,) = (record.run for record in records if record.HasField("run"))
    assert (opened.run_id, opened.run_group, opened.display_name) == (run.id, "a_study", run.label)
    config = {item.key: json.loads(item.value_json) for item in opened.config.update}
    assert config.items() >= {"method": "emoe", "seed": 0, "method.top_k": 2}.items()
    rows: dict[str, list] = {}
    for record in records:
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            rows.setdefault(key, []).append(json.loads(item.value_json))
    curve = [line["primary"] for line in result["learning_curve"]]
    assert rows["eval/primary"] == pytest.approx(curve)
    assert len(rows["routing/entropy"]) == len(curve) == 2
    assert rows["results/_type"] == ["table-file"]
    assert not [key for key in rows if key.startswith("train/_")]  # sets are told by their names
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    cells = {(name, metric): value for name, metric, value in json.loads(table.read_text())["data"]}
    assert cells["validation", "primary"] == pytest.approx(result["primary"])
    ood = result["ood_metrics"]["cola_ood"]
    assert cells["cola_ood", "primary"] == pytest.approx(ood["primary"])


def test_new_modules_learn_at_their_own_rate(make_settings, only_run, monkeypatch):
    monkeypatch.setattr(
        fit.Conversion, "new_parameters", lambda self, model: {"bert.pooler.dense.weight"}
    )
    settings = make_settings(epochs=1, weight_decay=0.1)
    settings = dataclasses.replace(
        settings, tuning=dataclasses.replace(settings.tuning, new_modules_lr_scale=0.1)
    )
    groups = []
    original = fit.RunTrainer.create_optimizer

    def spy(self, model=None):
        optimizer = original(self, model)
        groups[:] = [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
        return optimizer

    monkeypatch.setattr(fit.RunTrainer, "create_optimizer", spy)
    carry_out(settings, only_run(settings))
    rates = {(round(rate, 9), decay) for rate, decay, _ in groups}
    assert rates == {(3e-3, 0.1), (3e-3, 0.0), (3e-4, 0.1)}
    assert [count for rate, _, count in groups if rate < 1e-3] == [1]


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    checkpoint.save_state({"w": torch.ones(9)}, folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(99)}, folder / name)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoint.newest_checkpoint(tmp_path / "none") is None
    for step in (2, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    half = write_checkpoint(tmp_path / "checkpoint-12")
    (half / "trainer_state.json").write_text('{"half')
    (tmp_path / "checkpoint-14").mkdir()
    assert checkpoint.newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 10)


@pytest.mark.parametrize(
    "name", ["trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
@pytest.mark.parametrize("share", [None, 0.0, 0.5])  # None: the file is missing
def test_a_checkpoint_with_a_damaged_file_is_passed_over_and_named(name, share, tmp_path, caplog):
    whole = write_checkpoint(tmp_path / "checkpoint-2")
    file = write_checkpoint(tmp_path / "checkpoint-10") / name
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    assert checkpoint.newest_checkpoint(tmp_path) == (whole, 2)
    assert "checkpoint-10 is passed over" in caplog.text
    assert name.partition(".")[0] in caplog.text


def test_weights_of_another_model_are_refused(tmp_path, tiny_model):
    checkpoint.save_trained(tiny_model("bert"), tmp_path)
    with pytest.raises(ValueError, match="is of another model"):
        checkpoint.load_trained(tiny_model("gpt2"), tmp_path)
