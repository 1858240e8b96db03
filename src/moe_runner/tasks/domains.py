"""What the suites of DomainBed's kind share: data sets, and members that hold domains out.

A member is "<data set>/<held-out domain>", or "<data set>/<domain>+<domain>" for a held-out pair,
which leave-one-domain-out selection needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from moe_runner.options.errors import ConfigError, nearest
from moe_runner.options.task import DomainBedTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.images import Domain, DomainData, files_of, open_image
from moe_runner.tasks.places import chosen_ood
from moe_runner.tasks.specs import About, TaskSpec

DIGITS = tuple(str(digit) for digit in range(10))


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
            listed=len(held_out) == 1,  # a pair differs in the batch only
        )
    return found


def with_pairs(options: DomainBedTask, known: Mapping[str, TaskSpec]) -> tuple[str, ...]:
    """List the members that are meant.

    Args:
        options: of the task.
        known: of the suite.

    Returns:
        `options.members`; with `pairs` also those that hold out one of their domains and another.
    """
    if not options.pairs:
        return options.members
    wanted = {
        (name.partition("/")[0], domain)
        for name in options.members
        if name in known
        for domain in known[name].ood
    }
    pairs = [
        name
        for name, member in known.items()
        if len(member.ood) == 2
        and any((name.partition("/")[0], domain) in wanted for domain in member.ood)
    ]
    return tuple(dict.fromkeys([*options.members, *pairs]))


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on: none but the held-out domains, always."""
    return ()


def parts(options: DomainBedTask, name: str, data_sets: dict[str, DataSet]) -> tuple[str, DataSet]:
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


def folder_domains(
    folders: Mapping[str, Path],
) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
    """Describe the domains of a folder; the classes are those of all domains, sorted."""
    listed = {name: files_of(folder) for name, folder in folders.items()}
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


def assemble(
    options: DomainBedTask,
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
        options=options,
        domains=domains,
        held_out=spec.ood,
        cache=cache,
    )
