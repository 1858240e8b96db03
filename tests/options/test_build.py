"""From a tree of plain values to a dataclass."""

from __future__ import annotations

from moe_runner.options.build import build
from moe_runner.options.model import Model


def test_a_missing_key_is_told():
    problems: list[str] = []
    assert build(Model, {"name": "x", "family": "bert"}, "model", problems) is None
    assert problems == [
        "model.d_model is missing; give model.d_model=<value>",
        "model.d_ff is missing; give model.d_ff=<value>",
        "model.num_layers is missing; give model.num_layers=<value>",
    ]
