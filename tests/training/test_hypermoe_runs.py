"""Whole runs of HyperMoE: the norms that are recorded, the warning, noise in evaluations."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.options.protocol import Protocol
from tests.training.test_runs import carry_out, elsewhere, numbers, stopped_after_training


@pytest.mark.parametrize(("scale", "warns"), [("auto", False), (30.0, True)])
def test_a_run_records_norms_and_warns_once_of_a_hyper_expert_that_outgrows_the_experts(
    scale, warns, make_settings, only_run
):
    method = HyperMoE(num_experts=4, width=3, hypernet_lr_scale=scale)
    settings = make_settings(method=method)
    result, folder = carry_out(settings, only_run(settings))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["routing/beside_ratio"] for line in lines]
    assert len(ratios) == 2
    assert all(line["routing/experts_norm"] > 0 for line in lines)
    assert (max(ratios) > 3) == warns
    best = next(line for line in lines if line["epoch"] == result["best_epoch"])
    for name in ("experts_norm", "beside_norm", "beside_ratio"):
        assert result["routing"][f"routing/{name}"] == best[f"routing/{name}"]
        assert f"routing/{name}" in result["id_metrics"]["validation"]
    lines_of_log = (folder / "run.log").read_text().splitlines()
    warnings = [line for line in lines_of_log if "a HyperExpert's output is" in line]
    assert [("WARNING" in line) for line in warnings] == [True] * warns


@pytest.mark.long
def test_with_noise_in_evaluations_a_kill_gives_the_same_numbers(
    make_settings, only_run, monkeypatch
):
    protocol = Protocol(jitter=0.3, jitter_in_evaluation=True)
    method = HyperMoE(width=3, embedding_dim=6)
    settings = dataclasses.replace(make_settings("switch", method, epochs=1), protocol=protocol)
    run = only_run(settings)
    whole, _ = carry_out(settings, run)
    quiet = only_run(dataclasses.replace(settings, protocol=Protocol(jitter=0.3)))
    still, _ = carry_out(settings, quiet)
    assert still["id_metrics"]["validation"]["loss"] != whole["id_metrics"]["validation"]["loss"]
    result = stopped_after_training(elsewhere(settings), run, monkeypatch)
    assert numbers(result) == numbers(whole)
