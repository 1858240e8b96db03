"""Domains made from grey digits: turned by an angle, or coloured after a label with noise.

Source: RotatedMNIST and ColoredMNIST of DomainBed, arXiv:2007.01434 (the second after IRM,
arXiv:1907.02893).
"""

# N digits, S pixels a side

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.tasks.images import Domain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

VERSION = 1  # raise it when other images or labels come out
ANGLES = (0, 15, 30, 45, 60, 75)  # degrees, counter-clockwise
# How often the colour agrees with the label; called +90%, +80%, -90% in DomainBed.
AGREEMENT = {"plus_90": 0.9, "plus_80": 0.8, "minus_90": 0.1}
LABEL_NOISE = 0.25


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Grey digits that domains are made from.

    Args:
        key: names them.
        labels: 0 to 9.
        read: opens one, any mode, S x S.
        size: S.
        files: what is read.
    """

    key: str
    labels: Sequence[int]
    read: Callable[[int], Image]
    size: int
    files: tuple[Path, ...] = ()


def rotated(digits: Digits, seed: int) -> tuple[Domain, ...]:
    """Deal the digits out to the angles, so that no digit is in two domains.

    Args:
        digits: all of them.
        seed: of the dealing.

    Returns:
        A domain for each of `ANGLES`, classes 0 to 9.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(digits.labels))
    labels = np.asarray(digits.labels)

    def domain(number: int, angle: int) -> Domain:
        mine = order[number :: len(ANGLES)]
        return Domain(
            name=str(angle),
            key=f"rotated v{VERSION} {digits.key} seed {seed} angle {angle}",
            labels=labels[mine].tolist(),
            describe=lambda index: f"digit {mine[index]} turned by {angle}",
            read=lambda index: turn(digits.read(int(mine[index])), angle),
            files=digits.files,
            size=digits.size,
        )

    return tuple(domain(number, angle) for number, angle in enumerate(ANGLES))


def turn(image: Image, angle: int) -> Image:
    """Turn a grey image about its centre; what comes in from outside is black."""
    from PIL import Image

    return image.convert("L").rotate(angle, Image.Resampling.BILINEAR)


def colored(digits: Digits, seed: int) -> tuple[Domain, ...]:
    """Deal the digits out, label them low (0 to 4) or high, and colour them.

    A quarter of the labels is flipped. The colour, red for high, agrees with the flipped label as
    often as `AGREEMENT` says: it predicts better than the shape where the model is trained, and
    worse than chance in the last domain.

    Args:
        digits: all of them.
        seed: of dealing, noise and colours.

    Returns:
        A domain for each of `AGREEMENT`.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.labels))
    high = (np.asarray(digits.labels) >= 5) ^ (rng.random(len(order)) < LABEL_NOISE)
    chance = rng.random(len(order))

    def domain(number: int, name: str, agreement: float) -> Domain:
        mine = order[number :: len(AGREEMENT)]
        red = high[mine] == (chance[mine] < agreement)
        return Domain(
            name=name,
            key=f"colored v{VERSION} {digits.key} seed {seed} domain {name}",
            labels=high[mine].astype(int).tolist(),
            describe=lambda index: f"digit {mine[index]} of {name}",
            read=lambda index: paint(digits.read(int(mine[index])), bool(red[index])),
            files=digits.files,
            size=digits.size,
        )

    return tuple(domain(number, *item) for number, item in enumerate(AGREEMENT.items()))


def paint(image: Image, red: bool) -> Image:
    """Put a grey image into the red or the green channel."""
    from PIL import Image

    grey = image.convert("L")
    black = Image.new("L", grey.size)
    return Image.merge("RGB", (grey, black, black) if red else (black, grey, black))


def handwritten(canvas: int = 32, margin: int = 4) -> Digits:
    """Take scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged, with room to be turned.

    Args:
        canvas: S.
        margin: black pixels on every side.

    Returns:
        The digits.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images: NDArray[np.uint8] = (bunch.images * (255 / 16)).astype(np.uint8)
    inner = canvas - 2 * margin

    def read(index: int) -> Image.Image:
        whole = Image.new("L", (canvas, canvas))
        digit = Image.fromarray(images[index])
        whole.paste(digit.resize((inner, inner), Image.Resampling.BICUBIC), (margin, margin))
        return whole

    key = f"scikit-learn digits on {canvas} pixels"
    return Digits(key=key, labels=bunch.target.tolist(), read=read, size=canvas)
