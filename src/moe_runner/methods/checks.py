"""Checks and facts of a method's options that several methods share; torch-free."""

from __future__ import annotations

import bisect

from moe_runner.options.model import Model
from moe_runner.registry import FAMILIES


def cluster_problems(num_experts: int, model: Model) -> list[str]:
    """Check that the neurons of an FFN can be shared equally among experts.

    Args:
        num_experts: E.
        model: its d_ff is read.

    Returns:
        One line if they cannot, which names sizes near E that fit; else none.
    """
    if num_experts > 0 and model.d_ff % num_experts == 0:
        return []
    sizes = divisors(model.d_ff)
    above = bisect.bisect(sizes, num_experts)
    first = max(min(above - 1, len(sizes) - 3), 0)
    return [
        f"method.num_experts={num_experts} does not divide d_ff={model.d_ff} of "
        f"model={model.name}; use one of {', '.join(map(str, sizes[first : first + 3]))}, ..."
    ]


def divisors(number: int) -> list[int]:
    """List the divisors of a positive number in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def count_problems(num_experts: int) -> list[str]:
    """Check the number of copies."""
    if num_experts > 0:
        return []
    return [f"method.num_experts={num_experts} is not positive; use 1 or more"]


def top_k_problems(top_k: int, num_experts: int) -> list[str]:
    """Check the number of selected experts; a wrong number of experts is another's problem."""
    if num_experts < 1 or 1 <= top_k <= num_experts:
        return []
    bound = "more than" if top_k > 0 else "not allowed with"
    return [
        f"method.top_k={top_k} is {bound} method.num_experts={num_experts}; use 1 to {num_experts}"
    ]


def later_of_cosine(top_k: int, model: Model) -> frozenset[str]:
    """Name what acts on a layer with a cosine router, see `Method.later_protocol`.

    Args:
        top_k: experts per token.
        model: the backbone's options.
    """
    if not FAMILIES[model.family].reference_extras:
        return frozenset()
    return frozenset({"load_threshold_on"} | ({"one_expert_weight"} if top_k == 1 else set()))
