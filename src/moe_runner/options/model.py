"""The backbone: where its weights are, and its sizes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_runner.options.fields import REQUIRED, Count, Positive, runtime


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pretrained backbone: where its weights are, and its sizes, so that a plan loads nothing."""

    name: str
    family: Literal["bert", "gpt2", "llama", "t5", "switch", "vit"]
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


BERT_SIZES = {  # our name -> its name in the config.json of Hugging Face
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
}


GPT2_SIZES = {
    "d_model": "n_embd",
    "d_ff": "n_inner",  # null: 4 * n_embd
    "num_layers": "n_layer",
    "vocab_size": "vocab_size",
    "max_positions": "n_positions",
}


T5_SIZES = {
    "d_model": "d_model",
    "d_ff": "d_ff",
    "num_layers": "num_layers",  # of each stack; num_decoder_layers is the same in all T5
    "vocab_size": "vocab_size",
}  # positions are relative: n_positions of older files is no limit


SIZES = {  # model_type of Hugging Face -> family, names of the sizes
    "bert": ("bert", BERT_SIZES),
    "gpt2": ("gpt2", GPT2_SIZES),
    "llama": ("llama", BERT_SIZES),
    "t5": ("t5", T5_SIZES),
    "switch_transformers": ("switch", T5_SIZES),
    "vit": ("vit", BERT_SIZES),
    "deit": ("vit", BERT_SIZES),
}


def with_sizes_of_path(model: Model, problems: list[str]) -> Model:
    """Read the sizes of a local folder's `config.json`, which win over the option file's.

    Args:
        model: the model's options.
        problems: a folder without a readable config.json, or of another family, is appended here.

    Returns:
        The model with the folder's sizes; unchanged without `model.path` and after a problem.
    """
    if model.path is None:
        return model
    file = Path(model.path).expanduser() / "config.json"
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is not readable"
        problems.append(f"model.path={model.path} is not a model folder: {file} {reason}")
        return model
    family, names = SIZES.get(str(found.get("model_type")), (None, {}))
    if family != model.family:
        problems.append(
            f"model.path={model.path} holds a model of type {found.get('model_type')}; "
            f"model={model.name} is of the family {model.family}"
        )
        return model
    sizes = {ours: found[name] for ours, name in names.items() if isinstance(found.get(name), int)}
    if family == "gpt2" and "d_model" in sizes:
        sizes.setdefault("d_ff", 4 * sizes["d_model"])
    if family == "t5":
        sizes["gated"] = str(found.get("feed_forward_proj")).startswith("gated-")  # T5 1.1
    return dataclasses.replace(model, **sizes)
