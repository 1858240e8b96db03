"""Turn pretrained transformers into mixtures of experts, fine-tune them, compare with the papers.

The names below load torch, and only when they are used: the command line starts without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_runner.config import (
        Dense,
        EMoE,
        EMoELearn,
        GMoE,
        HyperMoE,
        MoE,
        MoEAdapter,
        MoEShare,
        NoisyTuning,
        Protocol,
    )
    from moe_runner.methods import convert, from_pretrained, merge, save_pretrained
    from moe_runner.moe.layer import auxiliary_loss

_MODULES = {
    **dict.fromkeys(
        (
            "Dense",
            "EMoE",
            "EMoELearn",
            "GMoE",
            "HyperMoE",
            "MoE",
            "MoEAdapter",
            "MoEShare",
            "NoisyTuning",
            "Protocol",
        ),
        "moe_runner.config",
    ),
    **dict.fromkeys(
        ("convert", "from_pretrained", "merge", "save_pretrained"), "moe_runner.methods"
    ),
    "auxiliary_loss": "moe_runner.moe.layer",
}

__all__ = [
    "Dense",
    "EMoE",
    "EMoELearn",
    "GMoE",
    "HyperMoE",
    "MoE",
    "MoEAdapter",
    "MoEShare",
    "NoisyTuning",
    "Protocol",
    "auxiliary_loss",
    "convert",
    "from_pretrained",
    "merge",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moe_runner' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
