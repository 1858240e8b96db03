"""The config.json of a model folder, read as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_runner.options.errors import show

HEADS = (  # of attention, as transformers' configs name their number
    "num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads",
    "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
ASSETS = Path(__file__).parents[1] / "assets"  # of the bundled backbones, a folder each


def read_config(file: Path, given: str, problems: list[str]) -> dict[str, Any] | None:
    """Read a config.json.

    Args:
        file: the config.json.
        given: what the user typed to name its folder, for messages.
        problems: a file that is not there or not an object of JSON is appended, one line.

    Returns:
        Its content; None after a problem.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is not readable"
        problems.append(f"{given} is not a model folder: {file} {reason}")
        return None


def zero_sizes(config: Mapping[str, Any], names: Mapping[str, str], file: str) -> list[str]:
    """Find the sizes of a config.json that no model has.

    Args:
        config: the file's content.
        names: our name of a size -> its name in the file.
        file: names it in messages.

    Returns:
        One line per size, and per number of heads, below 1.
    """
    return [
        f"{file}: {key}={show(config[key])} is not a size of a model; use the one of its weights"
        for key in dict.fromkeys((*names.values(), *HEADS))
        if isinstance(config.get(key), int) and config[key] < 1
    ]
