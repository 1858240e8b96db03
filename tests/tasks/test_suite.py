"""Every suite of the registry is what `Suite` says; packages add suites, and take no name away."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from moe_runner import tasks
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import read_option
from moe_runner.options.folders import CONF, option_folders, option_names
from moe_runner.options.task import Task
from moe_runner.registry import SUITES
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan
from moe_runner.tasks.suite import Suite
from moe_runner.training.forms import FORMS

NAMES = sorted(SUITES)
OPTIONS = option_names((CONF,), "task")


def options_of(option: str) -> Task:
    """Build what an option file of conf/task says."""
    tree = read_option((CONF,), "task", option)
    problems: list[str] = []
    options = build(SUITES[tree["suite"]].options, tree, "task", problems)
    assert not problems
    return options


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine with empty caches of the Hub, which is not asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------- the protocol


def test_every_module_among_the_suites_is_one():
    files = Path(import_module("moe_runner.tasks.suites").__file__ or "").parent.glob("[!_]*.py")
    assert sorted(file.stem for file in files) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mypy_checks_the_suite(name):
    """An annotated `SUITE` is compared with `Suite` by `make check`."""
    hints = get_type_hints(import_module(f"moe_runner.tasks.suites.{name}"))
    assert hints["SUITE"] == Suite[SUITES[name].options]


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_has_what_the_protocol_asks_for(name):
    suite = SUITES[name]
    assert issubclass(suite.options, Task)
    assert suite.specs
    assert all(key == spec.name for key, spec in suite.specs.items())
    assert {spec.form for spec in suite.specs.values()} <= set(FORMS)
    for method in ("members", "sources", "load"):
        asked = inspect.signature(getattr(Suite, method)).parameters
        given = inspect.signature(getattr(type(suite), method)).parameters
        assert [(p.name, p.default) for p in given.values()] == [
            (p.name, p.default) for p in asked.values()
        ]


def test_no_suite_imports_what_is_slow():
    code = (
        "import sys\n"
        "from moe_runner.registry import SUITES\n"
        "assert len([SUITES[name] for name in SUITES]) > 10\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'numpy', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------- option files


def test_every_suite_has_an_option_file():
    assert {options_of(option).suite for option in OPTIONS} == set(NAMES)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_members_of_an_option_file_are_there_and_say_where_their_data_are(option, offline):
    options = options_of(option)
    assert options.members
    for member in options.members:
        found = tasks.sources(options, member)
        assert found
        for source in found.values():
            ways = (source.files, source.hub, source.generated, source.problem, source.absent)
            assert any(ways)


@pytest.mark.parametrize("option", [option for option in OPTIONS if "/" in option])
def test_a_member_s_file_names_its_suite_and_repeats_nothing_of_it(option):
    own = yaml.safe_load((CONF / "task" / f"{option}.yaml").read_text())
    suite = option.partition("/")[0]
    assert own.pop("defaults") == [suite, "_self_"]
    theirs = read_option((CONF,), "task", suite)
    assert "members" in own
    assert not [key for key, value in own.items() if theirs[key] == value]


# ------------------------------------------------------------------------------- resolving


def test_what_null_means_follows_model_and_recipe(tmp_path):
    def value(key: str, **choices: str) -> object:
        """Plan some command and take an option of its first run's task."""
        given = {"paths.output": str(tmp_path), **choices}
        return getattr(make_plan(compose_settings((CONF,), given)).runs[0].task, key)

    assert value("max_length", task="glue_mini/rte") == 128  # EMoE
    assert value("max_length", task="glue_mini/rte", model="switch_tiny") == 256  # HyperMoE
    assert value("block_size", task="wikitext_mini", model="gpt2_tiny") == 256  # its positions
    assert value("image_size", task="domainbed_mini", model="vit_tiny", method="gmoe") == 32


# ------------------------------------------------------------------------------- other packages

MODULE = """
from pathlib import Path

from moe_runner.options.task import TextTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.tables import tidy

MOOD = TaskSpec(
    name="mood", columns=("text",), labels=("bad", "good"), metrics=("accuracy",),
    validation=("validation",), recipe=Recipe(epochs={"full": 2}),
)


class Moods(Suite[TextTask]):
    options = TextTask
    specs = {"mood": MOOD}

    def sources(self, options, name):
        folder = Path(options.data_dir)
        return {
            split: Source(files=(folder / f"{split}.csv",)) for split in ("train", "validation")
        }

    def load(self, options, name, cache=None):
        from pyarrow import csv

        found = self.sources(options, name)
        check(found)
        data = {
            split: tidy(csv.read_csv(source.files[0]), source.origin, [("text",)], MOOD.labels)
            for split, source in found.items()
        }
        return TaskData(
            spec=MOOD, train=data["train"], validation={"validation": data["validation"]}
        )


SUITE = Moods()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package with a suite of a name on Python's path, as an installer would."""

    def put(name: str) -> None:
        folder = tmp_path / "site"
        (folder / "moods_package" / "conf" / "task").mkdir(parents=True)
        (folder / "moods_package" / "__init__.py").write_text("")
        (folder / "moods_package" / "suite.py").write_text(MODULE)
        (folder / "moods_package" / "conf" / "task" / "moods.yaml").write_text(
            "suite: moods\nmembers: [mood]\ndata_dir: ???\n"
        )
        (folder / "moods_package-1.0.dist-info").mkdir()
        (folder / "moods_package-1.0.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: moods-package\nVersion: 1.0\n"
        )
        (folder / "moods_package-1.0.dist-info" / "entry_points.txt").write_text(
            f"[moe_runner.suites]\n{name} = moods_package.suite:SUITE\n"
        )
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(SUITES.__dict__, "loaders", raising=False)  # found once per process

    yield put
    SUITES.__dict__.pop("loaders", None)
    for module in [module for module in sys.modules if module.startswith("moods_package")]:
        del sys.modules[module]


def test_a_suite_of_an_installed_package_is_found_read_and_planned(package, tmp_path):
    package("moods")
    for split, rows in {"train": ["fine,1", "sad,0", "glad,1"], "validation": ["meh,0"]}.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    assert list(SUITES) == [*NAMES, "moods"]
    choices = {"task": "moods", "task.data_dir": str(tmp_path), "task.train_fraction": 0.67}
    choices["paths.output"] = str(tmp_path / "outputs")
    settings = compose_settings(option_folders(), choices)
    data = tasks.load(settings.task, "mood")
    assert data.train.features["label"].names == ["bad", "good"]
    assert len(data.train) == 2  # of three: the share is taken for every suite
    plan = make_plan(settings)
    assert [run.label for run in plan.runs] == ["emoe bert_tiny moods/mood lr 0.0005 seed 0"]
    assert plan.runs[0].trainer.epochs == 2
    assert plan.runs[0].task == dataclasses.replace(settings.task, max_length=128)


def test_a_suite_may_not_take_the_name_of_another(package):
    package("glue")
    with pytest.raises(ConfigError) as caught:
        SUITES.find("glue")
    assert str(caught.value) == (
        "the suite glue of the package moods-package is there already, from moe-runner; rename "
        "it, or uninstall the package"
    )


def test_an_unknown_suite_has_the_nearest_name():
    with pytest.raises(ConfigError, match="^suite=gleu is not an option; did you mean glue?"):
        SUITES.find("gleu")
