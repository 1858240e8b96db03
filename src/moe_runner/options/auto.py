"""`model=auto`: family and sizes of any model, read from its own config.json as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_runner.files import expanded
from moe_runner.hub import model_config
from moe_runner.options.errors import join, nearest, show
from moe_runner.options.model_config import read_config, zero_sizes
from moe_runner.registry import FAMILIES

AUTO = "auto"
READ = ("family", "d_model", "d_ff", "num_layers", "gated", "vocab_size", "max_positions")


def with_facts_of_config(node: Mapping[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """Fill in what `model=auto` leaves open.

    Args:
        node: the values of the group model, `name: auto`.
        problems: what keeps the config.json from being read or understood is appended, one line.

    Returns:
        The values with those of config.json, and the family's LoRA targets where none are given;
        None after a problem.
    """
    if (found := _config(node, problems)) is None:
        return None
    given, file, config = found
    model_type = config.get("model_type")
    if model_type is None:
        problems.append(f"{given}: {file} has no model_type; add the one of its architecture")
        return None
    row = next((each for each in FAMILIES.values() if model_type in each.types), None)
    if row is None or not row.forms:
        known = [kind for each in FAMILIES.values() if each.forms for kind in each.types]
        near = nearest(str(model_type), known)
        hint = f"did you mean {near}? " if near else ""
        problems.append(
            f"{given}: model_type={model_type} in {file} is of no family that has tasks; {hint}"
            f"known are {', '.join(sorted(known))}; a package can add one (docs/extending.md)"
        )
        return None
    if zeros := zero_sizes(config, row.sizes, file):
        problems += zeros
        return None
    sizes = row.sizes_of(config)
    if missing := [row.sizes.get(key, key) for key in READ[1:4] if key not in sizes]:
        problems.append(f"{given}: {file} has no {join(missing)}; add it")
        return None
    facts = {"family": row.name, "gated": row.gated is True, **sizes}
    wrong = [
        f"model.{key}={show(node[key])} contradicts {file}, which says {show(facts.get(key))}; "
        f"leave model.{key} out"
        for key in READ
        if node.get(key) is not None and node[key] != facts.get(key)
    ]
    problems += wrong
    targets = node.get("lora_targets") or list(row.lora_targets)
    return None if wrong else {**node, "lora_targets": targets, **facts}


def label_of(path: str | None, hub_id: str | None) -> str:
    """Name a model by its folder or repository: stories260K, never the hash of a snapshot."""
    if path is None:
        return (hub_id or AUTO).rpartition("/")[2]
    folder = expanded(path).resolve()
    if folder.parent.name == "snapshots":  # models--<owner>--<name>/snapshots/<commit>
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name


def _config(node: Mapping[str, Any], problems: list[str]) -> tuple[str, str, dict[str, Any]] | None:
    """Read config.json: what the user gave, what names the file, its content; or say why not."""
    path, hub_id, revision = node.get("path"), node.get("hub_id"), str(node.get("revision", "main"))
    if path is not None:
        file = expanded(str(path)) / "config.json"
        config = read_config(file, f"model.path={path}", problems)
        return None if config is None else (f"model.path={path}", str(file), config)
    if hub_id is None:
        problems.append("model=auto needs model.path=<folder> or model.hub_id=<id>")
        return None
    config = model_config(str(hub_id), revision)
    if config is None:
        problems.append(
            f"model.hub_id={hub_id}: its config.json (revision {revision}), which model=auto "
            "reads, is neither in the local Hugging Face cache nor to be had from the Hub; check "
            f"the id, or fetch it where there is a connection (hf download {hub_id}), or use "
            "model.path=<folder>"
        )
        return None
    return f"model.hub_id={hub_id}", f"{hub_id}/config.json", config
