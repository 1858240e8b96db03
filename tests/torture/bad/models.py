"""Folders of models that cannot be used, or not for what is asked."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

from tests.torture.bad.case import REMOVED, Build, Case, both, cut, edited, files, model, removed

RTE = ("method=emoe", "task=glue_mini/rte", "model=auto", "model.path=HERE/model")
WEIGHTS, CONFIG = "model/model.safetensors", "model/config.json"


def cases() -> list[Case]:
    """List the cases."""
    return [*configs(), *weights(), *tokenizers(), *places(), *uses()]


def case(name: str, *says: str, build: Build, words: tuple[str, ...] = (), code: int = 2) -> Case:
    """Make a case of a spoiled copy of bert_tiny."""
    return Case(f"model: {name}", (*RTE, *words), says, code, both(model(), build))


def configs() -> list[Case]:
    """Spoil config.json."""
    wrong: list[tuple[str, dict[str, object], str]] = [
        ("hidden_size of 0", {"hidden_size": 0}, "hidden_size"),
        ("a negative hidden_size", {"hidden_size": -128}, "hidden_size"),
        ("hidden_size of text", {"hidden_size": "128"}, "hidden_size"),
        ("another hidden_size", {"hidden_size": 64}, "(64,) expected"),
        ("no hidden_size", {"hidden_size": REMOVED}, "has no hidden_size"),
        ("another intermediate_size", {"intermediate_size": 100}, "d_ff=100"),
        ("intermediate_size of 0", {"intermediate_size": 0}, "intermediate_size"),
        ("no layer", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("more layers", {"num_hidden_layers": 40}, "fewer layers"),
        ("heads that do not divide", {"num_attention_heads": 3}, "attention heads (3)"),
        ("no heads", {"num_attention_heads": 0}, "num_attention_heads"),
        ("a small vocabulary", {"vocab_size": 10}, "word_embeddings"),
        ("no vocabulary", {"vocab_size": 0}, "vocab_size"),
        ("an unknown type", {"model_type": "nope"}, "nope"),
        ("no type", {"model_type": REMOVED}, "model_type"),
        ("a type of number", {"model_type": 5}, "model_type"),
        ("another type", {"model_type": "gpt2"}, "n_embd"),
        ("an unknown activation", {"hidden_act": "nope"}, "nope"),
        ("no position", {"max_position_embeddings": 0}, "max_position_embeddings"),
    ]
    return [
        *(case(name, say, build=edited(CONFIG, **keys)) for name, keys, say in wrong),
        case("no config", "config.json", build=removed(CONFIG)),
        case("an empty config", "config.json", build=files({CONFIG: ""})),
        case("a config that is no json", "config.json", build=files({CONFIG: "{"})),
        case("a config that is a list", "config.json", build=files({CONFIG: "[]"})),
        case("a config that is null", "config.json", build=files({CONFIG: "null"})),
        case("a config without keys", "config.json", build=files({CONFIG: "{}"})),
        case("a config in latin 1", "config.json", build=files({CONFIG: b'{"a": "\xe9"}'})),
    ]


def tensors(change: Callable[[dict], None]) -> Build:
    """Change the tensors of the weights' file."""

    def build(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return build


def first(state: dict, part: str) -> str:
    """Name the first tensor whose name has a part."""
    return next(name for name in sorted(state) if part in name)


def weights() -> list[Case]:
    """Spoil the weights."""
    key = "intermediate.dense.weight"

    def fill(value: float) -> Callable[[dict], None]:
        return lambda state: state[first(state, key)].fill_(value) is None

    def without(part: str) -> Callable[[dict], None]:
        return lambda state: state.pop(first(state, part)) is None

    def shaped(state: dict) -> None:
        name = first(state, key)
        state[name] = state[name][:, :7].contiguous()

    def whole(state: dict) -> None:
        name = first(state, key)
        state[name] = state[name].to(dtype=__import__("torch").int32)

    def renamed(state: dict) -> None:
        for name in list(state):
            state[f"other.{name}"] = state.pop(name)

    index = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})
    header = struct.pack("<Q", 2**60)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    sharded = both(removed(WEIGHTS), files({"model/model.safetensors.index.json": index}))
    return [
        case("no weights", "HERE/model", build=removed(WEIGHTS)),
        case("empty weights", "model.safetensors", build=files({WEIGHTS: b""})),
        case("zero bytes", "model.safetensors", build=files({WEIGHTS: b"\0" * 100})),
        case("half of the weights", "model.safetensors", build=cut(WEIGHTS)),
        case("nearly all of the weights", "model.safetensors", build=cut(WEIGHTS, 0.999)),
        case("a header too large", "model.safetensors", build=files({WEIGHTS: header + b"{}"})),
        case("a text", "model.safetensors", build=files({WEIGHTS: "hello " * 50})),
        case("a pointer of git lfs", "lfs", build=files({WEIGHTS: pointer})),
        case("a page of the web", "model.safetensors", build=files({WEIGHTS: "<!doctype html>"})),
        case("parts that are missing", "model-00001-of-00002", build=sharded),
        case("an index that is no json", "index.json", build=both(
            removed(WEIGHTS), files({"model/model.safetensors.index.json": "{"}))),
        case("only a pickle", "HERE/model cannot be loaded", build=both(
            removed(WEIGHTS), files({"model/pytorch_model.bin": b"\x80\4N."}))),
        case("only gguf", "has no weights", build=both(
            removed(WEIGHTS), files({"model/model.gguf": b"GGUF\3\0\0\0"}))),
        case("nan", "NaN", build=tensors(fill(float("nan")))),
        case("infinity", "infinite", build=tensors(fill(float("inf")))),
        case("a tensor is missing", key, build=tensors(without(key))),
        case("the embedding is missing", "word_embeddings", build=tensors(
            without("word_embeddings"))),
        case("another shape", "another shape", build=tensors(shaped)),
        case("whole numbers", "whole numbers", build=tensors(whole)),
        case("other names", "the prefix other.", build=tensors(renamed)),
        case("no tensor", "incomplete", build=tensors(lambda state: state.clear())),
    ]  # fmt: skip


def tokenizers() -> list[Case]:
    """Spoil the tokenizer."""
    file, config = "model/tokenizer.json", "model/tokenizer_config.json"

    def gone(folder: Path) -> None:
        for name in (file, config):
            (folder / name).unlink()

    return [
        case("no tokenizer", "tokenizer", build=gone),
        case("no tokenizer.json", "tokenizer", build=removed(file)),
        case("an empty tokenizer", "tokenizer", build=files({file: ""})),
        case("a tokenizer that is no json", "tokenizer", build=files({file: "{"})),
        case("half a tokenizer", "tokenizer", build=cut(file)),
        case("a tokenizer without keys", "tokenizer", build=files({file: "{}"})),
        case("a broken tokenizer_config", "tokenizer_config.json", build=files({config: "{"})),
        case("an empty tokenizer_config", "tokenizer_config.json", build=files({config: ""})),
        case("a tokenizer_config that is a list", "tokenizer_config.json",
             build=files({config: "[]"})),
    ]  # fmt: skip


def places() -> list[Case]:
    """Point to what is no folder of a model."""

    def link(folder: Path) -> None:
        (folder / "model").symlink_to("model")

    def empty(folder: Path) -> None:
        (folder / "model").mkdir()

    long = "x" * 300
    return [
        Case("place: nothing there", RTE, ("HERE/model",)),
        Case("place: a file", RTE, ("HERE/model",), build=files({"model": "hello"})),
        Case("place: an empty folder", RTE, ("HERE/model",), build=empty),
        Case("place: a loop of links", RTE, ("HERE/model",), build=link),
        Case("place: too long a name", (*RTE[:3], f"model.path={long}"), ("model.path",)),
        Case("place: none given", RTE[:3], ("model.path",)),
        Case("place: a hub name that cannot be", (*RTE[:3], "model.hub_id=a/b/c"), ("a/b/c",)),
        Case("place: a hub name offline", (*RTE[:3], "model.hub_id=owner/name"), ("owner/name",)),
    ]  # fmt: skip


def uses() -> list[Case]:
    """Ask of good models what they cannot do."""

    def of(name: str, *words: str) -> tuple[tuple[str, ...], Build]:
        return ("model=auto", "model.path=HERE/model", *words), model(name)

    rows = [
        ("bert_tiny", "method=emoe task=wikitext_mini", "bert"),
        ("bert_tiny", "method=emoe task=squad_mini", "bert"),
        ("bert_tiny", "method=emoe task=domainbed_mini", "bert"),
        ("vit_tiny", "method=emoe task=glue_mini/rte", "vit"),
        ("switch_tiny", "method=moe task=wikitext_mini", "switch"),
        ("gpt2_tiny", "method=emoe task=squad_mini", "gpt2"),
        ("bert_tiny", "method=emoe method.num_experts=7 task=glue_mini/rte", "7"),
        ("bert_tiny", "method=emoe method.layers=[99] task=glue_mini/rte", "layers"),
        ("bert_tiny", "method=emoe method.gate_on=up task=glue_mini/rte", "gate_on"),
        ("bert_tiny", "method=hypermoe method.top_k=99 task=glue_mini/rte", "top_k"),
        ("bert_tiny", "method=emoe tuning=lora tuning.rank=0 task=glue_mini/rte", "tuning.rank"),
        ("bert_tiny", "method=emoe export=hf task=glue_mini/rte", "export=hf"),
        ("gpt2_tiny", "method=emoe task=wikitext_mini task.max_length=4096", "4096"),
    ]  # fmt: skip
    targets, build = of("bert_tiny", "tuning=lora", "model.lora_targets=[nope]", "task=glue_mini")
    return [
        Case("use: LoRA on what is not there", targets, ("nope", "model.lora_targets"), 1, build),
        *(
            Case(f"use: {name} {words}", built[0], (says,), build=built[1])
            for name, words, says in rows
            for built in [of(name, *words.split(" "))]
        ),
    ]
