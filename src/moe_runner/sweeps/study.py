"""Studies: grids of runs that become tables, one file of conf/study each.

    study:
      title: what the table shows
      paper: emoe                       # or hypermoe, ours
      published: [emoe-fig7-data]       # tables of report/published.yaml, shown as they are
      beside:                           # tables shown beside ours, pair by pair: see `Pairing`
        - {table: emoe-fig2-lora, rows: {dense: LoRA}, columns: {bert_large: BERT-Large ID}}
      rows: [method]                    # what distinguishes the rows, and
      columns: [model, task]            # the columns: axes of a run, or keys of its settings
      plot: radar                       # or bars (the default), series, heatmap
      grids:
        paper:
          common: {task: gluex, search: paper}
          blocks:
            - {model: gpt2_xl, tuning: lora, method: [dense, emoe]}
        mini: ...

A block of a grid, with what is common to all, gives options and values as on the command line; a
list means every element (an option that is itself a list is written in another one). The blocks of
a grid are added up; a run that several blocks or studies share is one run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moe_runner.files import read_yaml
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError, join, nearest, show
from moe_runner.options.files import option_file
from moe_runner.options.folders import Folders, option_names

Profile = Literal["mini", "small", "paper", "own"]
OWN: Profile = "own"  # of no study file: stored runs that are shown as a study
PROFILES: tuple[Profile, ...] = ("mini", "small", "paper")
SEVERAL: Mapping[str, tuple[str, ...]] = {  # names that stand for all studies of some papers
    "all": ("emoe", "hypermoe", "ours"), "published": ("emoe", "hypermoe"),
}  # fmt: skip
Block = Mapping[str, Any]
PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./:+%@-]*")  # a text that needs no quotes
WORDS = ("null", "true", "false", "nan", "inf")  # that are no texts without quotes
ONLY = (  # the axes by which study.only restricts studies
    "study", "method", "model", "tuning", "protocol", "suite", "task", "learning_rate", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """A published table whose figures stand beside ours.

    Args:
        table: its id.
        rows: our label -> its row; the first is the baseline. Labels of several profiles may mean
            one row.
        columns: ours -> its column: the first words of our labels, whose columns are averaged, or
            `all`; followed by ` > <set>`, the score on an out-of-domain set; by ` rank`, the mean
            out-of-domain rank among the rows.
        rule: of model selection, for DomainBed.
        profiles: whose grids it is for: a label of a small model may be in the grid of another one,
            where it is not what was published.
    """

    table: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    rule: Literal["training_domain", "leave_one_domain_out", "oracle"] = "training_domain"
    profiles: tuple[Profile, ...] = PROFILES


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of runs and the table it becomes."""

    name: str
    title: str
    paper: Literal["emoe", "hypermoe", "ours"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    plot: Literal["bars", "radar", "series", "heatmap"] = "bars"
    published: tuple[str, ...] = ()
    beside: tuple[Pairing, ...] = ()
    note: str = ""  # what a reader has to know: what is unknown, what differs
    grids: Mapping[Profile, tuple[Block, ...]] = field(default_factory=dict)


def read_study(folders: Folders, name: str) -> Study:
    """Read a study.

    Args:
        folders: of option files.
        name: of a file in their `study`.

    Returns:
        The study.

    Raises:
        ConfigError: if there is no such study, or it is not as it should be.
    """
    names = study_names(folders)
    if name not in names:
        guess = nearest(name, names)
        hint = f"did you mean {guess}?" if guess else f"use one of {', '.join(names)}"
        raise ConfigError(f"study={name} is not an option; {hint}")
    file = option_file(folders, "study", name)
    found = read_yaml(file).get("study")
    tree = dict(found) if isinstance(found, Mapping) else {}
    grids, beside = tree.pop("grids", None), tree.pop("beside", None) or ()
    if problems := [f"{file}: {line}" for line in misshapen(found, grids, beside)]:
        raise ConfigError(*problems)
    study = build(Study, {"name": name, **tree}, "study", problems)
    pairings = [build(Pairing, each, "study.beside", problems) for each in beside]
    wrong = [profile for profile in grids if profile not in PROFILES]
    problems += [f"study.grids.{profile} is no profile; use {join(PROFILES)}" for profile in wrong]
    if problems or study is None:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    return replace(
        study,
        beside=tuple(pairing for pairing in pairings if pairing is not None),
        grids={
            profile: tuple({**(grid.get("common") or {}), **block} for block in grid["blocks"])
            for profile, grid in grids.items()
        },
    )


def misshapen(study: Any, grids: Any, beside: Any) -> Iterator[str]:
    """Say what of a study's file has not the form that the module shows.

    Args:
        study: its node `study`.
        grids: of that node.
        beside: of that node.
    """
    if not isinstance(study, Mapping):
        yield "study is missing; write study: {title: ..., rows: [...], columns: [...], grids: ...}"
        return
    if not isinstance(grids, Mapping) or not grids:
        yield "study.grids is missing; give a grid per profile: {mini: {blocks: [{method: dense}]}}"
        return
    if not isinstance(beside, Sequence) or not all(isinstance(each, Mapping) for each in beside):
        yield "study.beside is not valid; use a list of mappings: [{table: ..., rows: ...}]"
    for profile, grid in grids.items():
        key, parts = f"study.grids.{profile}", grid if isinstance(grid, Mapping) else {}
        if not (blocks := parts.get("blocks")):
            yield f"{key}.blocks is missing; give a list of mappings: [{{method: [dense, emoe]}}]"
        elif not isinstance(blocks, list) or not all(isinstance(each, Mapping) for each in blocks):
            yield (
                f"{key}.blocks={show(blocks)} is not valid; use a list of mappings: "
                "[{method: [dense, emoe]}]"
            )
        if not isinstance(common := parts.get("common") or {}, Mapping):
            yield f"{key}.common={show(common)} is not valid; use a mapping: {{model: bert_tiny}}"


def read_studies(folders: Folders, names: Sequence[str], profile: Profile) -> list[Study]:
    """Read the studies that have a grid of a profile.

    Args:
        folders: of option files.
        names: of studies; `all`: every one that has such a grid, `published`: of these the papers'.
        profile: which.

    Raises:
        ConfigError: for a study that is not as it should be, or that is named and has no such grid;
            if none of several has one.
    """
    if len(names) == 1 and names[0] in SEVERAL:
        papers = SEVERAL[names[0]]
        every = [read_study(folders, name) for name in study_names(folders)]
        chosen = [each for each in every if profile in each.grids and each.paper in papers]
        if not chosen:
            raise ConfigError(f"study={names[0]} has no runs of profile={profile}; use study=all")
        return chosen
    found = [read_study(folders, name) for name in names]
    lacking = [study for study in found if profile not in study.grids]
    if lacking:
        raise ConfigError(
            *(
                f"study={study.name} has no runs of profile={profile}; "
                f"use profile={join(list(study.grids))}"
                for study in lacking
            )
        )
    return found


def study_names(folders: Folders) -> list[str]:
    """List all studies, without `SEVERAL`, in the order of their files' names."""
    return [name for name in option_names(folders, "study") if name not in SEVERAL]


def expand(grid: tuple[Block, ...]) -> Iterator[dict[str, Any]]:
    """Give the combinations of every block of a grid.

    Args:
        grid: see the module.

    Yields:
        Option or value by group or key; the last key varies fastest.
    """
    for block in grid:
        lists = [value if isinstance(value, list) else [value] for value in block.values()]
        for values in itertools.product(*lists):
            yield dict(zip(block, values, strict=True))


def as_overrides(choices: Mapping[str, Any]) -> list[str]:
    """Write choices as Hydra's overrides, which Hydra reads back as the same values."""
    return [f"{key}={written(value)}" for key, value in choices.items()]


def written(value: Any) -> str:
    """Write a value in Hydra's grammar; as `show` does, but for texts that need quotes."""
    if isinstance(value, str):
        return value if is_plain(value) else quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{escaped(str(key))}:{written(item)}" for key, item in value.items())
        return f"{{{','.join(pairs)}}}"
    return show(value)


def is_plain(text: str) -> bool:
    """Tell whether Hydra reads a text without quotes as that text, and not as a number or a null.

    Some that would need no quotes get them: what is left is what is easy to be sure of.
    """
    return bool(PLAIN.fullmatch(text)) and text.lower() not in WORDS


def quoted(text: str) -> str:
    """Put a text in single quotes; backslashes count only before a quote, and are doubled there."""
    doubled = re.sub(r"\\+(?='|\Z)", lambda found: found[0] * 2, text)
    return "'" + doubled.replace("'", "\\'") + "'"


def escaped(key: str) -> str:
    """Write the key of a mapping, where Hydra knows no quotes."""
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", key)
