"""Components of installed packages join this project's own."""

from __future__ import annotations

import pytest

from moe_runner.options.errors import ConfigError
from moe_runner.registry import Registry


@pytest.fixture
def announce(tmp_path, monkeypatch):
    """Lay out a distribution with one entry point, as pip does, in a folder of sys.path."""

    def build(package: str, group: str, line: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return build


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("method", "moe_runner.methods"),
        ("family", "moe_runner.families"),
        ("suite", "moe_runner.suites"),
    ],
)
def test_an_entry_point_of_its_group_adds_a_component(kind, group, announce):
    announce("a_package", group, "added = json:dumps")
    registry = Registry(kind, group, lambda: {"own": lambda: 3})
    assert list(registry) == ["own", "added"]
    assert registry["added"]([1]) == "[1]"
    assert list(Registry("other", "moe_runner.others", dict)) == []


def test_a_name_that_is_there_already_is_refused_with_both_origins(announce):
    announce("a_package", "moe_runner.methods", "own = json:dumps")
    with pytest.raises(ConfigError, match="method own of the package a_package .* from moe-runner"):
        len(Registry("method", "moe_runner.methods", lambda: {"own": lambda: 3}))


def test_an_unknown_name_names_the_nearest_and_loads_nothing():
    registry = Registry(
        "suite", "moe_runner.suites", lambda: {"glue": lambda: pytest.fail("loaded")}
    )
    with pytest.raises(ConfigError, match="suite=gleu is not an option; did you mean glue"):
        registry.find("gleu")
