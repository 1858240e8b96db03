"""From settings to runs: what is in a run's id and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from moe_runner.cli.values import parse_config
from moe_runner.kernels import building
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Settings
from moe_runner.options.training import Recipe, Trainer
from moe_runner.runs.run import read_run
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan, resolve, show_plan

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def settings(tmp_path):
    def build(*overrides: str) -> Settings:
        places = [f"paths.output={tmp_path}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return parse_config(compose("config", [*places, *overrides]))

    return build


def ids(settings: Settings) -> list[str]:
    return [run.id for run in make_plan(settings).runs]


def test_the_default_is_emoe_on_all_eight_tasks_of_the_embedded_suite(settings):
    plan = make_plan(settings())
    names = [run.task_name for run in plan.runs]
    assert names == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert {run.method.name for run in plan.runs} == {"emoe"}
    assert {run.model.name for run in plan.runs} == {"bert_tiny"}
    assert len({run.id for run in plan.runs}) == 8
    assert not plan.gaps


def test_a_member_alone_is_the_same_run_as_within_its_suite(settings):
    assert ids(settings("task=glue_mini/rte")) == ids(settings())[-1:]


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("asked", ["method.backend=kernel", "trainer.inference=kernel"])
def test_a_dry_run_tells_that_the_kernel_is_not_built(asked, built, settings, capsys, monkeypatch):
    monkeypatch.setattr(building, "library", lambda: Path("experts.so") if built else None)
    monkeypatch.setattr(building, "differences", list)
    given = settings("task=glue_mini/rte", asked)
    plan, store = make_plan(given), Store(Path(given.paths.output))
    assert ids(given) != ids(settings("task=glue_mini/rte"))
    show_plan(plan, store, "auto")
    line = f"1 cannot be done here: {asked}: the C++ kernel is not built; `python -m moe_runner.k"
    assert (line in capsys.readouterr().out) == (not built)


@pytest.mark.parametrize(
    "override",
    [
        "device=cpu", "threads=3", "logger=wandb", "keep_model=best", "rerun=true", "debug=true",
        "trainer.workers=2", "trainer.save_steps=7", "method.backend=masked",
        "task.skip_missing=true", "task.ood=[constructions]", "trainer.learning_rate=1e-3",
        "trainer.epochs=4", "trainer.deterministic=true", "model.lr_scale=20",
        "trainer.gradient_checkpointing=true",
    ],
)  # fmt: skip
def test_what_cannot_change_a_number_is_not_in_the_id(settings, override):
    base = settings("task=glue_mini/cola", "trainer.learning_rate=1e-3", "trainer.epochs=4")
    words = ["task=glue_mini/cola", "trainer.learning_rate=1e-3", "trainer.epochs=4", override]
    assert ids(settings(*words)) == ids(base)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "method=dense", "method.top_k=8", "method.num_experts=32", "method.layers=[0]",
        "method.clustering=random", "method.cluster_seed=1", "method.select=bottom",
        "model=gpt2_tiny", "tuning=lora", "task=glue_mini/rte", "task.limit=10",
        "task.eval_limit=10", "task.max_length=64", "task.data_seed=1", "task.ood=[]",
        "trainer.learning_rate=1e-2", "trainer.epochs=1", "trainer.batch_size=16",
        "trainer.precision=bf16", "trainer.patience=1", "trainer.length_grouping=true",
        "trainer.max_steps=3", "trainer.schedule=cosine", "trainer.accumulate=2",
    ],
)  # fmt: skip
def test_what_can_change_a_number_is_in_the_id(settings, override):
    base = ["task=glue_mini/cola"]
    words = [override] if override.startswith("task=") else [*base, override]
    assert ids(settings(*words)) != ids(settings(*base))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model=gpt2_tiny", "task.block_size=512"],
            "task.block_size=512 is more than the 256 positions of model=gpt2_tiny; "
            "use at most 256",
        ),
        (
            ["model=gpt2_tiny", "task.block_size=1"],
            "task.block_size=1 leaves no token to predict; use 2 or more",
        ),
        (
            ["model=bert_tiny"],
            "model=bert_tiny is of the family bert and task=language_modelling predicts the next "
            "token; use a model of the family gpt2, llama, gpt_neox, opt, qwen2, qwen3 or gemma2",
        ),
    ],
)
def test_language_modelling_has_causal_backbones_and_blocks_that_fit(settings, overrides, line):
    with pytest.raises(ConfigError) as caught:
        settings("task=wikitext_mini", "method=dense", *overrides)
    assert caught.value.problems == (line,)


def test_a_fraction_is_in_the_id_and_the_whole_is_not(settings):
    base = ids(settings("task=glue_mini/cola"))
    assert ids(settings("task=glue_mini/cola", "task.train_fraction=1")) == base
    others = [ids(settings("task=glue_mini/cola", f"task.train_fraction={f}")) for f in (0.5, 0.1)]
    assert len({*map(tuple, others), tuple(base)}) == 3


def test_a_run_comes_back_from_its_config_yaml(settings, tmp_path):
    for overrides in (["task=glue_mini/mnli"], ["method=dense", "tuning=lora", "search=paper"]):
        run = make_plan(settings(*overrides)).runs[0]
        file = tmp_path / "config.yaml"
        file.write_text(run.to_yaml())
        assert read_run(file) == run
        assert read_run(file).id == run.id


def test_search_makes_rates_times_seeds_and_scales_the_rates(settings):
    plan = make_plan(settings("search=paper", "task=glue_mini/cola", "model.lr_scale=10"))
    found = {(run.trainer.learning_rate, run.seed) for run in plan.runs}
    assert found == {(rate, seed) for rate in (2e-4, 3e-4, 5e-4) for seed in (0, 1, 2)}


def test_everything_that_is_missing_is_said_at_once(settings, monkeypatch):
    from moe_runner import hub

    monkeypatch.setattr(hub, "reachable", lambda: False)
    chosen = settings("model=gpt2", "task=glue", "task.data_dir=/no/such/folder")
    with pytest.raises(ConfigError) as caught:
        make_plan(chosen)
    text = str(caught.value)
    assert "openai-community/gpt2" in text
    for name in ("cola", "rte"):
        assert f"{name}/train.parquet" in text
    tiny = replace(chosen, model=settings().model)
    with pytest.raises(ConfigError):  # nothing is left to run
        make_plan(replace(tiny, task=replace(tiny.task, skip_missing=True)))


def test_an_ood_set_of_one_member_is_left_out_of_the_others(settings, shared_data):
    chosen = settings(
        "task=gluex", "task.ood=[imdb,sick_sts]", "task.skip_missing=true",
        f"task.data_dir={shared_data / 'glue'}", f"task.ood_dir={shared_data / 'ood'}",
    )  # fmt: skip
    plan = make_plan(chosen)
    assert {run.task_name: run.task.ood for run in plan.runs if run.task.ood} == {
        "sst2": ("imdb",),
        "stsb": ("sick_sts",),
    }
    assert set(plan.gaps) == {"rte"}


def test_micro_batches_of_unequal_size_are_refused(settings):
    with pytest.raises(ConfigError, match="batch_size=32 does not divide by trainer.accumulate=5"):
        make_plan(settings("trainer.accumulate=5"))


@pytest.mark.parametrize(
    ("given", "max_steps", "epochs"),
    [
        ({}, 700, 10),
        ({"epochs": 3}, None, 3),  # what the user gives wins over the task's updates
        ({"max_steps": 50}, 50, 10),
        ({"epochs": 3, "max_steps": 50}, 50, 3),
    ],
)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_epochs_of_the_user_win_over_updates_of_the_task(given, max_steps, epochs, tuning):
    found = resolve(Trainer(**given), Recipe(max_steps=700, epochs={"full": 10}), tuning)
    of_task = 1 if tuning == "lora" else 10  # the task says nothing of lora
    assert found.max_steps == max_steps
    assert found.epochs == (epochs if "epochs" in given else of_task)


def test_a_task_of_updates_is_trained_for_epochs_if_they_are_given(settings):
    words = ["method=dense", "model=vit_tiny", "task=domainbed_mini/rotated_digits"]
    usual = make_plan(settings(*words)).runs
    assert {run.trainer.max_steps is None for run in usual} == {False}
    runs = make_plan(settings(*words, "trainer.epochs=2")).runs
    assert {(run.trainer.max_steps, run.trainer.epochs) for run in runs} == {(None, 2)}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_says_which_ids_are_open(settings, dry_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("moe_runner.hub.reachable", lambda: False)
    with pytest.raises(ConfigError) as caught:
        make_plan(settings("model=bert", "task=glue/rte", f"dry_run={str(dry_run).lower()}"))
    lines = [line for line in caught.value.problems if line.startswith("1 ids are open")]
    assert len(lines) == dry_run
