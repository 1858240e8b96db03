"""A row per method: what the tests of all methods have to know of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from moe_runner.options.method import Method
from moe_runner.registry import METHODS

COSINE = ("projection.weight", "projection.bias", "expert_vectors", "log_scale")
NOISY = ("gate", "noise")
PROJECTIONS = ("keys", "values", "key_bias", "output_bias")
HYPER = (
    "embeddings.weight", "hypernet.layers.weight",
    *(f"{n}.{p}" for n in ("first", "second", "hypernet.hidden", "hypernet.down",
      "hypernet.down_bias", "hypernet.up", "hypernet.up_bias") for p in ("weight", "bias")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is expected of one method.

    Args:
        options: that make it small enough for the tiny models (d_model 16, d_ff 32, 4 layers).
        experts: none, groups of the neurons, or copies of the FFN.
        merges: whether the tuned model has a dense form.
        keeps_switch: whether it takes a Switch Transformer's experts and router.
        router: names of the router's parameters.
        beside: names of the parameters that stand beside the experts; "experts" stands for those
            of a whole FFN.
        beside_lr_scale: what the learning rate of these is multiplied by, beside all else.
        code: whose reference code has extras for it when tuning.
        starts_within: of the dense model's output.
    """

    options: dict[str, Any] = field(default_factory=dict)
    experts: Literal["none", "groups", "copies"] = "copies"
    merges: bool = False
    keeps_switch: bool = False
    router: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    beside_lr_scale: float = 1.0
    code: Literal["emoe", "hypermoe", "none"] = "none"
    starts_within: float = 1e-6


GROUPS = {"num_experts": 8, "top_k": 2, "layers": "all"}
ALL_ROWS = {
    "dense": Row(experts="none", merges=True),
    "noisy_tuning": Row(experts="none", merges=True),
    "emoe": Row(options=GROUPS, experts="groups", merges=True, code="emoe"),
    "emoe_learn": Row(
        options={**GROUPS, "router_dim": 8}, experts="groups", router=COSINE, code="emoe"
    ),
    "gmoe": Row(
        options={"num_experts": 4, "top_k": 2, "layers": "all", "router_dim": 8},
        router=COSINE,
        code="emoe",
    ),
    "moe": Row(options={"num_experts": 4}, keeps_switch=True, router=NOISY, code="hypermoe"),
    "moe_share": Row(
        options={"num_experts": 4, "top_k": 2},
        keeps_switch=True,
        router=NOISY,
        beside=("experts",),
        code="hypermoe",
    ),
    "moe_adapter": Row(
        options={"num_experts": 4, "width": 3},
        keeps_switch=True,
        router=NOISY,
        beside=tuple(f"experts.{name}" for name in PROJECTIONS),
        code="hypermoe",
    ),
    "hypermoe": Row(
        options={
            "num_experts": 4,
            "width": 3,
            "embedding_dim": 6,
            "layer_dim": 2,
            "hypernet_lr_scale": 0.25,
        },
        keeps_switch=True,
        router=NOISY,
        beside=HYPER,
        beside_lr_scale=0.25,
        code="hypermoe",
        starts_within=1e-2,
    ),  # fmt: skip
    "toy": Row(options={"num_experts": 4, "layers": "all"}, router=("weight",)),  # tests/extending
}
ROWS = {name: row for name, row in ALL_ROWS.items() if name in METHODS}  # what is installed
CONVERTING = [name for name, row in ROWS.items() if row.experts != "none"]
COPIES = [name for name, row in ROWS.items() if row.experts == "copies"]
KEEP_SWITCH = [name for name, row in ROWS.items() if row.keeps_switch]


def a_few(names: Iterable[str]) -> list:
    """Mark all methods as long but those of each paper: a whole run of each takes seconds."""
    few = ("dense", "emoe", "gmoe", "hypermoe")
    return [pytest.param(name, marks=() if name in few else pytest.mark.long) for name in names]


def small(name: str, family: str = "", **options: Any) -> Method:
    """Make a method that fits the tiny model of a family."""
    settings = {**ROWS[name].options, **options}
    if family == "switch" and ROWS[name].keeps_switch:
        settings |= {"num_experts": None, "top_k": 1}
    method: Method = METHODS[name](**settings)
    return method
