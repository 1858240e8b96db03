"""Carry out runs: each once, whatever the number of processes, and one error stops no other run.

Imports torch only when there is something to do.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from moe_runner.files import check_room, one_line, unusable
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Settings
from moe_runner.report.summary import headline
from moe_runner.runs import processes
from moe_runner.runs.environment import environment
from moe_runner.runs.log import logged_to
from moe_runner.runs.result import PrimaryOnly, Result
from moe_runner.runs.run import Run
from moe_runner.runs.store import RunBusy, RunDone, RunFolder, Store

log = logging.getLogger(__name__)

GO, SKIP = "go", "skip"  # what the leader of several processes tells of a run


def attempt(
    run: Run, settings: Settings, store: Store, reasons: dict[str, str]
) -> Result | PrimaryOnly | None:
    """Carry out one run; an error in it is told and does not stop the others.

    Of several processes one alone cannot go on: the error ends this one, and torchrun the others.

    Args:
        run: to carry out.
        settings: what is not in the run: device, logger, what to keep.
        store: where the run's folder is.
        reasons: why a run is not done, where the store does not know it, is put here by its id.

    Returns:
        The result; None after an error.

    Raises:
        ConfigError: for a mistake of the user.
    """
    error_file = store.folder(run.id) / "error.txt"
    try:
        return execute(run, settings, store)
    except RunBusy as error:
        reason = reasons[run.id] = str(error)
    except ConfigError:
        raise
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        reason = f"{type(error).__name__}: {one_line(error).partition(chr(10))[0]}"
        if error_file.exists():
            reason = f"{reason} (see {error_file})"
        else:
            reasons[run.id] = reason
    log.warning("  failed; the reason comes at the end")  # once: a sweep's lines would hide it
    if processes.world_size() > 1:
        print(f"failed: {run.label}: {reason}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the others may be waiting for this one in a collective operation
    return None


def execute(run: Run, settings: Settings, store: Store) -> Result | PrimaryOnly:
    """Carry out one run, or return its result if it is done.

    Of several processes the leader decides and tells the others, once per run.
    """
    if not processes.is_leader():
        return follow(run, settings, store)
    # An attempt that was cut short goes on
    if settings.rerun and (store.folder(run.id) / "result.json").exists():
        store.forget(run.id)
    result = store.result(run.id)
    if result is not None:
        processes.tell(SKIP)
        log.info("  done before: %s", headline(result))
        if settings.keep_model == "best" and not RunFolder(store.folder(run.id)).best.is_dir():
            log.warning("  its weights were not kept; add rerun=true to train and keep them")
        exported = RunFolder(store.folder(run.id)).export
        if settings.export != "none":
            # dense and hf never fit the same run, so this tells all three forms apart
            same = (exported / "moe_runner.json").is_file() == (settings.export == "moe")
            if exported.is_dir() and same:
                log.info("  exported before: %s", exported)
            else:
                what = "exported in another form" if exported.is_dir() else "not exported"
                log.warning("  it was %s; add rerun=true to train and export it", what)
        return result
    for key in ("output", "cache"):
        folder = getattr(settings.paths, key)
        if (reason := unusable(Path(folder))) is not None:
            raise ConfigError(f"paths.{key}={folder}: {reason}")
    import torch  # seconds

    from moe_runner.training.fit import carry_out

    check_room()
    resources = find_resources(settings)
    software = environment(settings.threads or torch.get_num_threads())
    try:
        with (
            store.claim(run.id, config_yaml=run.to_yaml(), environment=software) as folder,
            logged_to(folder.path / "run.log"),
        ):
            processes.tell(GO)
            found = carry_out(run, folder, resources)
            assert isinstance(found, Result)  # of the leader
            result = folder.finish(found)
            folder.discard_checkpoint(keep_best=settings.keep_model == "best")
            log.info("  %s", headline(result))
    except RunDone:  # by another command, since we looked
        processes.tell(SKIP)
        result = store.result(run.id)
        assert result is not None
    return result


def follow(run: Run, settings: Settings, store: Store) -> Result | PrimaryOnly:
    """Carry out one run beside the leader, if it says so; write nothing."""
    if processes.tell() == SKIP:
        return PrimaryOnly(math.nan)
    from moe_runner.training.fit import carry_out

    return carry_out(run, RunFolder(store.folder(run.id)), find_resources(settings))


def find_resources(settings: Settings) -> Any:
    """Choose device, threads and caches; imports torch."""
    from moe_runner.training.device import choose_device
    from moe_runner.training.fit import Resources

    return Resources(
        device=choose_device(settings.device),
        threads=settings.threads,
        cluster_cache=Path(settings.paths.cache) / "clusters",
        logger=settings.logger,
        keep_model=settings.keep_model == "best",
        export=settings.export,
        quiet=settings.quiet,
        data_cache=Path(settings.paths.cache),
    )
