"""Turn pretrained transformers into mixtures of experts, fine-tune them, compare with the papers.

    from moe_runner import EMoE, convert, merge

The options of every method are here under the names of their classes. Nothing loads torch before it
is used: the command line starts without it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_MODULES = {
    "Protocol": "moe_runner.options.protocol",
    "auxiliary_loss": "moe_runner.moe.layer",
    "convert": "moe_runner.conversion.convert",
    "for_inference": "moe_runner.moe.layer",
    "from_pretrained": "moe_runner.conversion.saving",
    "merge": "moe_runner.conversion.convert",
    "save_pretrained": "moe_runner.conversion.saving",
    "to_standard": "moe_runner.conversion.standard",
}


def _methods() -> dict[str, Any]:
    """List the options of the methods by the names of their classes; no torch."""
    from moe_runner.registry import METHODS

    return {options.__name__: options for options in METHODS.values()}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "__all__":
        return __dir__()
    if name == "__version__":
        return version("moe-runner")
    if not name.startswith("_") and name in (found := _methods()):
        return found[name]
    raise AttributeError(f"module 'moe_runner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_MODULES, *_methods()])
