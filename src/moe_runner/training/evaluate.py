"""Evaluate a finished run again, on other out-of-domain sets."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

from safetensors import SafetensorError

from moe_runner import tasks
from moe_runner.backbones.weights import find_weights
from moe_runner.files import one_line, write_json
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Logger, Settings
from moe_runner.options.task import Task
from moe_runner.runs.objects import read_object
from moe_runner.runs.result import Scores, figures_by_set
from moe_runner.runs.run import Run, is_open
from moe_runner.runs.store import RunFolder, Store
from moe_runner.tasks import ABSENT
from moe_runner.training import checkpoint
from moe_runner.training.callbacks import ShowProgress
from moe_runner.training.fit import (
    Prepared,
    Resources,
    build,
    evaluate_ood,
    make_trainer,
    take_final_form,
)

log = logging.getLogger(__name__)


def kept_folder(run: Run, store: Store, given: str) -> RunFolder:
    """Find the folder of a finished run whose weights were kept.

    Args:
        run: as stored.
        store: holds it.
        given: what the user typed, for messages: "evaluate=<id>".

    Raises:
        ConfigError: if the run is not done, its weights were not kept, or the backbone's files
            have changed since.
        StoreError: if the result is damaged.
    """
    folder = RunFolder(store.folder(run.id))
    if store.result(run.id) is None:
        raise ConfigError(f"{given} is not done; run it first")
    if not folder.best.is_dir():
        raise ConfigError(
            f"{given} was not kept; run its command again with keep_model=best rerun=true"
        )
    found_weights = find_weights(run.model)
    if found_weights.problem is None and found_weights.fingerprint() != run.weights:
        raise ConfigError(
            f"{given}: the weights of model={run.model.name} are not those that it was tuned from; "
            "run it again"
        )
    return folder


def load_best(ready: Prepared, folder: RunFolder, given: str) -> None:
    """Load the weights of a run's best epoch.

    Args:
        ready: the run's model, as `build` makes it.
        folder: of the run.
        given: see `kept_folder`.

    Raises:
        ConfigError: if they cannot be loaded.
    """
    try:
        checkpoint.load_trained(ready.backbone.model, folder.best)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{given}: {folder.best} cannot be loaded ({one_line(error)}); run its command again "
            "with keep_model=best rerun=true"
        ) from error


def evaluate_kept(
    run: Run, settings: Settings, store: Store, resources: Resources
) -> dict[str, Scores | None]:
    """Load the best weights of a run and evaluate them on the OOD sets of the settings.

    Args:
        run: as stored.
        settings: `task.ood` and `task.ood_dir` choose the sets.
        store: holds the run.
        resources: where to compute.

    Returns:
        Scores by set; they are also added to `ood.json` in the run's folder.

    Raises:
        ConfigError: if the run is not done, its weights were not kept or cannot be loaded, the
            backbone's files or its own data have changed since, or no set is named.
        StoreError: if ood.json or the result is damaged.
    """
    given = f"evaluate={run.id}"
    folder = kept_folder(run, store, given)
    file = folder.path / "ood.json"
    read_object(file, "delete it")  # now, for its damage: evaluating takes long
    if not settings.task.ood:
        raise ConfigError(
            "task.ood=[] names no set to evaluate on; use for example task.ood=[imdb]"
        )
    task = replace(
        run.task,
        ood=settings.task.ood,
        ood_dir=settings.task.ood_dir or run.task.ood_dir,
        data_dir=settings.task.data_dir or run.task.data_dir,
    )
    _refuse_other_data(run, task, given)
    if resources.logger.name != "none":
        log.warning("  logger=%s: an evaluation is written to ood.json only", resources.logger.name)
        resources = replace(resources, logger=Logger(name="none"))
    ready = build(replace(run, task=task), resources)
    load_best(ready, folder, given)
    take_final_form(ready, run, resources)
    ready.backbone.model.eval()
    spec = ready.data.spec
    train = ready.encode(ready.data.train, spec.columns)  # as in training, so it is cached
    with closing(ShowProgress(run.label, spec.metrics, settings.quiet)) as progress:
        trainer = make_trainer(run, folder, resources, ready, train, train, progress)
        found = evaluate_ood(trainer, ready, run)
    known = read_object(file, "delete it") or {}  # anew: other evaluations may have ended since
    write_json(file, {**known, **figures_by_set(found)})
    return found


def _refuse_other_data(run: Run, task: Task, given: str) -> None:
    """Refuse data that are not the run's own, since they say what its classes mean."""
    here = tasks.fingerprint(task, run.task_name)
    other = [
        split
        for split, of in run.data.items()
        if not split.startswith("ood/")
        and here.get(split, ABSENT) not in (of, ABSENT)
        and not (is_open(of) or is_open(here[split]))
    ]
    if other:
        raise ConfigError(
            f"{given}: the data ({', '.join(other)}) are not those that it was tuned on; give them "
            "with task.data_dir, or run it again"
        )
