"""The suite `domainbed`: images of several domains, one or two of which are held out.

A member is "<data set>/<held-out domain>", or "<data set>/<domain>+<domain>" for a held-out pair,
which leave-one-domain-out selection needs.

Source: DomainBed, arXiv:2007.01434; learning rates and weight decays of EMoE (PROTOCOL.md I.4).
"""

from __future__ import annotations

from pathlib import Path

from moe_runner.options.task import DomainBedTask, Task
from moe_runner.tasks import image_tables as tables
from moe_runner.tasks import image_variants
from moe_runner.tasks.domains import (
    DIGITS,
    DataSet,
    assemble,
    folder_domains,
    parts,
    specs,
    with_pairs,
)
from moe_runner.tasks.images import files_of
from moe_runner.tasks.places import Source, check, find_parquet, hub_source, hub_split
from moe_runner.tasks.specs import TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

# Rate and weight decay: the paper's. The Hub ids are from general knowledge; task.hub_id overrides.
DATA_SETS: dict[str, DataSet] = {
    "pacs": DataSet(
        folder="PACS",
        domains=("art_painting", "cartoon", "photo", "sketch"),
        hub_id="flwrlabs/pacs",
        learning_rate=3e-5,
        licence="none stated",
        weight_decay=1e-6,
    ),
    "vlcs": DataSet(
        folder="VLCS",
        domains=("caltech101", "labelme", "sun09", "voc2007"),
        learning_rate=3e-5,
        weight_decay=1e-6,
    ),
    "office_home": DataSet(
        folder="office_home",
        domains=("art", "clipart", "product", "real_world"),
        hub_id="flwrlabs/office-home",
        learning_rate=1e-5,
        weight_decay=1e-6,
    ),
    "terra_incognita": DataSet(
        folder="terra_incognita",
        domains=("location_100", "location_38", "location_43", "location_46"),
        learning_rate=5e-5,
        weight_decay=1e-4,
    ),
    "rotated_mnist": DataSet(  # batch and checkpoints: the benchmark's for small images; rate: ours
        folder="MNIST",
        domains=tuple(str(angle) for angle in image_variants.ANGLES),
        hub_id="ylecun/mnist",
        classes=DIGITS,
        per_domain=64,
        eval_steps=100,
        make=image_variants.rotated,
    ),
    "colored_mnist": DataSet(
        folder="MNIST",
        domains=tuple(image_variants.AGREEMENT),
        hub_id="ylecun/mnist",
        classes=("low", "high"),
        per_domain=64,
        eval_steps=100,
        make=image_variants.colored,
    ),
}
STEPS = 5001  # updates of every data set


TASKS: dict[str, TaskSpec] = {
    member: spec
    for name, data_set in DATA_SETS.items()
    for member, spec in specs(name, data_set, STEPS).items()
}


SPLITS = ("train", "test")  # of MNIST; the benchmark uses all of it


def _mnist_source(options: Task, data_set: DataSet, split: str) -> Source:
    hub_id = options.hub_id or data_set.hub_id
    assert hub_id is not None
    place = hub_split(options, hub_id, "mnist", split)
    if options.data_dir is None:
        return hub_source(place, "use task.data_dir=<folder>, or task=domainbed_mini")
    root = Path(options.data_dir).expanduser()
    folder = find_folder(root, data_set.folder)
    if folder is not None and (files := find_parquet(folder, split)):
        return Source(files=files, original=place)
    return Source(
        problem=f"task.data_dir={options.data_dir} lacks MNIST: looked for MNIST/{split}.parquet "
        f"and MNIST/{split}-*-of-*.parquet (columns image, label); put it there, or use "
        "task=domainbed_mini"
    )


def _folder_sources(options: Task, data_set: DataSet) -> dict[str, Source]:
    """Look for `<data_dir>/<data set>/<domain>/<class>/*`."""
    root = Path(str(options.data_dir)).expanduser()
    given = f"task.data_dir={options.data_dir}"
    remedy = f"put the images in {data_set.folder}/<domain>/<class>/"
    if not root.is_dir():
        return {"images": Source(problem=f"{given} is not a folder; {remedy} of one")}
    if find_folder(root, data_set.folder) is None:
        return {"images": Source(problem=f"{given} has no folder {data_set.folder}; {remedy}")}
    found = {}
    for domain, place in domain_folders(options, data_set).items():
        images = [] if place is None else [file for _, file in files_of(place)]
        problem = f"{given} lacks the domain {domain} of {data_set.folder}; {remedy}"
        if place is not None:
            problem = f"{given}: the domain {place} is empty; {remedy}"
        found[domain] = Source(files=tuple(images)) if images else Source(problem=problem)
    return found


def domain_folders(options: Task, data_set: DataSet) -> dict[str, Path | None]:
    """Look for the folder of every domain in `task.data_dir`; None: it is not there."""
    folder = find_folder(Path(str(options.data_dir)).expanduser(), data_set.folder)
    if folder is None:
        return dict.fromkeys(data_set.domains)
    return {domain: find_folder(folder, domain) for domain in data_set.domains}


def find_folder(root: Path, name: str) -> Path | None:
    """Look for a subfolder; case, spaces, hyphens and underscores do not matter."""
    if not root.is_dir():
        return None
    found = sorted(
        p for p in root.iterdir() if p.is_dir() and tables.plain(p.name) == tables.plain(name)
    )
    return found[0] if found else None


class DomainBed(Suite[DomainBedTask]):
    """Images of several domains."""

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
        """See `Suite`: domain -> its files; "mnist/<split>" for the sets that are made from it."""
        prefix, data_set = parts(options, name, DATA_SETS)
        if data_set.make is not None:
            return {f"mnist/{split}": _mnist_source(options, data_set, split) for split in SPLITS}
        if options.data_dir is not None:
            return _folder_sources(options, data_set)
        hub_id = options.hub_id or data_set.hub_id
        if hub_id is None:
            return {
                "images": Source(
                    problem=f"no copy of {prefix} on the Hugging Face Hub is known; use "
                    "task.data_dir=<folder>, or task.hub_id=<id> of one with the columns image, "
                    "label and domain"
                )
            }
        place = hub_split(options, hub_id, "default", "train")
        return {"images": hub_source(place, "use task.data_dir=<folder>, or task=domainbed_mini")}

    def load(self, options: DomainBedTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; images are decoded by `DomainData.for_run`."""
        _, data_set = parts(options, name, DATA_SETS)
        found = self.sources(options, name)
        check(found)
        if data_set.make is not None:
            digits = tables.mnist([tables.read_images(found[f"mnist/{split}"]) for split in SPLITS])
            domains, classes = data_set.make(digits, options.data_seed), data_set.classes
        elif "images" in found:
            domains, classes = tables.domains_of(found["images"], data_set.domains)
        else:
            folders = domain_folders(options, data_set)
            domains, classes = folder_domains(
                {domain: folder for domain, folder in folders.items() if folder is not None}
            )
        return assemble(options, TASKS[name], domains, classes, cache)


SUITE: Suite[DomainBedTask] = DomainBed()
