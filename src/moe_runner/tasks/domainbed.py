"""The suite `domainbed`: images of several domains, one or two of which are held out.

A member is "<data set>/<held-out domain>", or "<data set>/<domain>+<domain>" for a held-out pair,
which leave-one-domain-out selection needs.

Source: DomainBed, arXiv:2007.01434; learning rates and weight decays of EMoE (PROTOCOL.md I.4).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from moe_runner.options.errors import ConfigError, nearest
from moe_runner.options.task import DomainBedTask, Task
from moe_runner.tasks import image_tables as tables
from moe_runner.tasks import image_variants
from moe_runner.tasks.base import (
    About,
    Recipe,
    Source,
    TaskData,
    TaskSpec,
    check,
    chosen_ood,
    find_parquet,
    hub_source,
    hub_split,
)
from moe_runner.tasks.images import Domain, DomainData, files_of, open_image

__all__ = ["TASKS", "load", "ood_names", "sources"]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set of the benchmark.

    Args:
        folder: its name in `task.data_dir`, compared without case, spaces and underscores.
        domains: its domains; their folders are compared in the same way.
        hub_id: where it is on the Hub; None: nowhere that is known.
        classes: in label order, for sets whose labels are numbers; (): named by the folders.
        per_domain: images of each training domain in a batch.
        eval_steps: updates between checkpoints.
        learning_rate: None: tuning.learning_rate * model.lr_scale.
        weight_decay: of all parameters.
        licence: of the images.
        make: renders the domains from one set of images and labels; None: the domains are folders.
    """

    folder: str
    domains: tuple[str, ...]
    hub_id: str | None = None
    classes: tuple[str, ...] = ()
    per_domain: int = 32
    eval_steps: int = 300
    learning_rate: float | None = None
    weight_decay: float = 0.0
    licence: str = "see the data set"
    make: Callable[..., tuple[Domain, ...]] | None = None


DIGITS = tuple(str(digit) for digit in range(10))
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


def members(name: str, domains: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """List the members of a data set.

    Args:
        name: of the data set.
        domains: its domains.

    Returns:
        (member, held-out domains): every domain, then every pair that leaves one to train on.
    """
    held_out: list[tuple[str, ...]] = [(domain,) for domain in domains]
    held_out += itertools.combinations(domains, 2) if len(domains) > 2 else []
    return [(f"{name}/{'+'.join(held)}", held) for held in held_out]


def specs(name: str, data_set: DataSet, steps: int) -> dict[str, TaskSpec]:
    """Make the specs of all members of a data set."""
    found = {}
    for member, held_out in members(name, data_set.domains):
        trained = len(data_set.domains) - len(held_out)
        found[member] = TaskSpec(
            name=member,
            form="domain_generalisation",
            columns=("image",),
            labels=data_set.classes,
            metrics=("accuracy",),
            validation=("training_domains",),
            ood=held_out,
            recipe=Recipe(
                max_steps=steps,
                learning_rate=data_set.learning_rate,
                batch_size=data_set.per_domain * trained,
                eval_batch_size=128,
                eval_steps=data_set.eval_steps,
                weight_decay=data_set.weight_decay,
                schedule="constant",
                batch_multiple=trained,
            ),
            about=About(source=data_set.hub_id or "task.data_dir", licence=data_set.licence),
        )
    return found


TASKS: dict[str, TaskSpec] = {
    member: spec
    for name, data_set in DATA_SETS.items()
    for member, spec in specs(name, data_set, STEPS).items()
}


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on: none but the held-out domains, always."""
    return ()


def parts(options: Task, name: str, data_sets: dict[str, DataSet]) -> tuple[str, DataSet]:
    """Take a member's name apart.

    Args:
        options: the task's options, for the message.
        name: the member.
        data_sets: of the suite.

    Returns:
        The name of the data set, and the data set.

    Raises:
        ConfigError: for an unknown data set or domain, or an out-of-domain set of another suite.
    """
    prefix, _, held_out = name.partition("/")
    given = f"task.members=[{name}] is not an option of task={options.suite}"
    if prefix not in data_sets:
        raise ConfigError(f"{given}; use <data set>/<domain> of {', '.join(data_sets)}")
    domains = data_sets[prefix].domains
    if name not in dict(members(prefix, domains)):
        guess = nearest(held_out, domains)
        hint = f"did you mean {prefix}/{guess}?" if guess else "use one of its domains"
        pair = ", or a pair such as " + "+".join(domains[:2]) if len(domains) > 2 else ""
        raise ConfigError(f"{given}; {hint} ({', '.join(domains)}{pair})")
    several = dict.fromkeys(member.partition("/")[0] for member in options.members)
    if options.hub_id is not None and len(several) > 1:
        raise ConfigError(
            f"task.hub_id={options.hub_id} is one data set, and task={options.suite} means "
            f"{', '.join(several)}; choose one with task={options.suite}/{prefix}"
        )
    chosen_ood(options, name, ood_names, ())
    return prefix, data_sets[prefix]


def sources(options: Task, name: str) -> dict[str, Source]:
    """Find out where the domains are, without reading them.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        Domain -> its files; "mnist" for the sets that are made from it.

    Raises:
        ConfigError: for an unknown member.
    """
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
                "task.data_dir=<folder>, or task.hub_id=<id> of one with the columns image, label "
                "and domain"
            )
        }
    place = hub_split(options, hub_id, "default", "train")
    return {"images": hub_source(place, "use task.data_dir=<folder>, or task=domainbed_mini")}


SPLITS = ("train", "test")  # of MNIST; the benchmark uses all of it


def _mnist_source(options: Task, data_set: DataSet, split: str) -> Source:
    if options.data_dir is None:
        hub_id = options.hub_id or data_set.hub_id
        assert hub_id is not None
        place = hub_split(options, hub_id, "mnist", split)
        return hub_source(place, "use task.data_dir=<folder>, or task=domainbed_mini")
    root = Path(options.data_dir).expanduser()
    folder = find_folder(root, data_set.folder)
    if folder is not None and (files := find_parquet(folder, split)):
        return Source(files=files)
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


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Find the images of all domains; they are decoded by `for_run`.

    Args:
        options: the task's options.
        name: the member task.
        cache: `paths.cache`; see `DomainData`.

    Returns:
        The data.

    Raises:
        ConfigError: if a domain can't be had, or for an unknown member.
        ValueError: if the columns or labels of a file are not what they should be.
    """
    _, data_set = parts(options, name, DATA_SETS)
    found = sources(options, name)
    check(found)
    if data_set.make is not None:
        digits = tables.mnist([tables.read_images(found[f"mnist/{split}"]) for split in SPLITS])
        domains, classes = data_set.make(digits, options.data_seed), data_set.classes
    elif "images" in found:
        domains, classes = tables.domains_of(found["images"], data_set.domains)
    else:
        domains, classes = folder_domains(domain_folders(options, data_set))
    return assemble(options, TASKS[name], domains, classes, cache)


def assemble(
    options: Task,
    spec: TaskSpec,
    domains: tuple[Domain, ...],
    classes: tuple[str, ...],
    cache: Path | None,
) -> DomainData:
    """Put the data of a member together; its splits are made by `for_run`."""
    return DomainData(
        spec=replace(spec, labels=classes),
        train=cast(Any, None),
        validation={},
        options=cast(DomainBedTask, options),
        domains=domains,
        held_out=spec.ood,
        cache=cache,
    )


def folder_domains(
    folders: dict[str, Path | None],
) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
    """Describe the domains of a folder; the classes are those of all domains, sorted."""
    listed = {name: files_of(folder) for name, folder in folders.items() if folder is not None}
    classes = tuple(sorted({label for rows in listed.values() for label, _ in rows}))
    return tuple(_folder_domain(name, rows, classes) for name, rows in listed.items()), classes


def _folder_domain(name: str, rows: list[tuple[str, Path]], classes: tuple[str, ...]) -> Domain:
    return Domain(
        name=name,
        key="files",
        labels=[classes.index(label) for label, _ in rows],
        describe=lambda index: str(rows[index][1]),
        read=lambda index: open_image(rows[index][1]),
        files=tuple(file for _, file in rows),
    )
