"""One list of the folders of option files: ours, installed packages', the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF, option_folders, option_names

GROUPS = ("methods", "families", "suites")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay out a distribution as pip does, in a folder of sys.path; the folder of its package."""

    def build(name: str, group: str = "moe_runner.methods", *options: str) -> Path:
        package, info = tmp_path / name, tmp_path / f"{name}-1.0.dist-info"
        (package / "deep").mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}.deep.options:It\n")
        for option in options:
            write(package / "conf", option)
        monkeypatch.syspath_prepend(tmp_path)
        return package

    return build


def write(folder: Path, option: str) -> Path:
    file = folder / f"{option}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("name: emoe\n")
    return file


@pytest.mark.parametrize("group", GROUPS)
def test_a_package_with_a_component_adds_its_folder_without_being_imported(group, install):
    package = install("toy_of_a_test", f"moe_runner.{group}", "method/toy")
    folders = option_folders()
    assert folders[0] == CONF.resolve()
    assert package / "conf" in folders
    assert "toy" in option_names(folders, "method")
    assert "toy_of_a_test" not in sys.modules


def test_other_packages_and_those_without_a_folder_add_nothing(install):
    before = option_folders()
    install("other", "console_scripts", "method/toy")
    install("bare")
    assert option_folders() == before


def test_the_users_folder_comes_last_and_ours_counts_once(install, tmp_path):
    package = install("toy_of_a_test", "moe_runner.suites", "method/toy")
    write(tmp_path / "own", "method/mine")
    *others, package_folder, own = option_folders(tmp_path / "own")
    assert (package_folder, own) == (package / "conf", tmp_path / "own")
    assert option_folders(CONF) == (*others, package_folder)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("method/emoe", "method=emoe"),
        ("task/glue/cola", "task=glue/cola"),
        ("study/emoe_gates", "study=emoe_gates"),
        ("hydra/launcher/slurm", "hydra/launcher=slurm"),
        ("config", "config.yaml"),
    ],
)
def test_a_name_of_ours_is_refused_with_both_files(option, given, tmp_path):
    file = write(tmp_path, option)
    with pytest.raises(ConfigError) as caught:
        option_folders(tmp_path)
    ours = CONF.resolve() / f"{option}.yaml"
    assert caught.value.problems == (f"{given} is there twice: {ours} and {file}; rename one file",)


def test_a_name_of_a_package_is_refused_too(install, tmp_path):
    package = install("toy_of_a_test", "moe_runner.methods", "method/toy", "method/emoe")
    own = write(tmp_path / "own", "method/toy")
    with pytest.raises(ConfigError) as caught:
        option_folders(tmp_path / "own")
    ours = CONF.resolve() / "method/emoe.yaml"
    theirs = package / "conf/method"
    assert set(caught.value.problems) == {
        f"method=emoe is there twice: {ours} and {theirs}/emoe.yaml; rename one file",
        f"method=toy is there twice: {theirs}/toy.yaml and {own}; rename one file",
    }


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"--config-dir {tmp_path}/none is not a folder"):
        option_folders(tmp_path / "none")
