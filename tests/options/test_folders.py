"""`paths.data` and `paths.models`: one folder for all local data, one for all local models."""

from __future__ import annotations

import pytest

from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.options.settings import Settings
from moe_runner.sweeps.compose import compose_settings


def settings(tmp_path, **given) -> Settings:
    places = {"paths.data": str(tmp_path), "paths.models": str(tmp_path)}
    return compose_settings((CONF,), places | {key: str(value) for key, value in given.items()})


@pytest.fixture
def place(tmp_path):
    for name in ("glue", "ood", "wikitext2", "classification", "rte"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("task", "own"),
    [
        ("glue", "glue"),
        ("glue/cola", "glue"),
        ("wikitext2", "wikitext2"),  # a member's folder
        ("wikitext103", None),  # the Hub
        ("superglue", None),
        ("glue_mini", None),
        ("glue_mini/rte", None),
        ("superglue/rte", None),  # rte/ is nobody's: of `task=glue` it is not read either
        ("glue_multitask", "glue"),
    ],
)
def test_a_suite_reads_its_part_of_the_data_folder(place, task, own):
    model = "gpt2_tiny" if "wikitext" in task else "bert_tiny"
    found = settings(place, task=task, model=model).task
    assert found.data_dir == (own and str(place / own))
    assert found.ood_dir == str(place / "ood")


def test_generated_data_are_in_no_folder(place):
    (place / "language_modelling").mkdir()
    assert settings(place, task="wikitext_mini", model="gpt2_tiny").task.data_dir is None
    found = settings(place, task="wikitext103", model="gpt2_tiny").task
    assert found.data_dir == str(place / "language_modelling")


def test_the_sets_that_lie_with_their_suite_win(place):
    (place / "glue" / "ood").mkdir()
    assert settings(place, task="glue").task.ood_dir == str(place / "glue" / "ood")


def test_what_is_given_for_the_task_wins(place):
    found = settings(place, task="glue", **{"task.data_dir": "/a", "task.ood_dir": "/b"}).task
    assert (found.data_dir, found.ood_dir) == ("/a", "/b")
    elsewhere = settings(place, task="glue", **{"task.hub_id": "me/mine"}).task
    assert (elsewhere.data_dir, elsewhere.ood_dir) == (None, None)


def test_data_of_ones_own_are_always_named(place):
    found = settings(place, task="classification").task
    assert (found.data_dir, found.ood_dir) == (None, None)


def test_a_model_comes_from_the_model_folder(place):
    (place / "bert").mkdir()
    (place / "mine").mkdir()
    config = '{"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072}'
    for name in ("bert", "mine"):
        (place / name / "config.json").write_text(config)
    assert settings(place, model="bert").model.path == str(place / "bert")
    own = settings(place, model="bert", **{"model.path": place / "mine"})
    assert own.model.path == str(place / "mine")
    assert settings(place, model="gpt2").model.path is None
    (place / "bert_tiny").mkdir()
    assert settings(place, model="bert_tiny").model.path is None  # it is bundled


@pytest.mark.parametrize("given", [{"model.hub_id": "a/b"}, {"model.revision": "v2"}])
def test_a_bundled_model_has_no_other_place(place, given):
    (key, value) = next(iter(given.items()))
    with pytest.raises(ConfigError, match=f"{key}={value} is not looked at.* is bundled"):
        settings(place, **given)


@pytest.mark.parametrize("key", ["paths.data", "paths.models"])
def test_a_folder_that_is_not_there_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=f"{key}={tmp_path}/no is not a folder"):
        settings(tmp_path, **{key: tmp_path / "no"})


def test_a_key_below_a_value_is_refused():
    given = {"trainer.epochs.warmup": 1}
    with pytest.raises(ConfigError, match=r"trainer\.epochs\.warmup=1 is not an option: epochs is"):
        compose_settings((CONF,), given)
