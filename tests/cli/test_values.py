"""A composed config becomes settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from moe_runner.cli.values import parse_config
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_an_interpolation_that_leads_nowhere_is_one_line():
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", ["paths.output=${foo}"]))
    assert caught.value.problems == (
        "paths.output refers to something that is not there: Interpolation key 'foo' not found",
    )


def test_hydras_node_is_left_out():
    cfg = compose("config", return_hydra_config=True)
    assert parse_config(cfg).method == EMoE()


@pytest.mark.parametrize("module", ["moe_runner.options.settings", "moe_runner.cli.arguments"])
def test_importing_takes_neither_torch_nor_transformers(module):
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
