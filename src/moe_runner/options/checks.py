"""Values that are well typed but cannot work together; nothing is loaded to find them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_runner.files import blocked, no_place
from moe_runner.moe.alignment import fits_grouped, refusal
from moe_runner.options.errors import show
from moe_runner.options.layers import layer_problems
from moe_runner.options.method import Method
from moe_runner.options.mixtures import mixture_problems
from moe_runner.options.model import Model
from moe_runner.options.task import Task
from moe_runner.options.training import Search, Trainer, Tuning
from moe_runner.registry import FAMILIES

USUAL_BLOCKS = "last-even:1"  # conf/tuning/lora_block.yaml has it for dense models: nobody typed it


def value_problems(parts: Mapping[str, Any]) -> list[str]:
    """Find values that are well typed but cannot work together, without loading anything.

    Args:
        parts: section or global key -> its value; None or absent where it has a problem of its own.

    Returns:
        One line per problem; a check whose parts are not all there is left out.
    """
    checks: list[tuple[Callable[..., list[str]], *tuple[str, ...]]] = [
        (search_problems, "search", "trainer", "tuning"),
        (place_problems, "task", "model", "paths"),
        (device_problems, "device", "trainer"),
        (kernel_problems, "device", "method", "trainer"),
        (lambda task, model: task.problems(model), "task", "model"),
        (tuning_problems, "tuning", "model"),
        (size_problems, "method", "model"),
        (backend_problems, "method", "model", "trainer"),
        (measuring_problems, "method", "trainer"),
        (block_problems, "tuning", "method"),
        (lambda method, protocol: method.protocol_problems(protocol), "method", "protocol"),
        (lambda method, export: method.export_problems(export), "method", "export"),
        (mixture_problems, "method", "model", "export"),
        (lambda task, method: task.method_problems(method), "task", "method"),
        (lambda task, trainer: task.trainer_problems(trainer), "task", "trainer"),
    ]
    problems: list[str] = []
    for check, *names in checks:
        if all(parts.get(name) is not None for name in names):
            problems += check(*(parts[name] for name in names))
    return problems


def size_problems(method: Method, model: Model) -> list[str]:
    """Check a method against the sizes of the backbone, where these are sizes."""
    return method.problems(model) if model.d_ff > 0 and model.num_layers > 0 else []


def backend_problems(method: Method, model: Model, trainer: Trainer) -> list[str]:
    """Check that the back end takes the sizes; where a plan does not know them, `convert` does."""
    if getattr(method, "backend", None) != "grouped_mm" or model.d_ff < 1:
        return []
    if size_problems(method, model):
        return []
    sizes = (model.d_model, method.expert_size(model), 4 if trainer.precision == "fp32" else 2)
    if min(sizes) < 1 or fits_grouped(*sizes):
        return []
    return [
        f"method.backend=grouped_mm does not go with model={model.name} here: {refusal(*sizes)}; "
        "use method.backend=sorted or auto"
    ]


def measuring_problems(method: Method, trainer: Trainer) -> list[str]:
    """Check that what evaluations are to measure means what it says."""
    problems = []
    backend = getattr(method, "backend", "auto")
    if trainer.inference == "kernel" and backend != "auto":
        problems.append(
            f"trainer.inference=kernel does not go with method.backend={backend}, which would be "
            "taken instead; use method.backend=auto"
        )
    if trainer.evaluate_first and method.converted_at != "both":
        problems.append(
            "trainer.evaluate_first=true does not go with "
            f"method.convert_at={method.converted_at}: the model that is tuned is not the one that "
            "is evaluated; use trainer.evaluate_first=false"
        )
    if trainer.time_inference and trainer.precision != "fp32":
        problems.append(
            "trainer.time_inference=true measures in fp32 and does not go with "
            f"trainer.precision={trainer.precision}; use trainer.time_inference=false"
        )
    return problems


def place_problems(task: Task, model: Model, paths: Any) -> list[str]:
    """Check that the places that are given can be looked at: not too long, no null byte, a user."""
    given = {
        "task.data_dir": task.data_dir,
        "task.ood_dir": task.ood_dir,
        "model.path": model.path,
        "paths.output": paths.output,
        "paths.cache": paths.cache,
        "paths.data": paths.data,
        "paths.models": paths.models,
    }
    problems = []
    if model.package is not None and not model.package.isidentifier():
        problems.append(f"model.package={model.package} is not the name of a Python package")
    if model.package is not None and model.bundled:
        problems.append(
            f"model.package={model.package} is not looked at, since model={model.name} is bundled; "
            "leave it out"
        )
    of_hub = {"hub_id": None, "revision": "main"}
    for key, neutral in of_hub.items():
        if model.bundled and model.path is None and getattr(model, key) != neutral:
            problems.append(
                f"model.{key}={getattr(model, key)} is not looked at, since model={model.name} is "
                "bundled; use model=auto model.hub_id=<name>, or leave it out"
            )
    for key, place in given.items():
        if place is None or (key == "paths.cache" and place.startswith(f"{paths.output}/")):
            continue
        if line := no_place(key, place):
            problems.append(line)
        elif key in ("paths.data", "paths.models"):
            if not Path(place).expanduser().is_dir():
                problems.append(f"{key}={place} is not a folder")
        elif key.startswith("paths.") and place.startswith("~"):
            problems.append(f"{key}={place}: ~ is not read here; write the folder out")
        elif key.startswith("paths.") and (reason := blocked(Path(place))):
            problems.append(f"{key}={place}: {reason}")
    return problems


def search_problems(search: Search, trainer: Trainer, tuning: Tuning) -> list[str]:
    """Check that nothing is both given and searched for, and that there is something to try."""
    problems = []
    if search.tune_learning_rate and not tuning.learning_rates:
        problems.append(
            f"tuning.learning_rates=[] is empty, and search={search.name} tries each of them; give "
            "some, or use search=single"
        )
    if search.tune_learning_rate and trainer.learning_rate is not None:
        problems.append(
            f"trainer.learning_rate={show(trainer.learning_rate)} and search={search.name} exclude "
            "each other; give one of them"
        )
    return problems


def device_problem(device: str) -> str | None:
    """Check the name of a device."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        return None
    return f"device={device} is not valid; use auto, cpu, mps, cuda or cuda:<n>"


def device_problems(device: str, trainer: Trainer) -> list[str]:
    """Check the device's name, and the precision as far as the name tells."""
    if (problem := device_problem(device)) is not None:
        return [problem]
    if trainer.precision == "fp16" and device in ("cpu", "mps"):
        return [
            f"trainer.precision=fp16 does not work on device={device}; "
            "use trainer.precision=bf16 or fp32"
        ]
    return []


def kernel_problems(device: str, method: Method, trainer: Trainer) -> list[str]:
    """Check that what the C++ kernel is asked for is on a CPU and in fp32; a run looks for it."""
    if (asked := kernel_asked(method, trainer)) is None:
        return []
    given, instead = asked
    if device not in ("auto", "cpu"):
        return [f"{given} computes on a CPU and does not go with device={device}; use {instead}"]
    if trainer.precision != "fp32":
        return [
            f"{given} computes in fp32 and does not go with trainer.precision={trainer.precision}; "
            f"use {instead}"
        ]
    return []


def kernel_asked(method: Method, trainer: Trainer) -> tuple[str, str] | None:
    """Find the option that asks for the C++ kernel, and what to use without it; None: none does."""
    if getattr(method, "backend", None) == "kernel":
        return "method.backend=kernel", "method.backend=auto for a new run"
    if trainer.inference == "kernel":
        return "trainer.inference=kernel", "trainer.inference=plain for a new run"
    return None


def tuning_problems(tuning: Tuning, model: Model) -> list[str]:
    """Check which parameters train against the backbone."""
    idle = {"full": ("rank", "alpha", "dropout", "blocks"), "lora": ("blocks",)}
    problems = [
        f"tuning.{name}={show(getattr(tuning, name))} does nothing with tuning={tuning.name}; "
        f"use tuning={'lora_block' if name == 'blocks' else 'lora'}, or leave it out"
        for name in idle.get(tuning.name, ())
        if getattr(tuning, name) is not None
    ]
    if tuning.name == "full":
        return problems
    problems += [
        f"tuning.{name}=null does not go with tuning={tuning.name}; give a number"
        for name in ("rank", "alpha", "dropout")
        if getattr(tuning, name) is None
    ]
    if not model.lora_targets:
        usual = ",".join(FAMILIES[model.family].lora_targets) or "..."
        problems.append(
            f"tuning={tuning.name} needs model.lora_targets=[{usual}] for model={model.name}: the "
            "names of its attention projections"
        )
    if tuning.blocks is not None:
        problems += layer_problems("tuning.blocks", tuning.blocks, model)
    return problems


def block_problems(tuning: Tuning, method: Method) -> list[str]:
    """Check that lora_block knows its blocks, and that no others are asked for."""
    if tuning.name != "lora_block":
        return []
    if method.converts:
        rule = method.layer_rule
        if tuning.blocks in (None, USUAL_BLOCKS, rule):
            return []
        return [
            f"tuning.blocks={show(tuning.blocks)} does nothing with method={method.name}, which "
            f"trains the blocks that it converts (method.layers={show(rule)}); leave it out, or "
            "choose the blocks with method.layers"
        ]
    if tuning.blocks:
        return []
    return [
        f"tuning.blocks=null with method={method.name} names no block to train; "
        "use for example tuning.blocks=last-even:1"
    ]
