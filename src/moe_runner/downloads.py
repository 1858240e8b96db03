"""Fetching from the Hub: no wait without an end, and one line that says what to do if it fails.

What fails there reaches us as an error of httpx, of huggingface_hub, or as one of datasets or
transformers with several lines; so the causes of an error are looked through.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from moe_runner.hub import keep_reference

log = logging.getLogger(__name__)

SECONDS = 30.0  # without a byte, of requests that the library would wait for without end
# By name: they are huggingface_hub's, which is heavy.
GATED, MISSING, NO_REVISION = "GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"
NO_FILE = "RemoteEntryNotFoundError"
OPTIONS = {"model": ("model.hub_id", "model.path"), "dataset": ("task.hub_id", "task.data_dir")}


@contextmanager
def fetching(kind: Literal["model", "dataset"], hub_id: str, revision: str) -> Iterator[None]:
    """Say that something is fetched, and in one line why it can't be.

    Args:
        kind: what it is.
        hub_id: such as openai-community/gpt2.
        revision: branch, tag or commit hash.

    Raises:
        PermissionError: if a licence has to be accepted first.
        FileNotFoundError: if there is no such repository or revision.
        ConnectionError: if the Hub does not answer, or the connection broke off.
    """
    from huggingface_hub import constants  # only now: it reads HF_HUB_OFFLINE

    endpoint = constants.ENDPOINT
    log.info("  fetching the %s %s from %s", kind, hub_id, endpoint)
    limit_waiting()
    try:
        yield
        keep_reference(kind, hub_id, revision)
    except Exception as error:
        found = _explained(error, kind, hub_id, revision, endpoint)
        if found is None:
            raise
        raise found from error


def limit_waiting() -> None:
    """Give a limit to the requests that huggingface_hub makes without one, such as listings."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        each: SECONDS if given.get(each) is None else given[each]
        for each in ("connect", "read", "write", "pool")
    }


def _explained(
    error: BaseException, kind: str, hub_id: str, revision: str, endpoint: str
) -> OSError | None:
    """Find out what an error of the Hub's libraries means; None: something else."""
    causes = list(_causes(error))
    kinds = {each for cause in causes for each in type(cause).__mro__}
    names = {each.__name__ for each in kinds}
    option, local = OPTIONS[kind]
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
    login = "log in (hf auth login, or set HF_TOKEN)"
    # datasets hides the cause
    told = [str(cause) for cause in causes if type(cause).__name__ == "DatasetNotFoundError"]
    if GATED in names or any("is a gated dataset" in text for text in told):
        return PermissionError(
            f"the {kind} {hub_id} is gated: accept its licence at {page} and {login} with that "
            f"account, or use {local}=<folder>"
        )
    if NO_REVISION in names or any(text.startswith("Revision '") for text in told):
        return FileNotFoundError(f"the {kind} {hub_id} has no revision {revision} at {endpoint}")
    if MISSING in names or told:
        return FileNotFoundError(
            f"there is no {kind} {hub_id} at {endpoint}, or it is private: check {option}, or "
            f"{login}, or use {local}=<folder>"
        )
    if NO_FILE in names or not any(_is_of_network(each) for each in kinds):
        return None
    first = next(
        cause for cause in reversed(causes) if any(map(_is_of_network, type(cause).__mro__))
    )
    reason = str(first).strip().partition("\n")[0] or type(first).__name__
    return ConnectionError(
        f"fetching the {kind} {hub_id} from {endpoint} failed ({reason}); files that came whole "
        "are kept, and the same command fetches the others"
    )


def _is_of_network(kind: type) -> bool:
    return kind is ConnectionError or kind.__module__.partition(".")[0] in ("httpx", "httpx2")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """List an error and those that it came from, the last one first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
