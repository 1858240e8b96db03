"""Whether the files of a model folder are what they should be, from their first bytes; no torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

LFS = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"  # of weights in several files
WHOLE = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # types of safetensors
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe.codes", "tekken.json")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")


def weights_problem(folder: Path) -> str | None:
    """Find what is wrong with the weights of a folder without reading them.

    Args:
        folder: of a model in the layout of Hugging Face.

    Returns:
        One line that names the file and the remedy; None if nothing is.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index} is not readable as an index of weights; download it again"
        files = [folder / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            return (
                f"{folder} lacks {len(missing)} of the {len(files)} files that {INDEX} names "
                f"({some}); download them"
            )
    else:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        return f"{folder} has no weights; expected *.safetensors"
    problems = (file_problem(file) for file in files)
    return next((problem for problem in problems if problem is not None), None)


def file_problem(file: Path) -> str | None:
    """Say why a file cannot hold weights: a pointer of git LFS, cut off, another format."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(max(len(LFS), 8))
        if first.startswith(LFS):
            return (
                f"{file} is a pointer of git LFS ({size} bytes), not the weights; run `git lfs "
                "pull` in its repository, or download the file itself"
            )
        if size == 0:
            return f"{file} is empty; download it again"
        if file.suffix != ".safetensors":
            return None
        header_size = int.from_bytes(first[:8], "little")
        if size < 8 or header_size > 100_000_000:  # the format's own limit
            return f"{file} is not a safetensors file; download it again"
        if 8 + header_size > size:
            return f"{file} is cut off: {size:,} bytes, less than its header; download it again"
        stream.seek(8)
        try:
            header: dict[str, Any] = json.loads(stream.read(header_size))
            entries = {key: of for key, of in header.items() if key != "__metadata__"}
            ends = [of["data_offsets"][1] for of in entries.values()]
            whole = [key for key in entries if key.endswith(".weight")]
            whole = [key for key in whole if entries[key]["dtype"] in WHOLE]
        except (ValueError, KeyError, TypeError, IndexError):
            return f"{file} is not a safetensors file: no readable header; download it again"
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        return (
            f"{file} has {size:,} bytes and its header says {expected:,}: it is "
            f"{'cut off' if size < expected else 'damaged'}; download it again"
        )
    if whole:
        return (
            f"{file} holds whole numbers as {whole[0]}: a quantised model; use the one it was made "
            "from"
        )
    return None


def tokenizer_problem(folder: Path) -> str | None:
    """Find out why a folder has no tokenizer: transformers would make one of five tokens, silently.

    Args:
        folder: of a text model.

    Returns:
        One line that names the remedy; None if there is a vocabulary.
    """
    for name in SETTINGS:
        try:
            if (folder / name).is_file():
                json.loads((folder / name).read_bytes())
        except ValueError as error:
            return f"{folder / name} is no JSON ({error}); copy the model's own there"
    if any((folder / name).is_file() for name in VOCABULARIES):
        return None
    models = [name for name in SENTENCEPIECE if (folder / name).is_file()]
    if not models:
        return (
            f"{folder} has no tokenizer files; copy the model's tokenizer.json (or vocab.txt, or "
            "vocab.json and merges.txt, or tokenizer.model) there"
        )
    if importlib.util.find_spec("sentencepiece") is None:
        return (
            f"{folder / models[0]} needs the package sentencepiece: pip install -e "
            "'.[sentencepiece]' in a clone, or add the model's tokenizer.json"
        )
    return None
