"""What can be had from the Hugging Face Hub: the local cache first, then one short probe.

An offline read retries for 23 to 47 s unless HF_HUB_OFFLINE=1 is set before `huggingface_hub` is
imported. So nothing here imports it (nor transformers, nor datasets): the cache is looked up by
path, the endpoint is asked with the standard library.
"""

import functools
import json
import logging
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from moe_runner.files import expanded, write_atomic

log = logging.getLogger(__name__)

_resolved: dict[tuple[str, str, str], set[str]] = {}  # kind, id, commit -> branches that meant it

PROBE_SECONDS = 2.0
ASK_SECONDS = 10.0  # for one small answer of a Hub that is there
COMMIT = re.compile("[0-9a-f]{40}")


def cached_model(hub_id: str, revision: str = "main") -> Path | None:
    """Look for a model in the local cache.

    Args:
        hub_id: such as openai-community/gpt2.
        revision: branch, tag or commit hash.

    Returns:
        The folder of a snapshot that has config.json and all its weights, or None.
    """
    folder = _snapshot("models", hub_id, revision)
    if folder is None or not (folder / "config.json").is_file():
        return None
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # weights in parts: an interrupted download leaves some of them
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return folder if all((folder / part).is_file() for part in parts) else None
    files = (*folder.glob("*.safetensors"), folder / "pytorch_model.bin")
    return folder if any(file.is_file() for file in files) else None


def cached_dataset(
    hub_id: str, config: str, split: str, revision: str = "main"
) -> tuple[Path, ...]:
    """Look for the files of one split of a data set in the local caches.

    Args:
        hub_id: such as nyu-mll/glue.
        config: the configuration, such as cola.
        split: such as train.
        revision: branch, tag or commit hash.

    Returns:
        The parquet files `<config>/<split>-*-of-*.parquet` or `<config>/<split>/0000.parquet` (and
        on) of the Hub cache's snapshot, else the Arrow files of the `datasets` library's own cache;
        empty if neither has all of them.
    """
    snapshot = _snapshot("datasets", hub_id, revision)
    if snapshot is not None:
        for place in (config, "data") if config == "default" else (config,):
            parquet = complete((snapshot / place).glob(f"{split}-*-of-*.parquet"))
            if parquet := parquet or numbered(snapshot / place / split):
                return parquet
    owner, _, name = hub_id.rpartition("/")
    name = re.sub("([A-Z]+)([A-Z][a-z])", r"\1_\2", name)  # as `datasets` names its files
    name = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()
    folder = datasets_cache() / (f"{owner}___{name}" if owner else name) / config
    commits = [path for path in folder.glob("*/*") if path.is_dir()]
    if snapshot is not None or COMMIT.fullmatch(revision):
        wanted = revision if snapshot is None else snapshot.name
        commits = [path for path in commits if path.name == wanted]
    elif revision != "main":
        commits = []  # nothing says which commit the branch or tag meant
    for commit in sorted(commits, key=lambda path: path.stat().st_mtime, reverse=True):
        whole = tuple(commit.glob(f"{name}-{split}.arrow"))
        if arrow := whole or complete(commit.glob(f"{name}-{split}-*-of-*.arrow")):
            return arrow
    return ()


def complete(files: Iterable[Path]) -> tuple[Path, ...]:
    """Take the files `<split>-<i>-of-<n>.<ending>` of one split if all n of them are there.

    Args:
        files: candidates, of one split and folder; other names and broken links are left out.

    Returns:
        The files, sorted by name; empty if one is missing, or if there are two sets of them.
    """
    parts = sorted(f for f in files if re.search(r"-\d+-of-\d+$", f.stem) and f.is_file())
    counts = {int(file.stem.rpartition("-")[2]) for file in parts}
    return tuple(parts) if counts == {len(parts)} else ()


def numbered(folder: Path) -> tuple[Path, ...]:
    """Take the files 0000.parquet, 0001.parquet ... of a folder: as refs/convert/parquet has.

    Returns:
        The files, in order; empty if there are none, or one before the last is missing.
    """
    files = sorted(f for f in folder.glob("*.parquet") if re.fullmatch(r"\d{4}", f.stem))
    whole = [int(file.stem) for file in files] == list(range(len(files)))
    return tuple(files) if whole and all(file.is_file() for file in files) else ()


@functools.cache
def reachable() -> bool:
    """Ask the Hub's endpoint (HF_ENDPOINT) for a sign of life, once per process.

    Takes at most 2 s. Where it does not answer, sets HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 for
    this process and its children. HF_HUB_OFFLINE=1 of the user's counts as no answer. Proxies in
    the environment are honoured.

    Returns:
        Whether the Hub answered.
    """
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    if offline.upper() not in ("1", "ON", "YES", "TRUE"):
        answered = threading.Event()
        # In a thread: no timeout of urllib covers the name look-up, several addresses, redirects.
        thread = threading.Thread(target=_ask, args=(answered,), daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS)
        if answered.is_set():
            return True
        log.warning("%s does not answer; going on offline", _endpoint())
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:  # imported before: it has read the environment already
            vars(sys.modules[module])["HF_HUB_OFFLINE"] = True
    return False


def model_commit(hub_id: str, revision: str) -> str | None:
    """Find the commit that a revision of a model means: in the cache, else by one request.

    Args:
        hub_id: such as openai-community/gpt2.
        revision: branch, tag or commit.

    Returns:
        40 hex digits; None if neither tells.
    """
    folder = cached_model(hub_id, revision)
    return _commit("models", hub_id, revision, () if folder is None else (folder,))


def dataset_commit(hub_id: str, config: str, split: str, revision: str) -> str | None:
    """Find the commit that a revision of a data set means; see `model_commit`.

    Args:
        hub_id: such as nyu-mll/glue.
        config: the configuration, such as cola.
        split: such as train.
        revision: branch, tag or commit.
    """
    return _commit("datasets", hub_id, revision, cached_dataset(hub_id, config, split, revision))


def _commit(kind: str, hub_id: str, revision: str, cached: tuple[Path, ...]) -> str | None:
    if COMMIT.fullmatch(revision):
        return revision
    for part in reversed(cached[0].parts) if cached else ():
        if COMMIT.fullmatch(part):
            return part
    if cached or not reachable():
        return None
    answer = _answer(f"api/{kind}/{hub_id}/revision/{quote(revision, safe='')}")
    commit = None if answer is None else answer.get("sha")
    if commit is not None:
        _resolved.setdefault((kind, hub_id, commit), set()).add(revision)
    return commit


def model_config(hub_id: str, revision: str) -> dict[str, Any] | None:
    """Read the config.json of a model of the Hub: from the cache, else by one request.

    Args:
        hub_id: such as openai-community/gpt2.
        revision: branch, tag or commit.

    Returns:
        Its content; None if neither has it.
    """
    folder = cached_model(hub_id, revision)
    if folder is None:
        at = quote(revision, safe="")
        return _answer(f"{hub_id}/resolve/{at}/config.json") if reachable() else None
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@functools.cache
def _answer(path: str) -> dict[str, Any] | None:
    """Ask the Hub for an object of JSON; None if it gives none. Once per process and path."""
    request = urllib.request.Request(f"{_endpoint()}/{path}")
    if found := token():  # not for a host that the Hub sends us on to
        request.add_unredirected_header("Authorization", f"Bearer {found}")
    try:
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as response:
            return dict(json.load(response))
    except (OSError, ValueError, TypeError) as error:
        log.info("%s/%s: %s", _endpoint(), path, error)
        return None


def token() -> str | None:
    """Give the user's token: HF_TOKEN, or that of `hf auth login`; None: there is none."""
    if given := os.environ.get("HF_TOKEN"):
        return given
    try:
        return (home() / "token").read_text().strip() or None
    except OSError:
        return None


def problem(
    kind: Literal["model", "dataset"],
    hub_id: str,
    revision: str,
    remedy: str,
    *,
    config: str = "default",
    split: str = "train",
) -> str | None:
    """Say why something of the Hub can't be had.

    Args:
        kind: what it is.
        hub_id: such as openai-community/gpt2.
        revision: branch, tag or commit hash.
        remedy: what the user can do, such as "use model=gpt2_tiny, or model.path=<folder>".
        config: of the data set.
        split: of the data set.

    Returns:
        One line, or None if it is in the local cache or the Hub answers.
    """
    if kind == "model":
        cached = cached_model(hub_id, revision) is not None
    else:
        cached = bool(cached_dataset(hub_id, config, split, revision))
    if cached or reachable():
        return None
    details = [config, split] if kind == "dataset" else []
    details += [f"revision {revision}"] if revision != "main" else []
    what = f"'{hub_id}'" + (f" ({', '.join(details)})" if details else "")
    return (
        f"cannot load {what}: not in the local Hugging Face cache and the Hub is unreachable; "
        f"{remedy}"
    )


def _ask(answered: threading.Event) -> None:
    try:
        request = urllib.request.Request(_endpoint(), method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        answered.set()
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code != 407:  # 407 and most 5xx come from a proxy
            answered.set()
    except (OSError, ValueError):  # ValueError: HF_ENDPOINT is not an address
        pass


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _snapshot(kind: str, hub_id: str, revision: str) -> Path | None:
    """Find the snapshot folder of a revision in the Hub cache."""
    repository = _repository(kind, hub_id)
    reference = repository / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def keep_reference(kind: Literal["model", "dataset"], hub_id: str, commit: str) -> None:
    """Note in the cache which commit a branch meant when it was fetched, as the libraries do.

    They do so only for what is asked for by the branch; here a branch is resolved first, so that
    plan and run mean the same commit.

    Args:
        kind: what it is.
        hub_id: such as openai-community/gpt2.
        commit: 40 hex digits, that was fetched.
    """
    repository = _repository(f"{kind}s", hub_id)
    for revision in _resolved.get((f"{kind}s", hub_id, commit), ()):
        if (repository / "snapshots" / commit).is_dir():
            with suppress(OSError):  # it is looked up on the Hub again
                reference = repository / "refs" / revision
                reference.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(reference, commit)


def home() -> Path:
    """Return the folder of Hugging Face's caches and token (HF_HOME)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _folder(os.environ.get("HF_HOME") or f"{base}/huggingface")


def _repository(kind: str, hub_id: str) -> Path:
    return _hub_cache() / f"{kind}--{hub_id.replace('/', '--')}"


def _hub_cache() -> Path:
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _folder(given) if given else home() / "hub"


def datasets_cache() -> Path:
    """Name the folder where `datasets` keeps what it prepared."""
    given = os.environ.get("HF_DATASETS_CACHE")
    return _folder(given) if given else home() / "datasets"


def _folder(text: str) -> Path:
    return expanded(os.path.expandvars(text))
