"""Optuna's sweeper: a trial is a run, and its primary metric is what is optimised."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import yaml

from moe_runner.cli import launching
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import option_folders
from moe_runner.sweeps.compose import compose_settings
from moe_runner.sweeps.plan import make_plan

FOLDERS = option_folders()
OPTUNA = importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None


@pytest.mark.long
@pytest.mark.skipif(not OPTUNA, reason="no hydra-optuna-sweeper: pip install -e '.[optuna]'")
def test_optuna_finds_the_best_of_its_trials(tmp_path):
    command = [
        sys.executable, "-m", "moe_runner.train", "-m", "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3", "trainer.learning_rate=interval(1e-4,1e-2)", "method=dense",
        "task=glue_mini/sst2", "task.limit=40", "task.eval_limit=40", "trainer.max_steps=2",
        "device=cpu", "threads=1", "paths.output=out",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [json.loads(f.read_text()) for f in tmp_path.glob("out/runs/*/result.json")]
    assert len(found) == 3
    scores = {result["axes"]["learning_rate"]: result["primary"] for result in found}
    best = yaml.safe_load((tmp_path / "out/hydra/optimization_results.yaml").read_text())
    assert best["best_value"] == max(scores.values())
    rate = best["best_params"]["trainer.learning_rate"]
    assert scores[float(f"{rate:.12g}")] == best["best_value"]
    assert "Best parameters: " in done.stdout
    begun = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.split()[0] for line in begun if "]" in line.split()[0]] == [
        "[1/3]", "[2/3]", "[3/3]",
    ]  # fmt: skip
    assert "left" not in begun[0]
    assert all(line.endswith(" left") for line in begun[-2:])


@pytest.mark.parametrize(
    ("model", "task", "direction"),
    [("bert_tiny", "glue_mini/cola", "maximize"), ("gpt2_tiny", "wikitext_mini", "minimize")],
)
def test_a_search_for_the_worst_is_refused(model, task, direction, tmp_path, monkeypatch):
    plan = make_plan(
        compose_settings(FOLDERS, {"model": model, "task": task, "paths.output": str(tmp_path)})
    )
    other = {"maximize": "minimize", "minimize": "maximize"}[direction]
    for chosen in (None, direction):
        monkeypatch.setattr(launching, "direction", lambda chosen=chosen: chosen)
        launching.check_direction(plan)
    monkeypatch.setattr(launching, "direction", lambda: other)
    with pytest.raises(ConfigError, match=f"use hydra.sweeper.direction={direction}"):
        launching.check_direction(plan)
