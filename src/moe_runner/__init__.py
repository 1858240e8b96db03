"""Turn pretrained transformers into mixtures of experts, fine-tune them, compare with the papers.

The names below load torch, and only when they are used: the command line starts without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_runner.config import Dense, EMoE
    from moe_runner.methods import convert, from_pretrained, merge, save_pretrained

__all__ = ["Dense", "EMoE", "convert", "from_pretrained", "merge", "save_pretrained"]

_MODULES = {"Dense": "moe_runner.config", "EMoE": "moe_runner.config"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moe_runner' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "moe_runner.methods")), name)
