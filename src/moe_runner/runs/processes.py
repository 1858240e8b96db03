"""The processes of one command: `torchrun` and `accelerate launch` start several.

Each carries out the same plan. The first one, the leader, owns the store and the terminal; it says
of every run whether all of them carry it out. Imports torch only where there are several.
"""

from __future__ import annotations

import os
from typing import Any

from moe_runner.options.errors import ConfigError


def world_size() -> int:
    """Count the processes of this command, on all hosts."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_leader() -> bool:
    """Tell whether this process writes and prints."""
    return world_size() == 1 or os.environ.get("RANK") == "0"


def cluster_job() -> tuple[str | None, int]:
    """Tell which job of a Slurm cluster this is, and how often Slurm has started it again.

    Returns:
        `12_3`, or `12` where there is no array; None outside of a job. Then the number of restarts.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = (
        f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
    )
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def was_this_job(job: str | None, restart: int) -> bool:
    """Tell whether who noted a job is this very one, before the cluster started it again.

    It is dead then, whatever its heartbeat says; a file server may keep its locks for a while.

    Args:
        job: noted by `cluster_job`.
        restart: noted with it.
    """
    own, restarts = cluster_job()
    return own is not None and own == job and restarts > restart


def connect(device: str) -> None:
    """Join the other processes, if there are any.

    Args:
        device: as the user gave it: `cpu` connects by gloo, else what the GPUs have.

    Raises:
        ConfigError: if torchrun's variables are incomplete.
    """
    if world_size() == 1:
        return
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={world_size()} without {', '.join(missing)}: start moe-run by torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
    from accelerate import PartialState

    PartialState(cpu=device == "cpu")  # the Trainer finds and uses it


def tell(value: Any = None) -> Any:
    """Hand a value of the leader to all processes; every one of them calls this at the same point.

    Args:
        value: what the leader says; that of the others is not read.

    Returns:
        The leader's value.
    """
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def total(amount: Any) -> Any:
    """Sum a tensor on the CPU over all processes; each of them calls this."""
    if world_size() == 1:
        return amount
    from accelerate import PartialState
    from accelerate.utils import reduce

    return reduce(amount.to(PartialState().device), reduction="sum").cpu()


def wait() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def disconnect() -> None:
    """Leave the other processes, at the end of the command."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
