"""The suite `image_folders`: the user's own images, in folders named after their classes.

`<root>/<domain>/<class>/*`: every domain is held out in turn, with all that DomainBed measures.
`<root>/<split>/<class>/*` with splits train, validation and test, or `<root>/<class>/*`: plain
classification; these also in the only folder of the root.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.task import IMAGES, ImageFoldersTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import domains
from moe_runner.tasks.domains import DataSet, assemble, folder_domains
from moe_runner.tasks.images import ENDINGS, files_of, unread_of
from moe_runner.tasks.own_files import split_of
from moe_runner.tasks.places import Source, check, chosen_ood
from moe_runner.tasks.records import is_clutter
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

log = logging.getLogger(__name__)

ALL = "all"
STEPS = 5001  # updates where domains are held out: DomainBed's
ABOUT = About(source="task.data_dir", licence="the data's own")
PLAIN = TaskSpec(
    name=IMAGES,
    form="domain_generalisation",
    columns=("image",),
    metrics=("accuracy",),
    validation=("validation",),
    recipe=Recipe(
        epochs={"full": 10, "lora": 20, "lora_block": 20}, batch_size=32, eval_batch_size=128
    ),
    about=ABOUT,
)
LAYOUT = "put images in <domain>/<class>/, <split>/<class>/ or <class>/"
NAMED = 5  # folders that a warning names


@dataclass(frozen=True)
class Layout:
    """What the folders in a root are.

    Args:
        plain: whether they are splits or classes, not domains.
        folders: name of a domain, or train, validation and test -> folder of its classes.
        problem: why there is nothing to train on; one line.
        beside: folders next to those, which are not read.
        remarks: what may not be as it was meant; one line each.
    """

    plain: bool
    folders: dict[str, Path] = field(default_factory=dict)
    problem: str | None = None
    beside: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


def layout(data_dir: str | None) -> Layout:
    """Find out what the folders of `task.data_dir` are."""
    if data_dir is None:
        return Layout(True, problem=f"task=image_folders needs task.data_dir=<folder>; {LAYOUT}")
    given, root = f"task.data_dir={data_dir}", Path(data_dir).expanduser()
    if not root.is_dir():
        return Layout(True, problem=f"{given} is not a folder; {LAYOUT} of one")
    return _layout(root, given)


def _layout(root: Path, given: str) -> Layout:
    folders = _folders(root)
    inside = [folder for folder in folders if _has_images(folder) or files_of(folder)]
    loose = [folder for folder in inside if _has_images(folder)]
    if not inside:
        return Layout(True, problem=f"{given} holds no images ({', '.join(ENDINGS)}); {LAYOUT}")
    if len(loose) == len(inside):
        if names := ", ".join(_splits_among(folder.name for folder in inside)):
            problem = f"{given}: no classes in {names}, which hold images themselves; {LAYOUT}"
            return Layout(True, problem=problem)
        return Layout(True, {"train": root})
    found: dict[str, list[Path]] = {}
    for folder in inside:
        if (split := split_of(folder.name)) is not None:
            found.setdefault(split, []).append(folder)
    unlabelled = found.get("test") == loose  # images of a competition, without classes
    if loose and not unlabelled:
        return Layout(
            True,
            problem=f"{given}: {loose[0].name} holds images itself, and "
            f"{next(f for f in inside if f not in loose).name} folders of them; {LAYOUT}",
        )
    if "train" in found:
        if double := [folders for folders in found.values() if len(folders) > 1]:
            names = ", ".join(folder.name for folder in double[0])
            return Layout(True, problem=f"{given} has two folders of one split ({names}); keep one")
        splits = {split: each[0] for split, each in found.items() if each != loose}
        left_out = f"  the test folder of {given} has no classes: it is left out"
        return Layout(
            True,
            splits,
            problem=_nested(splits, given),
            beside=tuple(f for f in folders if f not in (*splits.values(), *loose)),
            remarks=(left_out,) if unlabelled else (),
        )
    own = {folder.name: folder for folder in inside if folder not in loose}
    beside = tuple(folder for folder in folders if folder.name not in own)
    if len(own) == 1:
        return _only(next(iter(own.values())), given, beside)
    if all(split_of(name) for name in own):
        problem = f"{given} has no folder train (it has {', '.join(own)}); name one train"
        return Layout(True, problem=problem)
    if odd := [name for name in own if "+" in name]:
        return Layout(True, problem=f"{given}: rename the domain {odd[0]}, + joins two of them")
    return Layout(False, own, problem=_nested(own, given), beside=beside)


def _only(folder: Path, given: str, beside: tuple[Path, ...]) -> Layout:
    """Find out what the only folder of a root holds: splits, or classes."""
    inner = f"{given.rstrip('/')}/{folder.name}"
    classes = _classes(folder)
    if len(classes) == 1 or _splits_among(classes):
        found = _layout(folder, inner)
        return replace(found, beside=beside + found.beside)
    remarks: tuple[str, ...] = ()
    below = Counter(name for label in classes for name in _classes(folder / label))
    if max(below.values(), default=0) > 1:
        names = ", ".join(sorted(classes)[:NAMED])
        remarks = (f"  {names} are taken for classes; if they are domains, use {inner}",)
    return Layout(True, {"train": folder}, beside=beside, remarks=remarks)


def _nested(folders: Mapping[str, Path], given: str) -> str | None:
    """Say that there are splits where a domain or split should have classes."""
    splits = _splits_among(label for folder in folders.values() for label in _classes(folder))
    for folder in sorted(folders.values(), key=lambda place: split_of(place.name) != "train"):
        if here := [name for name in splits if name in _classes(folder)]:
            return (
                f"{given}: {folder.name} holds splits ({', '.join(here)}), not classes; {LAYOUT}, "
                f"or use {given.rstrip('/')}/{folder.name}"
            )
    return None


def _splits_among(names: Iterable[str]) -> list[str]:
    """List the names that are splits; none if they may be classes (such as train, bus and car)."""
    splits = {name: split_of(name) for name in sorted(names)}
    known = {split for split in splits.values() if split is not None}
    if len(known) > 1 and "train" in known or None not in splits.values():
        return [name for name, split in splits.items() if split is not None]
    return []


def _unread(found: Layout, data_dir: str) -> str | None:
    """Name what is not read: folders beside those that are, files with other endings."""
    root = Path(data_dir).expanduser()
    missing: list[str] = []
    partly: list[str] = []
    for folder in found.folders.values():
        kinds: dict[str, Counter[str]] = {}
        for label, file in unread_of(folder):
            kinds.setdefault(label, Counter())[file.suffix.lower() or "without an ending"] += 1
        read = _classes(folder)
        for label, counts in kinds.items():
            files = ", ".join(f"{number} {ending}" for ending, number in sorted(counts.items()))
            place = (folder / label).relative_to(root).as_posix()
            (partly if label in read else missing).append(f"{place} ({files})")
    names = [folder.relative_to(root).as_posix() for folder in found.beside] + missing + partly
    if not names:
        return None
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    known = "; splits are named train, validation and test" if found.plain and found.beside else ""
    return (
        f"  task.data_dir={data_dir}: not read are {', '.join(names[:NAMED])}{more}; images end in "
        f"{', '.join(ENDINGS)}{known}"
    )


@functools.cache
def _warn(line: str) -> None:
    """Warn once: every member asks."""
    log.warning("%s", line)


def _classes(folder: Path) -> set[str]:
    return {label for label, _ in files_of(folder)}


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_clutter(p.name))


def _has_images(folder: Path) -> bool:
    return any(
        file.suffix.lower() in ENDINGS and not is_clutter(file.name) for file in folder.iterdir()
    )


def _source(folder: Path) -> Source:
    """Name the files of a domain or split, and its class if that is one: their hash is blind to it.

    (It is of names below their common folder, which then is that of the class.)
    """
    files, classes = tuple(file for _, file in files_of(folder)), _classes(folder)
    return Source(files=files, reading=f"of class {min(classes)}" if len(classes) == 1 else "")


class ImageFolders(Suite[ImageFoldersTask]):
    """The user's own images."""

    options = ImageFoldersTask
    specs = {IMAGES: PLAIN}

    def members(self, options: ImageFoldersTask) -> tuple[str, ...]:
        """See `Suite`: domains that are held out, and pairs of them; `images` if there are none."""
        found = layout(options.data_dir)
        if found.plain:
            named = [name for name in options.members if name not in (ALL, IMAGES)]
            return (*named, IMAGES) if named else (IMAGES,)
        wanted = found.folders if ALL in options.members else options.members
        pairs = [
            "+".join(held)
            for _, held in domains.members(IMAGES, tuple(found.folders))
            if options.pairs and len(held) == 2 and set(held) & set(wanted)
        ]
        return tuple(dict.fromkeys([*wanted, *pairs]))

    def spec_of(self, options: ImageFoldersTask, name: str) -> TaskSpec:
        """See `Suite`."""
        found = layout(options.data_dir)
        if found.plain:  # a domain that is named is refused
            return PLAIN if name == ALL else super().spec_of(options, name)
        data_set = DataSet(folder="", domains=tuple(found.folders))
        known = domains.specs(IMAGES, data_set, STEPS)
        if (spec := known.get(f"{IMAGES}/{name}")) is None:
            of = f" of task={options.suite}"
            raise ConfigError(
                not_an_option(f"task.members=[{name}]", of, name, [ALL, *found.folders])
            )
        return replace(spec, name=name, about=ABOUT)

    def sources(self, options: ImageFoldersTask, name: str) -> dict[str, Source]:
        """See `Suite`: domain or split -> its files."""
        chosen_ood(options, name, domains.ood_names, ())
        found = layout(options.data_dir)
        problem = found.problem
        if options.hub_id is not None:
            problem = f"task.hub_id={options.hub_id} is not read here; use task.data_dir=<folder>"
        elif options.ood_dir is not None:
            problem = (
                f"task.ood_dir={options.ood_dir} is not read here; leave it out: what is out of "
                "domain is a test folder, or the other domains, of task.data_dir"
            )
        if problem is not None:
            return {IMAGES: Source(problem=problem)}
        self.spec_of(options, name)
        for line in (*found.remarks, _unread(found, str(options.data_dir))):
            if line is not None:
                _warn(line)
        return {domain: _source(folder) for domain, folder in found.folders.items()}

    def load(self, options: ImageFoldersTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; images are decoded by `DomainData.for_run`.

        Raises:
            ConfigError: as for every suite.
            ValueError: if there is one class only.
        """
        check(self.sources(options, name))
        found = layout(options.data_dir)
        images, classes = folder_domains(found.folders)
        if len(classes) < 2:
            raise ValueError(f"{options.data_dir} has the class {classes[0]} only; expected two")
        spec = self.spec_of(options, name)
        if not found.plain:
            return assemble(options, spec, images, classes, cache)
        held_out = tuple(split for split in found.folders if split != "train")
        data = assemble(options, replace(spec, ood=held_out), images, classes, cache)
        selecting = "validation" if "validation" in found.folders else None
        return replace(data, plain=True, selecting=selecting)


SUITE: Suite[ImageFoldersTask] = ImageFolders()
