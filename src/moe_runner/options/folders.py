"""Where the option files are."""

from __future__ import annotations

from pathlib import Path

PACKAGED = Path(__file__).parents[1] / "conf"  # in the wheel; in a checkout it is at the top level
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
