from dataclasses import replace

import pytest

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import TextTask
from moe_runner.tasks.suites import glue, glue_mini

OPTIONS = TextTask(suite="glue_mini", members=tuple(glue_mini.TASKS), ood=("all",))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(hub, "problem", lambda *_, **__: pytest.fail("asked for the Hub"))


@pytest.mark.parametrize("name", glue_mini.TASKS)
def test_a_task_is_generated_in_the_form_of_glue(name):
    options = replace(OPTIONS, limit=50, eval_limit=20)
    data = tasks.load(options, name)
    spec = glue.TASKS[name]
    assert (data.spec.columns, data.spec.labels) == (spec.columns, spec.labels)
    assert (data.spec.metrics, data.spec.validation) == (spec.metrics, spec.validation)
    assert data.spec.recipe.epochs == {"full": 4, "lora": 8, "lora_block": 8}
    assert data.train.column_names == [*spec.columns, "label"]
    assert len(data.train) == 50
    assert [len(split) for split in data.validation.values()] == [20] * len(spec.validation)
    assert list(data.ood) == list(glue_mini.ood_names(name))
    for ood in data.ood:
        assert len(data.ood[ood]) == 20
        assert data.ood[ood].column_names == [*data.ood_specs[ood].columns, "label"]
        metrics = ("pearson", "spearman") if name == "stsb" else ("accuracy",)
        assert data.ood_specs[ood].metrics == metrics


def test_the_seed_changes_data_and_fingerprint():
    one, two = OPTIONS, replace(OPTIONS, data_seed=1)
    assert tasks.fingerprint(one, "rte")["train"].endswith("seed 0")
    assert tasks.fingerprint(two, "rte")["train"].endswith("seed 1")
    first, again, other = (tasks.load(o, "rte").train.to_dict() for o in (one, one, two))
    assert first == again
    assert first != other


def test_the_fingerprint_names_suite_and_version():
    prints = tasks.fingerprint(OPTIONS, "mnli")
    (ood,) = glue_mini.ood_names("mnli")
    assert list(prints) == ["train", "validation_matched", "validation_mismatched", f"ood/{ood}"]
    assert set(prints.values()) == {f"glue_mini v{glue_mini.VERSION} seed 0"}


def test_ood_by_name_and_not_at_all():
    (ood,) = glue_mini.ood_names("cola")
    assert list(tasks.load(replace(OPTIONS, ood=(ood,)), "cola").ood) == [ood]
    assert tasks.load(replace(OPTIONS, ood=()), "cola").ood == {}
    with pytest.raises(ConfigError, match=rf"not an option of task=glue_mini/cola.*{ood}"):
        tasks.load(replace(OPTIONS, ood=("blimp",)), "cola")
