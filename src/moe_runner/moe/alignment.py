"""Which sizes torch's grouped matrix product takes; no torch here, plans ask as well."""

from __future__ import annotations

import math

ROW_BYTES = 16  # of a row of each matrix: what is no multiple of it, the product refuses


def fits_grouped(d_model: int, size: int, bytes_per_number: int) -> bool:
    """Tell whether the back end `grouped_mm` takes the experts.

    Args:
        d_model: D.
        size: neurons of an expert, F.
        bytes_per_number: of the dtype it computes in: under autocast that one's.
    """
    return math.gcd(d_model, size) * bytes_per_number % ROW_BYTES == 0


def refusal(d_model: int, size: int, bytes_per_number: int) -> str:
    """Say what does not fit, and what to use; see `fits_grouped`."""
    multiple = ROW_BYTES // bytes_per_number
    return (
        f"grouped_mm takes rows of {ROW_BYTES}, 32, 48, ... bytes: in "
        f"{8 * bytes_per_number}-bit numbers d_model={d_model} and the {size} neurons of an expert "
        f"must be multiples of {multiple}"
    )
