"""Batches of images: one minibatch per domain, DomainBed's augmentations, normalisation."""

# B images of a batch, C = 3 channels, S pixels a side

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

SCALE = (0.7, 1.0)  # share of the area that a crop keeps
RATIO = (3 / 4, 4 / 3)  # of its sides
JITTER = 0.3  # brightness, contrast, saturation: a factor of 1 -+ so much; hue: -+ so many turns
GREY = 0.1  # share of the images that lose their colours
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601


class ImageRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of decoded images.

    An item is asked for by its row, or by (row, key): the first key of a batch seeds its
    augmentation, so that a batch is the same whoever makes it, and whenever.

    Args:
        rows: columns image, domain, label.
        arrays: by domain, uint8 (N, C, S, S).
    """

    def __init__(self, rows: Dataset, arrays: Sequence[NDArray[np.uint8]]) -> None:
        self.image, self.domain, self.label = (
            np.asarray(rows[name][:], dtype=np.int64) for name in ("image", "domain", "label")
        )
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        row, key = item if isinstance(item, tuple) else (item, None)
        image = self.arrays[self.domain[row]][self.image[row]]
        return {"image": image, "label": int(self.label[row]), "key": key}


class DomainSampler(Sampler[tuple[int, int]]):
    """Draw a minibatch of every domain for each batch, with replacement and for ever.

    Domains of any length are drawn from alike. An epoch is as many batches as the smallest domain
    fills; its draws depend on seed and epoch alone, so a resumed run gets the batches of a run that
    was never stopped.

    Args:
        domain: of every row, int64 (N,).
        batch_size: of all domains together; divides by their number.
        seed: of the run.

    Source: DomainBed, arXiv:2007.01434: an endless loader per training domain.
    """

    def __init__(self, domain: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.rows = [np.flatnonzero(domain == number) for number in np.unique(domain)]
        self.each, rest = divmod(batch_size, len(self.rows))
        assert rest == 0  # checked with the plan
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.batches = max(1, min(len(rows) for rows in self.rows) // self.each)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        for _ in range(self.batches):
            for rows in self.rows:
                chosen = rows[rng.integers(len(rows), size=self.each)]
                keys = rng.integers(2**62, size=self.each)
                yield from zip(chosen.tolist(), keys.tolist(), strict=True)

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch; called by the data loader before each."""
        self.epoch = epoch


class ShuffledSampler(DomainSampler):
    """Draw every row once an epoch, in an order that depends on seed and epoch alone."""

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(np.concatenate(self.rows))
        yield from zip(order.tolist(), rng.integers(2**62, size=len(order)).tolist(), strict=True)


class Collator:
    """Make a batch of the model: augmented where it is for training, resized, normalised.

    Args:
        size: S of the model.
        mean: of the channels, 0 to 1.
        std: of the channels.
        augment: whether to augment what has a key.
    """

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], augment: bool
    ) -> None:
        self.size, self.augment = size, augment
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return pixel_values, float (B, C, S, S), and labels, int64 (B,)."""
        images = torch.from_numpy(np.stack([item["image"] for item in items])).float().div_(255)
        key = items[0]["key"]
        if key is not None and self.augment:
            images = augmented(images, self.size, torch.Generator().manual_seed(key))
        elif images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear")
        pixels = (images - self.mean) / self.std
        return {"pixel_values": pixels, "labels": torch.tensor([item["label"] for item in items])}


def augmented(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Crop, flip, jitter the colours and take some away, each image in its own way.

    The order of brightness, contrast, saturation and hue is drawn once for the batch.

    Args:
        images: float (B, C, S, S), 0 to 1.
        size: S of what comes out.
        generator: everything random.

    Returns:
        float (B, C, size, size), 0 to 1.

    Source: DomainBed, arXiv:2007.01434, its code: RandomResizedCrop(scale 0.7 to 1), horizontal
    flip, ColorJitter(0.3, 0.3, 0.3, 0.3), RandomGrayscale(0.1).
    """
    images = cropped(images, size, generator)
    steps = (brightness, contrast, saturation, hue)
    for number in torch.randperm(len(steps), generator=generator).tolist():
        amount = torch.rand(len(images), 1, 1, 1, generator=generator) * 2 * JITTER - JITTER
        images = steps[number](images, amount)
    grey = torch.rand(len(images), 1, 1, 1, generator=generator) < GREY
    return torch.where(grey, luminance(images), images)


def cropped(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a part out of every image, mirror half of them, and bring it to a size; see `augmented`.

    A crop that would be longer than the image ends at its border.
    """
    count = len(images)
    area, ratio, left, top = torch.rand(4, count, generator=generator)
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * area
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    x, y = (2 * left - 1) * (1 - width), (2 * top - 1) * (1 - height)  # centres, -1 to 1
    theta = torch.stack([width * mirror, zero, x, zero, height, y], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def luminance(images: Tensor) -> Tensor:
    """Compute the brightness of every pixel, (B, 1, S, S)."""
    return (images * torch.tensor(GREY_WEIGHTS).view(3, 1, 1)).sum(1, keepdim=True)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Scale towards or away from black."""
    return (images * (1 + amount)).clamp(0, 1)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """Scale towards or away from the mean brightness."""
    mean = luminance(images).mean((2, 3), keepdim=True)
    return (mean + (images - mean) * (1 + amount)).clamp(0, 1)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    """Scale towards or away from grey."""
    grey = luminance(images)
    return (grey + (images - grey) * (1 + amount)).clamp(0, 1)


def hue(images: Tensor, amount: Tensor) -> Tensor:
    """Turn the hue by a share of a full turn; value and saturation (HSV) stay.

    Source: the formula of HSV to RGB without cases, f(n) = v - v s max(0, min(k, 4 - k, 1)) with
    k = (n + 6 h) mod 6.
    """
    value, index = images.max(1, keepdim=True)
    chroma = value - images.min(1, keepdim=True).values
    red, green, blue = images.split(1, dim=1)
    safe = chroma.clamp(min=1e-8)
    by_channel = torch.cat(
        [(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], dim=1
    )
    turn = by_channel.gather(1, index) + 6 * amount
    parts = []
    for offset in (5, 3, 1):
        k = (offset + turn) % 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(parts, dim=1)
