"""What a run needs to go on: the newest complete checkpoint, holding what trains and no more."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor

from moe_runner.backbones.integrity import file_problem
from moe_runner.files import is_starved, writing_tensors
from moe_runner.moe.routing import forget_gates
from moe_runner.runs.processes import is_leader

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
READING = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    EOFError,
    UnpicklingError,
    SafetensorError,
)
STATE = "trainer_state.json"  # of the Trainer; written last
STATES = ("optimizer*", "scheduler.pt", "rng_state*")  # sharded, the optimizer's is a folder


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Collect what training changes: trainable parameters and persistent buffers.

    Frozen weights are not kept: loading the backbone and converting it gives them again.

    Args:
        model: ready for training. Where its weights are sharded over processes (FSDP), all of them
            call this together.

    Returns:
        Contiguous tensors on the CPU, by name, tied parameters once; of a sharded model empty on
        all processes but the first.
    """
    kept = trained_names(model)
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in whole_state(model).items()
        if name in kept
    }


def trained_names(model: nn.Module) -> set[str]:
    """Name what `trained_state` keeps."""
    frozen = {
        name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad
    }
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shared -= {name for name, _ in model.named_parameters()}
    return {name for name in model.state_dict() if name not in frozen and name not in shared}


def is_sharded(model: nn.Module) -> bool:
    """Tell whether the weights are spread over processes, by torch's `fully_shard`."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict; that of a sharded model is gathered on the first process's CPU."""
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write what training changed; see `trained_state`. Of several processes the leader writes."""
    if is_leader() or is_sharded(model):
        state = trained_state(model)
    if is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        save_state(state, folder)


def save_state(state: dict[str, Tensor], folder: Path) -> None:
    """Write what `trained_state` found."""
    with writing_tensors(folder):
        save_file(state, folder / WEIGHTS)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load what `save_trained` wrote into a model that was made in the same way.

    Args:
        model: the same backbone, conversion and tuning.
        folder: holds the file.

    Raises:
        ValueError: if the file's names are not the model's.
    """
    state = load_file(folder / WEIGHTS)
    wanted = trained_names(model)
    if state.keys() != wanted:
        odd = sorted(state.keys() ^ wanted)[:3]
        raise ValueError(f"{folder / WEIGHTS} is of another model: {', '.join(odd)}, ...")
    if is_sharded(model):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(model, dict(state), options=options)
        forget_gates(model)  # torch counts no change of what the shards are gathered into
        return
    with torch.no_grad():
        model.load_state_dict(state, strict=False)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say in a line that a checkpoint is damaged, whichever file of it.

    Args:
        folder: the checkpoint. Its files are tensors and plain values: torch unpickles nothing else
            (`weights_only`), so one that holds code is damaged too.

    Raises:
        ValueError: in place of the readers' errors.
    """
    try:
        yield
    except READING as error:
        if is_starved(error):
            raise
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(
            f"{folder} is damaged ({reason}); delete it, and the same command goes on from the one "
            "before, or from the start"
        ) from error


def newest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the checkpoint to go on from: the newest that is whole; others are named.

    A process killed while it saved leaves a folder without a whole `trainer_state.json`, which is
    written last; the one before it counts then.

    Args:
        folder: holds `checkpoint-<step>` folders, or does not exist.

    Returns:
        The folder and its step, or None.
    """
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("*")]
    for step, path in sorted(((int(m[1]), path) for m, path in matches if m), reverse=True):
        if (reason := damage(path)) is None:
            return path, step
        log.warning("  %s is passed over: %s", path, reason)
    return None


def training_ended(checkpoint: Path) -> bool:
    """Tell whether training had ended, by its length or early, when a checkpoint was written.

    Going on from such a one would train too long: the Trainer looks for its end after an update.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return control["should_training_stop"] or state["global_step"] >= state["max_steps"]


def damage(checkpoint: Path) -> str | None:
    """Say what a checkpoint lacks for going on as if nothing had happened; None: nothing.

    The Trainer goes on without a file that it does not find, to other numbers.
    """
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{STATE}, which is written last, is not whole"
    if not (checkpoint / WEIGHTS).is_file():
        return f"it has no {WEIGHTS}"
    if (problem := file_problem(checkpoint / WEIGHTS)) is not None:
        return problem
    for pattern in STATES:
        found = sorted(checkpoint.glob(pattern))
        if not found:
            return f"it has no {pattern}"
        for file in found:
            if file.suffix in (".pt", ".pth") and not is_zipfile(file):
                return f"{file.name} is not whole"
    return None
