"""What the Hub's libraries raise becomes one line; requests without a limit get one."""

from __future__ import annotations

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.utils import httpx  # or httpx2, by its version

from moe_runner import downloads
from moe_runner.downloads import fetching


def raise_hidden(cause: Exception, shown: Exception) -> None:
    """Raise an error as transformers does: several lines, the cause beside it."""
    try:
        raise cause
    except Exception as error:
        raise shown from error


def test_an_error_of_the_network_says_where_and_what_to_do():
    shown = OSError("We couldn't connect.\nCheckout your internet connection\nor the docs")
    with pytest.raises(ConnectionError) as found, fetching("model", "org/name", "main"):
        raise_hidden(httpx.ReadTimeout("The read operation timed out"), shown)
    assert str(found.value) == (
        f"fetching the model org/name from {constants.ENDPOINT} failed (The read operation timed "
        "out); files that came whole are kept, and the same command fetches the others"
    )


def test_an_error_of_the_network_is_found_where_the_user_is_told_of_a_mistake():
    """`read_model` says of whatever fails that the weights cannot be loaded."""
    with pytest.raises(ConnectionError), fetching("model", "org/name", "main"):
        raise_hidden(httpx.ConnectError("refused"), ValueError("org/name cannot be loaded"))


def test_other_errors_stay_as_they_are():
    with pytest.raises(ValueError, match="no labelled row"), fetching("dataset", "o/n", "main"):
        raise ValueError("no labelled row")


def test_requests_without_a_limit_get_one():
    downloads.limit_waiting()
    downloads.limit_waiting()
    hooks = get_session().event_hooks["request"]
    assert hooks.count(downloads._limit) == 1
    given = {"timeout": {"read": 7, "connect": None}}
    request = httpx.Request("GET", "http://hub", extensions=given)
    downloads._limit(request)
    assert request.extensions["timeout"] == {
        "connect": 30.0,
        "read": 7,
        "write": 30.0,
        "pool": 30.0,
    }
