"""Images of several domains: decoded once into memory-mapped arrays, split anew for every trial.

Nothing heavy is imported here: numpy, PIL and datasets come with the first image that is read.
"""

# N images of a domain, S pixels a side

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.files import naming, read_json, write_json
from moe_runner.options.task import DomainBedTask
from moe_runner.runs.identity import content_hash
from moe_runner.tasks.records import is_clutter
from moe_runner.tasks.specs import OODSpec, TaskData

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm",
    ".pgm",
)  # fmt: skip
DECODING = 2  # raised when the same file gives another array
CORRUPT = ""  # in place of the digest of an image
NAMED = 3  # corrupt images that an error names


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The images of one domain, not yet decoded.

    Args:
        name: of the domain.
        key: names how the images are made; decoded ones are kept under it and the files' content.
        labels: classes in the order of the images.
        describe: names an image for people.
        read: opens an image, in any mode and size.
        files: what is read.
        size: S where the images are smaller than what a backbone wants; None: the backbone's size.
    """

    name: str
    key: str
    labels: Sequence[int]
    describe: Callable[[int], str]
    read: Callable[[int], Image]
    files: tuple[Path, ...] = ()
    size: int | None = None


@dataclass(kw_only=True)
class DomainData(TaskData):
    """The images of all domains; train, validation and ood are there once it is `for_run`.

    Rows have the columns `image` (index into the domain's array), `domain` (index into `domains`)
    and `label`.

    Args:
        options: of the task.
        domains: in the data set's order.
        held_out: names of the domains that are not trained on.
        plain: one set of images with no other domain than a test set: nothing but training,
            selection and test is measured, and every image is drawn once an epoch.
        selecting: the domain, of the held-out ones, whose images select the epoch; then no domain
            is split. None: a part of every training domain does.
        arrays: by domain, uint8 (N, 3, S, S), memory-mapped.
        splits: "<domain>/in" and "<domain>/out" -> rows.
        cache: decoded images go to `images/` in it; None: to a temporary folder.
    """

    options: DomainBedTask
    domains: tuple[Domain, ...]
    held_out: tuple[str, ...]
    plain: bool = False
    selecting: str | None = None
    arrays: tuple[NDArray[np.uint8], ...] = ()
    splits: dict[str, Dataset] = field(default_factory=dict)
    cache: Path | None = None

    def for_run(self, seed: int) -> DomainData:
        """Decode what the cache does not have, and split every domain.

        Args:
            seed: of the trial; it decides the split.

        Returns:
            The data of a run: train on the in-splits of the training domains, select on their
            out-splits, and the in-split of each held-out domain is out of domain.

        Raises:
            ValueError: if an image cannot be decoded and `skip_corrupt` is off, or a domain is too
                small to be split.

        Source: DomainBed, arXiv:2007.01434, section 3 and its code: a share (0.2) of every domain
        is held out for validation; accuracy on a test domain is that of its larger part.
        """
        assert self.options.image_size is not None  # resolved by the plan
        cache = self.cache or Path(tempfile.mkdtemp(prefix="moe-runner-"))
        arrays, skipped = [], {}
        digests: dict[str, list[str]] = {}
        splits: dict[str, Dataset] = {}
        for number, domain in enumerate(self.domains):
            array, digests[domain.name] = decoded(domain, self.options.image_size, cache)
            corrupt = [i for i, digest in enumerate(digests[domain.name]) if digest == CORRUPT]
            if corrupt and not self.options.skip_corrupt:
                names = ", ".join(domain.describe(i) for i in corrupt[:NAMED])
                more = f" and {len(corrupt) - NAMED} more" if len(corrupt) > NAMED else ""
                raise ValueError(
                    f"no readable image: {names}{more}; mend or remove it, or leave such files "
                    "out with task.skip_corrupt=true"
                )
            if corrupt:
                skipped[domain.name] = len(corrupt)
                log.warning(
                    "  %s: %d corrupt images left out, the first is %s",
                    domain.name, len(corrupt), domain.describe(corrupt[0]),
                )  # fmt: skip
            arrays.append(array)
            splits |= self._split(number, set(corrupt), seed)
        self._warn_of_classes()
        self._warn_of_repeated(splits, digests)
        tested = [name for name in self.held_out if name != self.selecting]
        return replace(
            self,
            train=self._joined(splits, "in", self._limit()),
            validation={self.spec.validation[0]: self._selection(splits)},
            ood={name: first(splits[f"{name}/in"], self.options.eval_limit) for name in tested},
            ood_specs=dict.fromkeys(
                tested, OODSpec(columns=self.spec.columns, metrics=self.spec.metrics)
            ),
            arrays=tuple(arrays),
            splits={}
            if self.plain
            else {name: first(rows, self.options.eval_limit) for name, rows in splits.items()},
            skipped=skipped,
        )

    @property
    def training_domains(self) -> tuple[str, ...]:
        """Names of the domains that are trained on, in order."""
        return tuple(d.name for d in self.domains if d.name not in self.held_out)

    def _warn_of_classes(self) -> None:
        """Name the classes that some domains do not have."""
        for label, name in enumerate(self.spec.labels):
            without = [domain.name for domain in self.domains if label not in domain.labels]
            if without:
                log.warning("  the class %s is not in %s", name, ", ".join(without))

    def _warn_of_repeated(self, splits: dict[str, Dataset], digests: dict[str, list[str]]) -> None:
        """Count the pictures that are trained on and evaluated, too."""

        def pictures(domain: str, part: str) -> list[str]:
            return [digests[domain][row] for row in splits[f"{domain}/{part}"]["image"]]

        trained = {d for name in self.training_domains for d in pictures(name, "in")}
        evaluated = [] if self.selecting else [(name, "out") for name in self.training_domains]
        evaluated += [(name, "in") for name in self.held_out if name in digests]
        for name, part in evaluated:
            if repeated := sum(digest in trained for digest in pictures(name, part)):
                log.warning(
                    "  %d of the pictures that %s is evaluated on are also trained on",
                    repeated, name,
                )  # fmt: skip

    def _selection(self, splits: dict[str, Dataset]) -> Dataset:
        """Choose the images that select the epoch."""
        if self.selecting is not None:
            return first(splits[f"{self.selecting}/in"], self.options.eval_limit)
        return self._joined(splits, "out", self.options.eval_limit)

    def _limit(self) -> int | None:
        limit = self.options.limit
        return None if limit is None else max(1, limit // len(self.training_domains))

    def _joined(self, splits: dict[str, Dataset], part: str, limit: int | None) -> Dataset:
        """Put one part of all training domains together, at most `limit` rows of each."""
        from datasets import concatenate_datasets

        names = self.training_domains
        return concatenate_datasets([first(splits[f"{name}/{part}"], limit) for name in names])

    def _split(self, number: int, corrupt: set[int], seed: int) -> dict[str, Dataset]:
        """Split a domain at random into its in-split and its out-split."""
        import numpy as np
        from datasets import ClassLabel, Dataset, Features, Value

        domain = self.domains[number]
        good = np.array([i for i in range(len(domain.labels)) if i not in corrupt], dtype=np.int64)
        undivided = self.selecting is not None or self.plain and domain.name in self.held_out
        num_out = 0 if undivided else int(len(good) * self.options.holdout)
        if num_out == 0 and not undivided:
            raise ValueError(
                f"domain {domain.name} has {len(good)} readable images, too few to hold out "
                f"task.holdout={self.options.holdout:g} of them"
            )
        order = np.random.default_rng([seed, number]).permutation(good)
        labels = np.asarray(domain.labels, dtype=np.int64)
        features = Features(
            image=Value("int64"),
            domain=Value("int64"),
            label=ClassLabel(names=list(self.spec.labels)),
        )

        def rows(index: NDArray[np.int64]) -> Dataset:
            columns = {
                "image": index,
                "domain": np.full_like(index, number),
                "label": labels[index],
            }
            return Dataset.from_dict(columns, features=features)

        return {
            f"{domain.name}/in": rows(order[num_out:]),
            f"{domain.name}/out": rows(order[:num_out]),
        }


def first(rows: Dataset, limit: int | None) -> Dataset:
    """Take the first rows; they are in random order."""
    return rows if limit is None or limit >= len(rows) else rows.select(range(limit))


def decoded(domain: Domain, size: int, cache: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode the images of a domain, once for all runs.

    Args:
        domain: what to read.
        size: S for images that have no size of their own; they are resized whatever their shape,
            as DomainBed does.
        cache: the arrays go to `images/` in it.

    Returns:
        Memory-mapped images, RGB, uint8 (N, 3, S, S), and a digest of each; `CORRUPT` for those
        that can't be decoded, which are black.
    """
    import numpy as np
    from filelock import FileLock

    size = domain.size or size
    content = content_hash(domain.files, cache / "hashes.json") if domain.files else ""
    name = hashlib.sha256(f"{DECODING} {domain.key} {content}".encode()).hexdigest()[:24]
    file = cache / "images" / f"{name}-{size}.npy"
    report = file.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            unfinished = file.with_suffix(".part")  # of this or of a killed process
            write_json(report, {"domain": domain.name, "digests": decode(domain, size, unfinished)})
            os.replace(unfinished, file)
    return np.load(file, mmap_mode="r"), read_json(report)["digests"]


def decode(domain: Domain, size: int, file: Path) -> list[str]:
    """Write the images of a domain as an array, on as many threads as there are processors.

    Args:
        domain: what to read.
        size: S.
        file: where the array goes.

    Returns:
        A digest of each image's content; `CORRUPT` for those that can't be decoded.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from PIL import Image

    shape = (len(domain.labels), 3, size, size)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    reserve(file)

    def one(index: int) -> str:
        try:
            image = to_rgb(domain.read(index))  # decodes
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return CORRUPT
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        array[index] = np.asarray(image).transpose(2, 0, 1)
        return hashlib.blake2b(array[index].tobytes(), digest_size=8).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes without the interpreter's lock
        digests = list(pool.map(one, range(len(domain.labels))))
    array.flush()
    return digests


def reserve(file: Path) -> None:
    """Take the disk space that a file of holes will need: writing to a map of it can't say no.

    On a full disk the system kills the process (SIGBUS) instead.

    Raises:
        OSError: if there is not enough; it names the file, which is removed.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with naming(file), file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError:
        file.unlink()
        raise


def to_rgb(image: Image) -> Image:
    """Decode an image of any mode as 8-bit RGB, upright.

    Grey values of 16 bits (any byte order) are divided by 257, floats of 0 to 1 multiplied by 255:
    PIL would clip them. The orientation that a camera noted (EXIF) is applied.

    Args:
        image: opened.

    Raises:
        ValueError: if the range of its values is not known.
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        most = values.max(initial=0.0)
        if values.min(initial=0.0) < 0 or not most <= 65535:
            raise ValueError(f"values from {values.min():g} to {most:g}: no known range")
        if image.mode.startswith("I;16") or most > 255:
            values = values / 257
        elif image.mode == "F" and most <= 1:
            values = values * 255
        image = Image.fromarray(np.rint(values).astype(np.uint8))
    return image.convert("RGB")


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """List the images of a domain's folder, `<class>/**`.

    Args:
        folder: of the domain.

    Returns:
        Class and file, sorted.
    """
    return _listing(folder)[0]


def unread_of(folder: Path) -> list[tuple[str, Path]]:
    """List what is no image by its ending in a domain's folder, as `files_of` does the images."""
    return _listing(folder)[1]


Listing = tuple[list[tuple[str, Path]], list[tuple[str, Path]]]  # images, other files
_listed: dict[Any, Listing] = {}  # a plan asks once per held-out domain


def _listing(folder: Path) -> Listing:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not is_clutter(p.name))
    stamps = tuple((path, path.stat().st_mtime_ns) for path in classes)
    if stamps not in _listed:
        images: list[tuple[str, Path]] = []
        others: list[tuple[str, Path]] = []
        for label in classes:
            for file in sorted(label.rglob("*")):
                if any(map(is_clutter, file.relative_to(label).parts)):
                    continue
                if file.is_file() or file.is_symlink():  # a broken link is told when it is opened
                    known = file.suffix.lower() in ENDINGS
                    (images if known else others).append((label.name, file))
        _listed[stamps] = images, others
    return _listed[stamps]


def open_image(source: Path | bytes) -> Image:
    """Open an image by its file or its content; it is decoded when it is converted."""
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(source) if isinstance(source, bytes) else source)
