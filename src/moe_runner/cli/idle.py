"""Values that are typed and do nothing in the run that they are typed for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_runner import tasks
from moe_runner.options.errors import show
from moe_runner.options.settings import Settings
from moe_runner.sweeps.plan import learning_rates

EVALUATING = {  # what `evaluate=<id>` reads besides the stored run; a model must suit the task
    "evaluate", "task", "task.ood", "task.ood_dir", "task.data_dir", "model", "logger", "device",
    "threads", "quiet", "debug",
}  # fmt: skip
RATES = ("tuning.learning_rate", "tuning.learning_rates", "model.lr_scale")


def idle_words(settings: Settings, typed: Mapping[str, Any]) -> dict[str, str]:
    """Find what was typed and does nothing.

    Args:
        settings: what the words make, validated.
        typed: groups and dotted keys of the command line, and the value of each, none of which is
            null or false.

    Returns:
        A line for each such key, with a remedy.
    """
    if settings.evaluate is not None:
        return {
            key: f"{key}={show(value)} does nothing with evaluate={settings.evaluate}: a stored "
            f"run is evaluated as it is, on the sets of task.ood; leave {key} out"
            for key, value in typed.items()
            if key not in EVALUATING and key.partition(".")[0] not in ("paths", "model")
        }
    reasons = {
        **{key: line for key in RATES if key in typed and (line := idle_rate(settings, key))},
        **idle_others(settings),
    }
    return {
        key: f"{key}={show(typed[key])} does nothing: {reason}"
        for key, reason in reasons.items()
        if key in typed
    }


def idle_rate(settings: Settings, key: str) -> str | None:
    """Say why a key of the learning rate does nothing; None if it does something for some task."""
    tuning, model = settings.tuning, settings.model
    other = {  # twice as much would be another run, if the key did something
        "tuning.learning_rate": replace(tuning, learning_rate=2 * tuning.learning_rate),
        "tuning.learning_rates": replace(
            tuning, learning_rates=tuple(2 * rate for rate in tuning.learning_rates)
        ),
        "model.lr_scale": tuning,
    }[key]
    scale = 2 * model.lr_scale if key == "model.lr_scale" else model.lr_scale
    changed = replace(settings, tuning=other, model=replace(model, lr_scale=scale))
    for name in tasks.members(settings.task):
        spec = tasks.spec(settings.task, name)
        recipe = tasks.recipe(spec, tasks.form(spec, model.family))
        if learning_rates(settings, recipe) != learning_rates(changed, recipe):
            return None
    if key == "tuning.learning_rates" and not settings.search.tune_learning_rate:
        return f"search={settings.search.name} tries no rates; use search=paper"
    if settings.trainer.learning_rate is not None:
        return "trainer.learning_rate is the rate; leave one of them out"
    if settings.search.tune_learning_rate:
        return f"search={settings.search.name} tries tuning.learning_rates; leave it out"
    return f"task={settings.task.suite} has a rate of its own; use trainer.learning_rate"


def idle_others(settings: Settings) -> dict[str, str]:
    """Say what the other keys that do nothing here are waiting for."""
    found: dict[str, str] = {}
    if settings.logger.name == "none":
        reason = "nothing is sent anywhere; add logger=wandb, or leave it out"
        found |= {f"logger.{name}": reason for name in ("project", "mode", "group")}
    if settings.trainer.max_steps is not None:
        steps = f"trainer.max_steps={settings.trainer.max_steps} is how long a run trains"
        found["trainer.epochs"] = f"{steps}; leave one of them out"
    if not settings.task.ood:
        found["task.ood_dir"] = "task.ood names no set; add some, or leave it out"
    return found
