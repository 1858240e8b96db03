"""Which layers a rule chooses."""

from __future__ import annotations

import pytest

from moe_runner.options.layers import select_layers


@pytest.mark.parametrize(
    ("rule", "num_layers", "chosen"),
    [
        ("last-even:1", 12, (10,)),
        ("last-even:2", 12, (8, 10)),
        ("last-even:1", 24, (22,)),
        ("last-even:1", 48, (46,)),
        ("last-even:2", 32, (28, 30)),
        ("last-even:1", 5, (4,)),
        ("last-even:1", 1, (0,)),
        ("last-even:2", 4, (0, 2)),
        ("last:1", 12, (11,)),
        ("last:3", 4, (1, 2, 3)),
        ("all", 3, (0, 1, 2)),
        ([10, 8], 12, (8, 10)),
        ((3, 3), 4, (3,)),
    ],
)
def test_select_layers(rule, num_layers, chosen):
    assert select_layers(rule, num_layers) == chosen


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("last:0", "last:0 is not a rule"),
        ("last-even:", "last-even: is not a rule"),
        ("last:5", "last:5 asks for more layers than there are; use at most last:4"),
        ("last-even:3", "last-even:3 asks for more layers than there are; use at most last-even:2"),
        ([4], r"\[4\] names layers that do not exist; use 0 to 3"),
        ([-1], r"\[-1\] names layers that do not exist; use 0 to 3"),
        ([], r"\[\] names layers that do not exist; use 0 to 3"),
    ],
)
def test_select_layers_refuses(rule, problem):
    with pytest.raises(ValueError, match=problem):
        select_layers(rule, 4)
