"""Drawn images with two labels: which glyph, and on which background; made from a seed.

`vit_tiny` is pretrained on them (`scripts/pretrain_tiny.py`). Strokes are exact distances to line
segments, so a batch is a few array operations; no image file is read.
"""

# B images, S segments of a glyph, P pixels of an image

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Point = tuple[float, float]
Stroke = Sequence[Point]

SIZE = 32  # pixels


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, parts: int) -> Stroke:
    """Sample an arc of an ellipse; angles in degrees, 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, end, parts + 1))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def polygon(corners: int, start: float = -90.0) -> Stroke:
    """Sample a closed regular polygon."""
    return arc(0.5, 0.5, 0.42, 0.42, start, start + 360, corners)


def star(points: int, inner: float) -> Stroke:
    """Sample a closed star."""
    radii = [0.46 if i % 2 == 0 else inner for i in range(2 * points)]
    angles = [math.pi * (i / points - 0.5) for i in range(2 * points)]
    corners = [
        (0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    ]
    return [*corners, corners[0]]


def spiral() -> Stroke:
    """Sample two turns."""
    return [
        (0.5 + 0.45 * t * math.cos(12 * t), 0.5 + 0.45 * t * math.sin(12 * t))
        for t in np.linspace(0.08, 1.0, 19)
    ]


def wave() -> Stroke:
    """Sample a sine."""
    return [(x, 0.5 + 0.3 * math.sin(2 * math.pi * 1.5 * x)) for x in np.linspace(0, 1, 17)]


BOX: Stroke = [(0.12, 0.12), (0.88, 0.12), (0.88, 0.88), (0.12, 0.88), (0.12, 0.12)]
GLYPHS: dict[str, list[Stroke]] = {  # in the unit square, y down
    # digits
    "0": [arc(0.5, 0.5, 0.3, 0.45, 0, 360, 14)],
    "1": [[(0.32, 0.25), (0.55, 0.05), (0.55, 0.95)]],
    "2": [[*arc(0.5, 0.3, 0.3, 0.25, 180, 380, 8), (0.2, 0.95), (0.82, 0.95)]],
    "3": [[*arc(0.45, 0.28, 0.3, 0.23, 200, 450, 7), *arc(0.45, 0.73, 0.33, 0.23, 270, 520, 7)]],
    "4": [[(0.68, 0.95), (0.68, 0.05), (0.15, 0.65), (0.88, 0.65)]],
    "5": [[(0.8, 0.05), (0.3, 0.05), (0.25, 0.42), *arc(0.48, 0.66, 0.32, 0.28, 230, 500, 8)]],
    "6": [[(0.7, 0.05), (0.35, 0.35), *arc(0.5, 0.68, 0.28, 0.27, 180, 540, 11)]],
    "7": [[(0.15, 0.05), (0.85, 0.05), (0.4, 0.95)]],
    "8": [arc(0.5, 0.27, 0.25, 0.22, 90, 450, 9), arc(0.5, 0.73, 0.3, 0.24, -90, 270, 9)],
    "9": [[*arc(0.5, 0.32, 0.28, 0.27, 0, 360, 11), (0.75, 0.55), (0.6, 0.95)]],
    # letters
    "A": [[(0.1, 0.95), (0.5, 0.05), (0.9, 0.95)], [(0.27, 0.6), (0.73, 0.6)]],
    "E": [[(0.85, 0.05), (0.2, 0.05), (0.2, 0.95), (0.85, 0.95)], [(0.2, 0.5), (0.7, 0.5)]],
    "F": [[(0.85, 0.05), (0.2, 0.05), (0.2, 0.95)], [(0.2, 0.5), (0.7, 0.5)]],
    "H": [[(0.2, 0.05), (0.2, 0.95)], [(0.8, 0.05), (0.8, 0.95)], [(0.2, 0.5), (0.8, 0.5)]],
    "J": [[(0.7, 0.05), (0.7, 0.65), *arc(0.45, 0.7, 0.25, 0.25, 0, 160, 6)]],
    "K": [[(0.2, 0.05), (0.2, 0.95)], [(0.8, 0.05), (0.2, 0.5), (0.8, 0.95)]],
    "M": [[(0.1, 0.95), (0.15, 0.05), (0.5, 0.6), (0.85, 0.05), (0.9, 0.95)]],
    "P": [[(0.2, 0.95), (0.2, 0.05), *arc(0.45, 0.28, 0.35, 0.23, -90, 90, 7), (0.2, 0.51)]],
    "R": [
        [(0.2, 0.95), (0.2, 0.05), *arc(0.45, 0.28, 0.35, 0.23, -90, 90, 7), (0.2, 0.51)],
        [(0.45, 0.51), (0.85, 0.95)],
    ],
    "S": [[*arc(0.5, 0.28, 0.3, 0.23, -20, -270, 8), *arc(0.5, 0.73, 0.32, 0.23, -90, 160, 8)]],
    "T": [[(0.1, 0.05), (0.9, 0.05)], [(0.5, 0.05), (0.5, 0.95)]],
    "U": [[(0.15, 0.05), (0.15, 0.6), *arc(0.5, 0.6, 0.35, 0.35, 180, 0, 8), (0.85, 0.05)]],
    "W": [[(0.05, 0.05), (0.25, 0.95), (0.5, 0.4), (0.75, 0.95), (0.95, 0.05)]],
    "X": [[(0.1, 0.05), (0.9, 0.95)], [(0.9, 0.05), (0.1, 0.95)]],
    "Y": [[(0.1, 0.05), (0.5, 0.5), (0.9, 0.05)], [(0.5, 0.5), (0.5, 0.95)]],
    # closed figures, drawn as outlines or filled
    "disc": [arc(0.5, 0.5, 0.42, 0.42, 0, 360, 18)],
    "square": [BOX],
    "triangle": [polygon(3)],
    "pentagon": [polygon(5)],
    "star": [star(5, 0.18)],
    "diamond": [[(0.5, 0.02), (0.78, 0.5), (0.5, 0.98), (0.22, 0.5), (0.5, 0.02)]],
    "half": [[*arc(0.5, 0.65, 0.45, 0.5, 180, 360, 12), (0.05, 0.65)]],
    "house": [[(0.15, 0.95), (0.15, 0.45), (0.5, 0.05), (0.85, 0.45), (0.85, 0.95), (0.15, 0.95)]],
    "bar": [[(0.05, 0.35), (0.95, 0.35), (0.95, 0.65), (0.05, 0.65), (0.05, 0.35)]],
    # open figures
    "arrow": [[(0.05, 0.5), (0.95, 0.5)], [(0.65, 0.2), (0.95, 0.5), (0.65, 0.8)]],
    "plus": [[(0.5, 0.05), (0.5, 0.95)], [(0.05, 0.5), (0.95, 0.5)]],
    "spiral": [spiral()],
    "wave": [wave()],
    "zigzag": [[(0.02, 0.7), (0.22, 0.3), (0.42, 0.7), (0.62, 0.3), (0.82, 0.7), (0.98, 0.35)]],
    "face": [
        arc(0.5, 0.5, 0.45, 0.45, 0, 360, 12),
        [(0.33, 0.35), (0.33, 0.42)],
        [(0.67, 0.35), (0.67, 0.42)],
        arc(0.5, 0.55, 0.24, 0.2, 20, 160, 5),
    ],
    "animal": [
        arc(0.5, 0.45, 0.3, 0.16, 0, 360, 9),
        [(0.3, 0.55), (0.28, 0.92)],
        [(0.45, 0.6), (0.45, 0.92)],
        [(0.58, 0.6), (0.58, 0.92)],
        [(0.7, 0.55), (0.72, 0.92)],
        [(0.78, 0.38), (0.95, 0.15), (0.99, 0.25)],
    ],
}
CLOSED = ("disc", "square", "triangle", "pentagon", "star", "diamond", "half", "house", "bar")
BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "dots", "clouds", "grain", "rings")
LABELS = (*GLYPHS, *BACKGROUNDS)  # of the classifier: the glyphs come first


def _templates() -> Floats:
    """Turn the glyphs into line segments, float (glyphs, S, 2 ends, 2); short ones repeat one."""
    found = [
        [(a, b) for stroke in strokes for a, b in zip(stroke, stroke[1:], strict=False)]
        for strokes in GLYPHS.values()
    ]
    most = max(len(segments) for segments in found)
    return np.array([s + s[-1:] * (most - len(s)) for s in found], dtype=np.float32)


TEMPLATES = _templates()
COUNTS = np.array(
    [sum(len(stroke) - 1 for stroke in strokes) for strokes in GLYPHS.values()], dtype=np.int64
)
IS_CLOSED = np.array([name in CLOSED for name in GLYPHS])


def draw(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images: a distorted glyph in one colour on a background in two.

    Args:
        count: B, images.
        rng: everything random.

    Returns:
        Images, uint8 (B, 3, SIZE, SIZE), and labels, int64 (B, 2): index into `GLYPHS` and into
        `BACKGROUNDS`.
    """
    glyph = rng.integers(len(GLYPHS), size=count)
    background = rng.integers(len(BACKGROUNDS), size=count)
    coverage = _coverage(glyph, rng)
    pattern = _pattern(background, rng)
    colours = rng.random((count, 3, 3), dtype=np.float32)  # glyph, background, its second colour
    grey = rng.random(count) < 0.35
    colours[grey] = colours[grey].mean(2, keepdims=True)
    colours[:, 2] = colours[:, 1] + rng.uniform(0.3, 0.8, (count, 1)) * (
        colours[:, 2] - colours[:, 1]
    )
    # A glyph that is nearly as bright as what is behind it gets the other end of the scale.
    behind = colours[:, 1:].mean((1, 2))
    faint = np.abs(colours[:, 0].mean(1) - behind) < 0.3
    colours[faint, 0] = np.where(behind[faint] > 0.5, 0.0, 1.0)[:, None] * 0.9 + 0.05
    plane = colours[:, 1, :, None] + pattern[:, None] * (colours[:, 2] - colours[:, 1])[..., None]
    image = plane + coverage[:, None] * (colours[:, 0, :, None] - plane)
    image += rng.normal(0, 1, image.shape).astype(np.float32) * rng.uniform(
        0, 0.06, (count, 1, 1)
    ).astype(np.float32)
    image = image.reshape(count, 3, SIZE, SIZE)
    coarse = rng.random(count) < 0.3
    image[coarse] = blurred(image[coarse], 4)
    images = (image.clip(0, 1) * 255).astype(np.uint8)
    return images, np.stack([glyph, background], 1)


def _coverage(glyph: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Compute how much of every pixel a glyph covers, float (B, P), 0 to 1."""
    count = len(glyph)
    points = TEMPLATES[glyph] - 0.5  # (B, S, 2, 2)
    frequency = rng.uniform(2, 5, (count, 1, 1, 2)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 2)).astype(np.float32)
    bend = rng.uniform(0, 0.06, (count, 1, 1, 2)).astype(np.float32)
    points = points + bend * np.sin(frequency * points[..., ::-1] + phase)
    angle = np.radians(rng.normal(0, 14, count)).astype(np.float32)
    shear = rng.normal(0, 0.15, count).astype(np.float32)
    scale = rng.uniform(0.5, 0.9, (count, 2)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([cos, -sin, sin, cos], 1).reshape(count, 2, 2)
    lean = np.tile(np.eye(2, dtype=np.float32), (count, 1, 1))
    lean[:, 0, 1] = shear
    matrix = turn @ lean * scale[:, None]
    points = np.einsum("bij,bskj->bski", matrix, points)
    points += rng.uniform(-0.12, 0.12, (count, 1, 1, 2)).astype(np.float32) + 0.5
    start, end = points[:, :, 0], points[:, :, 1]  # (B, S, 2)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    x, y = (part.reshape(-1) for part in np.meshgrid(axis, axis))
    along = end - start
    length = np.maximum((along**2).sum(-1), 1e-8)
    dx = x - start[:, :, :1]  # (B, S, P)
    dy = y - start[:, :, 1:]
    ax, ay = along[:, :, :1], along[:, :, 1:]
    share = ((dx * ax + dy * ay) / length[..., None]).clip(0, 1)
    distance = np.sqrt(((dx - share * ax) ** 2 + (dy - share * ay) ** 2).min(1))
    width = rng.uniform(0.03, 0.08, (count, 1)).astype(np.float32)
    covered = ((width - distance) * SIZE + 0.5).clip(0, 1)
    filled = np.flatnonzero(IS_CLOSED[glyph] & (rng.random(count) < 0.5))
    if len(filled):
        below = y > start[filled, :, 1:]
        crosses = below != (y > end[filled, :, 1:])
        rise = np.where(np.abs(ay[filled]) < 1e-6, 1e-6, ay[filled])
        right = x < start[filled, :, :1] + dy[filled] / rise * ax[filled]
        real = np.arange(TEMPLATES.shape[1]) < COUNTS[glyph[filled]][:, None]
        inside = (crosses & right & real[..., None]).sum(1) % 2 == 1
        covered[filled] = np.maximum(covered[filled], inside)
    return covered


def _pattern(background: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Compute the share of the second colour, float (B, P), 0 to 1."""
    count = len(background)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = (part.reshape(-1) for part in np.meshgrid(axis, axis))
    angle = rng.uniform(0, np.pi, (count, 1)).astype(np.float32)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    rate = rng.uniform(6, 16, (count, 1)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    noise = rng.random((count, SIZE * SIZE), dtype=np.float32)
    coarse = noise.reshape(count, 1, SIZE, SIZE)
    clouds = blurred(coarse, 8).reshape(count, -1)
    clouds = (clouds - clouds.min(1, keepdims=True)) / np.ptp(clouds, axis=1, keepdims=True)
    centre = rng.uniform(-0.5, 0.5, (2, count, 1)).astype(np.float32)
    radius = np.hypot(x - centre[0], y - centre[1])
    stripes = 0.5 + 0.5 * np.sin(rate * u + phase)
    across = 0.5 + 0.5 * np.sin(rate * v + phase)
    patterns = {
        "plain": np.zeros_like(noise),
        "gradient": 0.5 + 0.5 * u.clip(-1, 1),
        "stripes": stripes,
        "checks": ((stripes > 0.5) != (across > 0.5)).astype(np.float32),
        "dots": (stripes * across > 0.55).astype(np.float32),
        "clouds": clouds,
        "grain": noise,
        "rings": 0.5 + 0.5 * np.sin(rate * radius + phase),
    }
    return np.stack([patterns[name] for name in BACKGROUNDS])[background, np.arange(count)]


def blurred(images: Floats, factor: int) -> Floats:
    """Shrink by averaging and enlarge linearly again: what a small picture looks like.

    Args:
        images: float (B, C, SIZE, SIZE).
        factor: divides SIZE.

    Returns:
        The same shape.
    """
    small = images.reshape(*images.shape[:2], SIZE // factor, factor, SIZE // factor, factor)
    small = small.mean((3, 5))
    place = ((np.arange(SIZE) + 0.5) / factor - 0.5).clip(0, SIZE // factor - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, SIZE // factor - 1)
    share = (place - low).astype(np.float32)
    rows = small[:, :, low] * (1 - share)[:, None] + small[:, :, high] * share[:, None]
    return rows[..., low] * (1 - share) + rows[..., high] * share
