"""The suite `domainbed_mini`: DomainBed's two MNIST recipes on scikit-learn's digits; no files.

1,797 real handwritten digits; see `image_variants`. The training lengths are ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from moe_runner.options.task import DomainBedTask, Task
from moe_runner.tasks import image_variants
from moe_runner.tasks.base import About, Source, TaskData, TaskSpec
from moe_runner.tasks.domainbed import DIGITS, DataSet, assemble, ood_names, parts, specs
from moe_runner.tasks.image_variants import ANGLES, VERSION

__all__ = ["TASKS", "load", "ood_names", "sources"]

STEPS = 150
DATA_SETS: dict[str, DataSet] = {
    "rotated_digits": DataSet(
        folder="",
        domains=tuple(str(angle) for angle in ANGLES),
        classes=DIGITS,
        per_domain=16,
        eval_steps=50,
        make=image_variants.rotated,
    ),
    "colored_digits": DataSet(
        folder="",
        domains=tuple(image_variants.AGREEMENT),
        classes=("low", "high"),
        per_domain=32,
        eval_steps=50,
        make=image_variants.colored,
    ),
}
ABOUT = About(source="scikit-learn", licence="BSD 3-Clause")
TASKS: dict[str, TaskSpec] = {
    member: replace(spec, about=ABOUT)
    for name, data_set in DATA_SETS.items()
    for member, spec in specs(name, data_set, STEPS).items()
}


def sources(options: Task, name: str) -> dict[str, Source]:
    """Say what is generated, from which version and seed.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        "digits" -> the source, which is always available.

    Raises:
        ConfigError: for an unknown member.
    """
    prefix, _ = parts(options, name, DATA_SETS)
    text = f"{prefix} v{VERSION} of scikit-learn's digits seed {options.data_seed}"
    return {"digits": Source(generated=text)}


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Generate the domains; images are drawn by `for_run`.

    Args:
        options: the task's options.
        name: the member task.
        cache: `paths.cache`; see `DomainData`.

    Returns:
        The data; the same for the same version and `data_seed`.

    Raises:
        ConfigError: for an unknown member.
    """
    _, data_set = parts(options, name, DATA_SETS)
    assert data_set.make is not None
    digits = image_variants.handwritten()
    domains = data_set.make(digits, cast(DomainBedTask, options).data_seed)
    return assemble(options, TASKS[name], domains, data_set.classes, cache)
