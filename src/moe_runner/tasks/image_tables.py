"""Images in parquet files or on the Hub, with the columns image, label and, for domains, domain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner import hub
from moe_runner.downloads import fetching
from moe_runner.tasks.image_variants import Digits
from moe_runner.tasks.images import Domain, open_image
from moe_runner.tasks.places import Source

if TYPE_CHECKING:
    from datasets import Dataset

MNIST_SIZE = 28


def read_images(source: Source) -> tuple[Dataset, tuple[Path, ...]]:
    """Open a table of images without decoding one.

    Args:
        source: parquet files or a split of the Hub.

    Returns:
        The rows, `image` being {"bytes": ..., "path": ...}, and the files that hold them.

    Raises:
        ValueError: if there is no column of images or labels.
    """
    from datasets import Dataset, Image, concatenate_datasets, load_dataset

    files = source.files
    if source.hub is not None:
        place = source.hub
        files = hub.cached_dataset(place.hub_id, place.config, place.split, place.revision)
        if not files:
            with fetching("dataset", place.hub_id, place.revision):
                rows = load_dataset(
                    place.hub_id, place.config, split=place.split, revision=place.revision
                )
            files = tuple(Path(entry["filename"]) for entry in rows.cache_files)
    if files and files[0].suffix == ".arrow":
        rows = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    else:
        rows = concatenate_datasets([_parquet(file) for file in files])
    origin = str(source.hub) if source.hub else " + ".join(map(str, files))
    if missing := {"image", "label"} - set(rows.column_names):
        here = ", ".join(rows.column_names)
        raise ValueError(f"{origin} has the columns {here}; it lacks {', '.join(sorted(missing))}")
    return rows.cast_column("image", Image(decode=False)), files


def _parquet(file: Path) -> Dataset:
    """Read a parquet file with what its metadata say about classes and images."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    return Dataset(pq.read_table(file))


def mnist(tables: Sequence[tuple[Dataset, tuple[Path, ...]]]) -> Digits:
    """Join the splits of MNIST.

    Args:
        tables: of `read_images`.

    Returns:
        All digits.

    Raises:
        ValueError: if a label is not 0 to 9.
    """
    from datasets import concatenate_datasets

    rows = concatenate_datasets([table.select_columns(["image", "label"]) for table, _ in tables])
    labels = rows["label"][:]
    if wrong := [label for label in labels if label not in range(10)]:
        raise ValueError(f"MNIST has the label {wrong[0]}; expected 0 to 9")
    images = rows.select_columns(["image"])
    return Digits(
        key="mnist",
        labels=labels,
        read=lambda index: open_image(images[index]["image"]["bytes"]),
        size=MNIST_SIZE,
        files=tuple(file for _, files in tables for file in files),
    )


def domains_of(
    source: Source, names: tuple[str, ...]
) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
    """Sort the rows of a table by their domain.

    Args:
        source: as for `read_images`.
        names: of the domains; case, spaces, hyphens and underscores do not matter.

    Returns:
        The domains in the order of the names, and the classes.

    Raises:
        ValueError: if there is no column of domains or a domain has no row.
    """
    rows, files = read_images(source)
    if "domain" not in rows.column_names:
        raise ValueError(
            f"{source.hub} has the columns {', '.join(rows.column_names)}; it lacks domain"
        )
    domains, labels = words(rows, "domain"), words(rows, "label")
    classes = tuple(sorted(set(labels)))
    found = []
    for name in names:
        mine = [index for index, domain in enumerate(domains) if plain(domain) == plain(name)]
        if not mine:
            here = ", ".join(sorted(set(domains)))
            raise ValueError(f"{source.hub} has no row of the domain {name}; it has {here}")
        found.append(_domain(name, rows.select_columns(["image"]), mine, labels, classes, files))
    return tuple(found), classes


def _domain(
    name: str,
    images: Dataset,
    mine: list[int],
    labels: list[str],
    classes: tuple[str, ...],
    files: tuple[Path, ...],
) -> Domain:
    return Domain(
        name=name,
        key=f"rows of {name}",
        labels=[classes.index(labels[row]) for row in mine],
        describe=lambda index: f"row {mine[index]} ({name})",
        read=lambda index: open_image(images[mine[index]]["image"]["bytes"]),
        files=files,
    )


def words(rows: Dataset, column: str) -> list[str]:
    """Read a column of names, spelled out or as ClassLabel."""
    feature = rows.features[column]
    values = rows[column][:]
    return (
        [feature.int2str(v) for v in values]
        if hasattr(feature, "int2str")
        else list(map(str, values))
    )


def plain(text: str) -> str:
    """Leave out case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", text).casefold()
