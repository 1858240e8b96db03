"""The JSON files of the store: an object in each, or an error that names file and remedy."""

from pathlib import Path
from typing import Any

from moe_runner.files import read_json

WORDS = {
    list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean",
    type(None): "null",
}  # fmt: skip


class StoreError(Exception):
    """A problem with the store that one line explains."""


def read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read the object in a JSON file.

    Args:
        path: the file.
        remedy: what to do about a damaged one.

    Returns:
        The object; None if there is no file.

    Raises:
        StoreError: if it is not JSON or no object, or no file can be read there.
    """
    try:
        obj = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:  # a folder, a loop of links, no permission
        raise StoreError(
            f"{path} cannot be read ({error.strerror}); {_way_out(error, remedy)}"
        ) from error
    except ValueError as error:
        raise StoreError(f"{path} is not readable ({error}); {remedy}") from error
    if not isinstance(obj, dict):
        raise StoreError(f"{path} holds {WORDS[type(obj)]}, not an object; {remedy}")
    return obj


def _way_out(error: OSError, remedy: str) -> str:
    return "make it readable" if isinstance(error, PermissionError) else remedy
