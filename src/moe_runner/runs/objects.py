"""The JSON files of the store: an object in each, or an error that names file and remedy."""

from pathlib import Path
from typing import Any

from moe_runner.files import read_json


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
        StoreError: if it is not JSON, or no object.
    """
    try:
        obj = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} is not readable ({error}); {remedy}") from error
    if not isinstance(obj, dict):
        raise StoreError(f"{path} holds a {type(obj).__name__}, not an object; {remedy}")
    return obj
