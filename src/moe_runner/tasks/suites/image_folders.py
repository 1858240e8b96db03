"""The suite `image_folders`: the user's own images, in folders named after their classes.

`<root>/<domain>/<class>/*`: every domain is held out in turn, with all that DomainBed measures.
`<root>/<split>/<class>/*` with splits train, validation and test, or `<root>/<class>/*`: plain
classification.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_runner.options.errors import ConfigError, not_an_option
from moe_runner.options.task import IMAGES, ImageFoldersTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import domains
from moe_runner.tasks.domains import DataSet, assemble, folder_domains
from moe_runner.tasks.images import ENDINGS, files_of
from moe_runner.tasks.own_files import SPLITS
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


@dataclass(frozen=True)
class Layout:
    """What the folders in a root are.

    Args:
        plain: whether they are splits or classes, not domains.
        folders: name of a domain, or train, validation and test -> folder of its classes.
        problem: why there is nothing to train on; one line.
        unlabelled: a test folder has images, but no classes: it is left out.
    """

    plain: bool
    folders: dict[str, Path] = field(default_factory=dict)
    problem: str | None = None
    unlabelled: bool = False


def layout(data_dir: str | None) -> Layout:
    """Find out what the folders of `task.data_dir` are."""
    if data_dir is None:
        return Layout(True, problem=f"task=image_folders needs task.data_dir=<folder>; {LAYOUT}")
    given, root = f"task.data_dir={data_dir}", Path(data_dir).expanduser()
    if not root.is_dir():
        return Layout(True, problem=f"{given} is not a folder; {LAYOUT} of one")
    inside = [folder for folder in _folders(root) if _has_images(folder) or files_of(folder)]
    loose = [folder for folder in inside if _has_images(folder)]
    if loose and len(loose) == len(inside):
        return Layout(True, {"train": root})
    found: dict[str, list[Path]] = {}
    for folder in inside:
        split = next((s for s, words in SPLITS.items() if folder.name.lower() in words), None)
        if split is not None:
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
        splits = {split: folders[0] for split, folders in found.items()}
        if unlabelled:
            del splits["test"]
        return Layout(True, splits, unlabelled=unlabelled)
    own = {folder.name: folder for folder in inside if files_of(folder)}
    if not own:
        return Layout(True, problem=f"{given} holds no images; {LAYOUT}")
    if len(own) == 1:
        return Layout(True, {"train": next(iter(own.values()))})
    if odd := [name for name in own if "+" in name]:
        return Layout(True, problem=f"{given}: rename the domain {odd[0]}, + joins two of them")
    return Layout(False, own)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_clutter(p.name))


def _has_images(folder: Path) -> bool:
    return any(
        file.suffix.lower() in ENDINGS and not is_clutter(file.name) for file in folder.iterdir()
    )


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
        if options.hub_id is not None:
            problem = f"task.hub_id={options.hub_id} is not read here; use task.data_dir=<folder>"
            return {IMAGES: Source(problem=problem)}
        if found.problem is not None:
            return {IMAGES: Source(problem=found.problem)}
        self.spec_of(options, name)
        return {
            domain: Source(files=files)
            if (files := tuple(file for _, file in files_of(folder)))
            else Source(problem=f"task.data_dir={options.data_dir}: {folder} holds no images")
            for domain, folder in found.folders.items()
        }

    def load(self, options: ImageFoldersTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; images are decoded by `DomainData.for_run`.

        Raises:
            ConfigError: as for every suite.
            ValueError: if there is one class only.
        """
        check(self.sources(options, name))
        found = layout(options.data_dir)
        if found.unlabelled:
            log.warning("  the test folder of %s has no classes: it is left out", options.data_dir)
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
