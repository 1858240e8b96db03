"""What a method changes: paired differences to a baseline over seeds, and how sure they are.

The runs of a method and of its baseline with one seed share head, data order and noise, so their
difference has less spread than either. The standard error is that of the mean of these differences
over the seeds. Whether an effect is beyond noise is told by a paired bootstrap that draws seeds,
and tasks, anew: of so few seeds its quantiles are far too narrow (three of one sign always leave
out 0), so its standard error is taken, times Student's t. Of one task that is the paired t-test.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

DRAWS = 4_000
COVERS = 0.95
FEWEST = 3  # seeds: with two Student's t is 12.7
ROUNDING = 1e-9  # of the largest difference


@dataclass(frozen=True)
class Effect:
    """A difference, method minus baseline.

    Args:
        mean: in the unit of the scores.
        error: standard error over the seeds; None with one seed.
        low: of the interval that covers 95%; None with fewer seeds than `FEWEST`, and where all
            differences are equal: scores move in steps, and three equal steps are no certainty.
        high: the other end.
        n: seeds that both have.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def effect(
    method: Sequence[Mapping[int, float]], baseline: Sequence[Mapping[int, float]], seed: int = 0
) -> Effect | None:
    """Compare two systems.

    Args:
        method: of each task, its score by seed.
        baseline: the same tasks.
        seed: of the bootstrap.

    Returns:
        The effect on the mean over the tasks, over the seeds that both have of every task; None if
        there is none, or a score (a perplexity) is not finite.
    """
    import numpy as np  # not at the start of a command

    shared = set.intersection(*(set(scores) for scores in (*method, *baseline)))
    if not shared:
        return None
    seeds = sorted(shared)
    gains_TS = np.array(
        [
            [ours[s] - theirs[s] for s in seeds]
            for ours, theirs in zip(method, baseline, strict=True)
        ]
    )
    if not np.isfinite(gains_TS).all():
        return None
    n = len(seeds)
    by_seed = gains_TS.mean(0)
    error = float(by_seed.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    varies = np.ptp(gains_TS) > ROUNDING * np.abs(gains_TS).max()
    low, high = interval(gains_TS, seed) if n >= FEWEST and varies else (None, None)
    return Effect(float(by_seed.mean()), error, low, high, n)


def interval(gains_TS: ndarray, seed: int) -> tuple[float, float]:
    """Draw tasks and seeds with replacement; the mean plus and minus t times their standard error.

    Args:
        gains_TS: differences, float (T tasks, S seeds).
        seed: of the draws.
    """
    import numpy as np
    from scipy.special import stdtrit  # scipy.stats takes seconds to import

    tasks, seeds = gains_TS.shape
    generator = np.random.default_rng(seed)
    drawn_DT = generator.integers(tasks, size=(DRAWS, tasks))
    drawn_DS = generator.integers(seeds, size=(DRAWS, seeds))
    means_D = gains_TS[drawn_DT[:, :, None], drawn_DS[:, None, :]].mean((1, 2))
    unbiased = math.sqrt(seeds / (seeds - 1))  # a drawn sample has the spread of a population
    reach = stdtrit(seeds - 1, (1 + COVERS) / 2) * means_D.std() * unbiased
    mean = float(gains_TS.mean())
    return mean - float(reach), mean + float(reach)
