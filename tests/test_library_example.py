"""scripts/library_example.py does what its lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "library_example.py"


@pytest.mark.long
@pytest.mark.parametrize("name", ["bert_tiny", "llama_tiny"])
def test_the_example_tunes_saves_loads_and_merges(name):
    folder = SCRIPT.parents[1] / "src" / "moe_runner" / "assets" / name
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss (\S+)", done.stdout)]
    assert losses[-1] < losses[0] < 0.6
    (loaded,) = re.findall(r"loaded again, largest difference: (\S+)", done.stdout)
    assert float(loaded) < 1e-5
    (merged,) = re.findall(r"merged into the dense model: +(\S+)", done.stdout)
    assert 1e-5 < float(merged) < 1  # of the 12 of 16 experts that a token had not taken
    assert done.stdout.endswith("right, sparse and dense: 100% 100%\n")
