"""The suite `domainbed_mini`: DomainBed's two MNIST recipes on scikit-learn's digits; no files.

1,797 real handwritten digits; see `image_variants`. The training lengths are ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_runner.options.task import DomainBedTask
from moe_runner.tasks import image_variants
from moe_runner.tasks.domains import DIGITS, DataSet, assemble, parts, specs, with_pairs
from moe_runner.tasks.image_variants import ANGLES, VERSION
from moe_runner.tasks.places import Source
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

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


class DomainBedMini(Suite[DomainBedTask]):
    """Digits in several domains."""

    options = DomainBedTask
    specs = TASKS

    def members(self, options: DomainBedTask) -> tuple[str, ...]:
        """See `Suite`."""
        return with_pairs(options, TASKS)

    def spec_of(self, options: DomainBedTask, name: str) -> TaskSpec:
        """See `Suite`; the message names data sets and domains, not every member."""
        parts(options, name, DATA_SETS)
        return super().spec_of(options, name)

    def sources(self, options: DomainBedTask, name: str) -> dict[str, Source]:
        """See `Suite`: "digits" -> what is generated, from which version and seed."""
        prefix, _ = parts(options, name, DATA_SETS)
        text = f"{prefix} v{VERSION} of scikit-learn's digits seed {options.data_seed}"
        return {"digits": Source(generated=text)}

    def load(self, options: DomainBedTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; the data are the same for the same version and `data_seed`."""
        _, data_set = parts(options, name, DATA_SETS)
        assert data_set.make is not None
        digits = image_variants.handwritten()
        domains = data_set.make(digits, options.data_seed)
        return assemble(options, TASKS[name], domains, data_set.classes, cache)


SUITE: Suite[DomainBedTask] = DomainBedMini()
