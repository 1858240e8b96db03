"""Command lines that hypothesis makes up: whatever they are, they are judged in clear lines."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from moe_runner.cli.arguments import check_arguments
from moe_runner.options.settings import option_keys

GROUPS = ("method", "model", "task", "tuning", "protocol", "search", "trainer", "logger", "study")
NAMES = st.sampled_from(["emoe", "dense", "bert_tiny", "glue_mini/rte", "lora", "paper", "mini"])
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=12),
    NAMES,
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)


def spelled(value: object) -> str:
    """Spell a value as Hydra's grammar has it, as far as it can."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(each)}" for key, each in value.items()) + "}"
    return str(value)


KEYS = st.one_of(st.sampled_from([*option_keys(), *GROUPS]), st.text(max_size=10))
SIGNS = st.sampled_from(["=", "=", "=", "=", "", "==", "=+"])
STARTS = st.sampled_from(["", "", "", "", "+", "++", "~", "-", "--"])
WORDS = st.builds(
    lambda start, key, sign, value: f"{start}{key}{sign}{spelled(value)}",
    STARTS,
    KEYS,
    SIGNS,
    VALUES,
)
LINES = st.lists(WORDS, min_size=1, max_size=3)


def judge(words: list[str]) -> None:
    """Let the program judge a command line.

    Raises:
        AssertionError: if what it says is no list of lines.
    """
    for problem in check_arguments(words):
        assert isinstance(problem, str)
        assert problem.strip(), words
        assert "Traceback" not in problem, words


def try_many(examples: int, seed: int) -> int:
    """Judge so many command lines that are made up."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(LINES)
    def each(words: list[str]) -> None:
        judge(words)

    each()
    return examples
