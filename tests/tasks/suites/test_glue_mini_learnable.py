"""The bundled BERT learns every task of `glue_mini`: minutes, so not in the quick suite."""

from __future__ import annotations

import json

import pytest

from moe_runner.tasks.mini.glue import TASKS
from tests.tasks.baselines import majority_score
from tests.training.test_command import moe_run

MARGIN = 0.05  # over the best constant prediction


@pytest.mark.slow
def test_the_fine_tuned_bert_tiny_beats_the_majority_on_every_task(tmp_path):
    done = moe_run("method=dense", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {}
    for file in tmp_path.glob("outputs/runs/*/result.json"):
        result = json.loads(file.read_text())
        found[result["axes"]["task"]] = result["primary"]
    assert found.keys() == set(TASKS)
    weak = {t: (s, majority_score(t)) for t, s in found.items() if s < majority_score(t) + MARGIN}
    assert not weak
