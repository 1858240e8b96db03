"""The option files and the dataclasses agree; an option file may stand on another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe_runner.cli.values import parse_config
from moe_runner.options.errors import ConfigError
from moe_runner.options.files import overlaid, read_option
from moe_runner.options.folders import CONF, option_folders, option_names
from moe_runner.options.model import families_with_options
from moe_runner.options.settings import GROUPS, KIND, Settings, options_class
from moe_runner.registry import METHODS, SUITES

FOLDERS = option_folders()
OPTION_FILES = [
    (group, option) for group in sorted(GROUPS) for option in option_names([CONF], group)
]
IMAGES_ONLY = {"dinov2_small", "vit_base", "vit_small", "vit_tiny"}
MODEL_OF_FAMILY = {"bert": "bert_tiny", "gpt2": "gpt2", "t5": "t5_base", "vit": "vit_tiny"}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def composed() -> dict:
    tree = OmegaConf.to_container(compose("config"), resolve=True)
    assert isinstance(tree, dict)
    return tree


def test_every_yaml_is_an_option_of_a_known_group():
    files = {file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml")}
    assert len(OPTION_FILES) > 30
    files = {each for each in files if not each.startswith(("study/", "hydra/"))}  # tests/sweeps
    assert files == {"config", *(f"{group}/{option}" for group, option in OPTION_FILES)}


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_composes_and_validates(group, option):
    overrides = [f"{group}={option}"]
    if group == "task":
        suite = SUITES[read_option(FOLDERS, group, option)["suite"]]
        families = families_with_options(suite.options.forms)
        overrides.append(f"model={MODEL_OF_FAMILY[families[0]]}")
    cfg = compose("config", overrides)
    assert OmegaConf.to_container(cfg[group]) == read_option(FOLDERS, group, option)
    if option in IMAGES_ONLY:
        with pytest.raises(ConfigError, match="use a model of the family"):
            parse_config(cfg)
        return
    if option == "auto":  # of which model, only the user knows
        with pytest.raises(ConfigError, match="needs model.path"):
            parse_config(cfg)
        return
    settings = parse_config(cfg)
    assert isinstance(settings, Settings)
    name = getattr(getattr(settings, group), "name", option)
    assert name == option or group == "trainer"


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_has_the_keys_of_its_dataclass(group, option):
    tree = read_option(FOLDERS, group, option)
    cls = options_class(group, tree[KIND[group]] if group in KIND else "")
    assert cls is not None
    assert [str(key) for key in tree] == [f.name for f in dataclasses.fields(cls)]


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_opens_with_its_command(group, option):
    first = (CONF / group / f"{option}.yaml").read_text().partition("\n")[0]
    expected = "moe-run trainer." if group == "trainer" else f"moe-run {group}={option}"
    assert first.startswith(f"# {expected}")


def test_main_file_has_the_keys_of_the_settings(composed):
    assert set(composed) == {f.name for f in dataclasses.fields(Settings)}
    globals_ = {f.name: f.default for f in dataclasses.fields(Settings) if f.name not in GROUPS}
    del globals_["paths"]
    assert {name: composed[name] for name in globals_} == globals_


def test_the_defaults_of_method_dataclasses_are_those_of_the_files():
    for name, cls in METHODS.items():
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        assert read_option(FOLDERS, "method", name) == defaults


# ------------------------------------------------------------------------------- inheritance


def write(folder: Path, name: str, text: str) -> None:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("option", "text", "changed"),
    [
        ("glue/mine", "defaults: [glue, _self_]\nmembers: [cola]\n", {"members": ["cola"]}),
        ("few", "defaults: [glue_mini, _self_]\nlimit: 10\n", {"limit": 10}),
        ("same", "defaults: [glue, _self_]\n", {}),
    ],
)
def test_an_option_stands_on_another_of_its_group_as_hydra_composes_it(
    option, text, changed, tmp_path
):
    write(tmp_path / "conf", f"task/{option}", text)
    place = f"hydra.searchpath=['file://{tmp_path}/conf']"
    cfg = compose("config", [place, f"task={option}"])
    base = "glue_mini" if "glue_mini" in text else "glue"
    expected = {**read_option(FOLDERS, "task", base), **changed}
    assert read_option(option_folders(tmp_path / "conf"), "task", option) == expected
    assert OmegaConf.to_container(cfg.task) == expected


def test_mappings_are_merged_and_lists_replaced():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    above = {"a": {"c": [4], "e": None}, "f": 5}
    assert overlaid(below, above) == {"a": {"b": 1, "c": [4], "e": None}, "d": 3, "f": 5}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


@pytest.mark.parametrize(
    "entries", ["[_self_, glue]", "[glue]", "[glue, superglue, _self_]", "[/task: glue, _self_]"]
)
def test_other_defaults_lists_are_refused(entries, tmp_path):
    write(tmp_path, "task/mine", f"defaults: {entries}\nmembers: [cola]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: defaults=.* is not allowed; .* \[<option>"):
        read_option(option_folders(tmp_path), "task", "mine")


def test_an_option_stands_on_one_other_only(tmp_path):
    write(tmp_path, "task/one", "defaults: [glue, _self_]\nmembers: [cola]\n")
    write(tmp_path, "task/two", "defaults: [one, _self_]\nmembers: [rte]\n")
    with pytest.raises(ConfigError, match="which has no defaults itself"):
        read_option(option_folders(tmp_path), "task", "two")


def test_a_base_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path, "task/mine", "defaults: [gleu, _self_]\nmembers: [cola]\n")
    with pytest.raises(ConfigError, match="task=gleu is not an option; did you mean glue"):
        read_option(option_folders(tmp_path), "task", "mine")
