"""Results for tests, made by hand."""

from __future__ import annotations

from typing import Any

from moe_runner.runs.result import Axes, Flops, Parameters, Result, Scores, Speed


def scores(primary: float, **metrics: float) -> Scores:
    """Make the scores of a set; `metrics` are not checked against the primary one."""
    return Scores(metrics=metrics, primary=primary, loss=1.0, examples=10, routing={})


def make_result(axes: dict[str, Any] | None = None, primary: float = 0.5, **more: Any) -> Result:
    """Make a result.

    Args:
        axes: what they are not said to be, they are of dense bert_tiny on CoLA.
        primary: score; also of the one validation set.
        **more: fields of `Result`.
    """
    known: dict[str, Any] = {
        "method": "dense", "model": "bert_tiny", "tuning": "full", "protocol": "paper",
        "suite": "glue", "task": "cola", "learning_rate": 1e-3, "seed": 0,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "id": "0123456789abcdef", "settings": {}, "metrics": ("matthews",),
        "id_metrics": {"validation": scores(primary)}, "ood_metrics": {}, "best_epoch": 1.0,
        "selection": "best epoch on validation, the set that is reported", "learning_curve": (),
        "parameters": Parameters(10, 10, 10, 0, 10), "flops_per_token": Flops(20, 20),
        "converted_layers": (), "clusters": None, "routing": {"routing/changed": None},
        "speed": Speed(1.0, 10.0, 0.0), "wall_seconds": 1.0, "resumed_at_update": 0, "updates": 1,
        "peak_memory_bytes": 1, "device": "cpu", "threads": 1, "data": {}, "skipped": {},
        "weights": "",
    }  # fmt: skip
    return Result(axes=Axes(**{**known, **(axes or {})}), primary=primary, **{**fields, **more})
