"""How the fields of an options dataclass are declared: what enters a run's id, and allowed ranges.

num_experts: Count = 64
rates: tuple[Positive, ...] = ()                  # a range holds for every element
data_dir: str | None = runtime(None)              # stays out of the id
backend: Backend = seldom("auto", "kernel")       # in the id only as `kernel`
normalize: bool = later(False)                    # in the id only where it is not the default
rate: Positive = later(0.1, neutral=1.0)          # in the id also at its default
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any


def runtime(default: Any) -> Any:
    """Declare an option that stays out of the run's identity.

    It cannot change a number, or what it stands for enters the identity resolved: a path as the
    content of its files, a list of learning rates as the one of the run.

    Args:
        default: of the option; `dataclasses.MISSING` where it must be given.
    """
    return field(default=default, metadata={"identity": False})


def seldom(default: Any, *telling: Any) -> Any:
    """Declare an option that enters the run's identity with some values only.

    Args:
        default: of the option.
        telling: the values that change numbers; the others give the same ones.
    """
    return field(default=default, metadata={"identity": telling})


def later(default: Any, neutral: Any = dataclasses.MISSING) -> Any:
    """Declare an option that came after the first results: it is not in the id while neutral.

    Args:
        default: of the option.
        neutral: what the program did before there was the option, and what a stored run without
            it means; the default, unless given.
    """
    neutral = default if neutral is dataclasses.MISSING else neutral
    return field(default=default, metadata={"neutral": neutral})


@dataclass(frozen=True)
class Range:
    """Which numbers an option may have.

    Args:
        holds: tells of a number whether it is allowed.
        otherwise: what is wrong with any other, and the remedy.
    """

    holds: Callable[[float], bool]
    otherwise: str


ABOVE_ZERO = Range(lambda x: x > 0, "is not positive; use a number above 0")
FROM_ZERO = Range(lambda x: x >= 0, "is negative; use 0 or more")
BELOW_2_32 = Range(lambda x: x < 2**32, "is too large for a seed; use at most 4294967295")
TO_ONE = Range(lambda x: 0 < x <= 1, "is not a share; use more than 0 and at most 1")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "is not a fraction; use 0 or more and less than 1")

Count = Annotated[int, ABOVE_ZERO]
Number = Annotated[int, FROM_ZERO]  # 0 or more of something
Seed = Annotated[int, FROM_ZERO, BELOW_2_32]  # numpy takes no larger one
Positive = Annotated[float, ABOVE_ZERO]
NotNegative = Annotated[float, FROM_ZERO]
Share = Annotated[float, TO_ONE]
Fraction = Annotated[float, BELOW_ONE]

REQUIRED: Any = dataclasses.MISSING  # for `runtime`: the option has no default
