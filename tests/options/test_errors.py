"""How mistakes are worded."""

from __future__ import annotations

import pytest

from moe_runner.options.errors import join, nearest_keys, show
from moe_runner.options.settings import option_keys


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (3e-5, "3e-5"),
        (0.1, "0.1"),
        (1e20, "1e+20"),
        ([8, None], "[8,null]"),
        ({"a": (1,)}, "{a:[1]}"),
        ("x", "x"),
    ],
)
def test_show_writes_a_value_as_typed(value, text):
    assert show(value) == text


def test_join():
    assert [join(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("top_k", ["method.top_k"]),
        ("topk", ["method.top_k"]),
        ("learning_rate", ["tuning.learning_rate", "trainer.learning_rate"]),
        ("trainer.seed", ["seed"]),
        ("metod.top_k", ["method.top_k"]),
        ("modle.revision", ["model.revision"]),
        ("trainer.foo", []),
        ("zzz", []),
    ],
)
def test_nearest_keys(given, expected):
    assert nearest_keys(given, option_keys()) == expected
