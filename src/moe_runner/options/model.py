"""The backbone: where its weights are, and its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_runner.files import expanded
from moe_runner.hub import model_config
from moe_runner.options.auto import AUTO, label_of
from moe_runner.options.errors import join, nearest, show
from moe_runner.options.fields import REQUIRED, Count, Positive, runtime
from moe_runner.options.model_config import ASSETS, read_config, zero_sizes
from moe_runner.registry import FAMILIES


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pretrained backbone: where its weights are, and its sizes, so that a plan loads nothing."""

    name: str
    family: str  # a row of backbones/families.py
    hub_id: str | None = runtime(None)  # place and sizes are not in the id: the weights' content is
    revision: str = runtime("main")
    path: str | None = runtime(None)  # a local folder; wins over the Hub. Its content is in the id
    package: str | None = runtime(None)  # an installed Python package that carries the weights
    bundled: bool = runtime(False)  # the weights are part of this project
    licence: bool = runtime(False)  # the Hub asks for an accepted licence
    d_model: Count = runtime(REQUIRED)
    d_ff: Count = runtime(REQUIRED)
    num_layers: Count = runtime(REQUIRED)
    gated: bool = runtime(False)  # the FFN has a gate and an up projection (SwiGLU)
    vocab_size: int | None = runtime(None)  # None: images
    max_positions: int | None = runtime(None)
    lora_targets: tuple[str, ...] = ()  # attention projections
    lr_scale: Positive = runtime(1.0)  # times tuning.learning_rate; tiny models need larger steps

    @property
    def label(self) -> str:
        """For people: the option's name; of own weights that of the folder or repository."""
        own = self.path is not None or self.name == AUTO
        return label_of(self.path, self.hub_id) if own else self.name

    def family_problems(self) -> list[str]:
        """Check that the family is known."""
        if self.family in FAMILIES:
            return []
        near = nearest(self.family, FAMILIES)
        hint = f"did you mean {near}?" if near else f"use {join(families_with_options())}"
        return [f"model.family={self.family} is not a known family; {hint}"]


def families_with_options(forms: Iterable[str] = ()) -> list[str]:
    """Name the families of the model options, for messages.

    Args:
        forms: only those that can do one of these; empty: all.
    """
    return [
        name
        for name, family in FAMILIES.items()
        if family.has_options and (not forms or set(forms) & set(family.forms))
    ]


def with_own_sizes(model: Model, problems: list[str]) -> Model:
    """Read the sizes in the model's own `config.json`, which win over the option file's.

    Args:
        model: the model's options.
        problems: a folder without a readable config.json, or of another family, is appended here.

    Returns:
        The model with its own sizes; unchanged if its config.json cannot be had, and after a
        problem.
    """
    if model.name == AUTO:  # it has read them
        return model
    family = FAMILIES[model.family]
    if model.path is not None:
        given = f"model.path={model.path}"
        file = str(expanded(model.path) / "config.json")
        found = read_config(Path(file), given, problems)
    elif model.bundled:
        given, file = f"model={model.name}", str(ASSETS / model.name / "config.json")
        found = read_config(Path(file), given, problems)
    elif model.hub_id is not None and model.package is None:
        given, file = f"model.hub_id={model.hub_id}", f"{model.hub_id}/config.json"
        found = model_config(model.hub_id, model.revision)
    else:
        return model
    if found is None:
        return model
    if "model_type" not in found:
        problems.append(
            f"{given}: {file} has no model_type (files of 2019 have none); add "
            f'"model_type": "{family.types[0]}" to it for a model of the family {family.name}'
        )
        return model
    if found["model_type"] not in family.types:
        problems.append(
            f"{given} holds a model of type {found['model_type']}; "
            f"model={model.name} is of the family {model.family}"
        )
        return model
    if zeros := zero_sizes(found, family.sizes, file):
        problems += zeros
        return model
    own = family.sizes_of(found)
    if model.path is None and model.bundled:
        problems += [
            f"model.{key}={show(getattr(model, key))} contradicts {file}, which says {show(size)}; "
            f"leave model.{key} out"
            for key, size in own.items()
            if getattr(model, key) != size
        ]
    return dataclasses.replace(model, **own)
