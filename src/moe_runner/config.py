"""The options of an experiment: frozen dataclasses, and how a config becomes them or is refused.

Everything imports this module and it imports nothing of the project, nor torch: `--help`,
`--cfg job` and `dry_run=true` stay quick. Problems are collected, never raised one by one: a user
sees them all.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

PACKAGED = Path(__file__).parent / "conf"  # in the wheel; in a checkout it is at the top level
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"  # the option files
MISSING = "???"  # what a config says where the user must give a value


class ConfigError(Exception):
    """One or more mistakes of the user, one line each; the command line ends with exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def runtime(default: Any) -> Any:
    """Declare an option that stays out of the run's identity.

    It cannot change a number, or what it stands for enters the identity resolved: a path as the
    content of its files, a list of learning rates as the one of the run.
    """
    return field(default=default, metadata={"identity": False})


def later(default: Any) -> Any:
    """Declare an option that came after the first results: at its default it is not in the id."""
    return field(default=default, metadata={"neutral": default})


# ------------------------------------------------------------------------------------- methods

NUM_COPIES = (
    8  # experts where no number is given: HyperMoE's GPT-2 and the Switch Transformers here
)
Backend = Literal["auto", "masked", "sorted", "grouped_mm"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Keep the pretrained feed-forward networks: vanilla fine-tuning, the baseline."""

    name: Literal["dense"] = "dense"


@dataclass(frozen=True, kw_only=True)
class EMoE:
    """Split pretrained feed-forward networks into experts of similar neurons.

    Source: EMoE, arXiv:2310.10908, section 3.
    """

    name: Literal["emoe"] = "emoe"
    num_experts: int = 64  # must divide d_ff
    top_k: int = 16  # experts per token; equal to num_experts: the dense model
    layers: str | tuple[int, ...] = "last-even:1"  # see select_layers
    clustering: Literal["constrained_kmeans", "random"] = "constrained_kmeans"
    cluster_seed: int = 0
    select: Literal["top", "bottom", "not_top"] = "top"
    gate_on: Literal["gate", "up", "inter"] = "gate"  # up and inter: gated FFNs only
    normalize_gate: bool = later(False)  # gate vectors of length 1
    convert_at: Literal["train", "eval", "both"] = later("both")  # EMoE2LoRA, LoRA2EMoE, EMoE
    backend: Backend = runtime("auto")


@dataclass(frozen=True, kw_only=True)
class EMoELearn:
    """Split pretrained feed-forward networks into clusters, routed by a learned cosine router.

    Source: EMoE, arXiv:2310.10908, ablation EMoE-learn.
    """

    name: Literal["emoe_learn"] = "emoe_learn"
    num_experts: int = 64  # must divide d_ff
    top_k: int = 16
    layers: str | tuple[int, ...] = "last-even:1"
    clustering: Literal["constrained_kmeans", "random"] = "constrained_kmeans"
    cluster_seed: int = 0
    router_dim: int = 256  # the router compares tokens and experts in so many dimensions
    balance_loss: float = 0.005  # times CV^2 of importance plus CV^2 of load
    backend: Backend = runtime("auto")


@dataclass(frozen=True, kw_only=True)
class GMoE:
    """Copy pretrained feed-forward networks and route by a learned cosine router.

    Source: GMoE, arXiv:2206.04046, as EMoE's baseline.
    """

    name: Literal["gmoe"] = "gmoe"
    num_experts: int = 8
    top_k: int = 2
    layers: str | tuple[int, ...] = "last-even:1"
    router_dim: int = 256
    balance_loss: float = 0.005  # times CV^2 of importance plus CV^2 of load
    backend: Backend = runtime("auto")


@dataclass(frozen=True, kw_only=True)
class MoE:
    """Copy pretrained feed-forward networks (sparse upcycling), noisy top-k router.

    The sparse layers of a Switch Transformer keep their experts and router.

    Source: sparse upcycling, arXiv:2212.05055; HyperMoE's baseline, arXiv:2402.12656.
    """

    name: Literal["moe"] = "moe"
    num_experts: int | None = None  # None: NUM_COPIES, or a Switch Transformer's own
    top_k: int = 1
    layers: str | tuple[int, ...] = "all"
    balance_loss: float | None = None  # None: 0.01, or a Switch Transformer's own coefficient
    backend: Backend = runtime("auto")


@dataclass(frozen=True, kw_only=True)
class MoEShare(MoE):
    """`moe` with one more expert that every token passes: the mean of both.

    Source: MoE-Share in HyperMoE, arXiv:2402.12656, which does not define it: this form is ours.
    """

    name: Literal["moe_share"] = "moe_share"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class MoEAdapter(MoE):
    """`moe` with plain adapters of the HyperExpert's width: HyperMoE's parameter-matched control.

    Source: ours.
    """

    name: Literal["moe_adapter"] = "moe_adapter"  # type: ignore[assignment]
    width: int = 64
    shared: bool = False  # one adapter for all tokens instead of one per expert


@dataclass(frozen=True, kw_only=True)
class HyperMoE(MoE):
    """`moe` with a HyperExpert, generated from the embeddings of the unselected experts.

    Source: HyperMoE, arXiv:2402.12656.
    """

    name: Literal["hypermoe"] = "hypermoe"  # type: ignore[assignment]
    width: int = 64  # r, of the HyperExpert
    embedding_dim: int = 128  # of experts, selections and the hypernetwork
    layer_dim: int = 10  # of the layer embedding
    aggregate: Literal["sum", "mean"] = "sum"  # over the unselected experts
    inside: bool = False  # multiply the HyperExpert by the router's weights


@dataclass(frozen=True, kw_only=True)
class NoisyTuning:
    """Perturb the pretrained weights before tuning: w + U(-noise/2, noise/2) * std(w).

    Source: NoisyTune, arXiv:2202.12024, eq. 1; a baseline of EMoE.
    """

    name: Literal["noisy_tuning"] = "noisy_tuning"
    noise: float = 0.15


Clustered = EMoE | EMoELearn
Method = Dense | NoisyTuning | EMoE | EMoELearn | GMoE | MoE | MoEShare | MoEAdapter | HyperMoE
METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "noisy_tuning": NoisyTuning,
    "emoe": EMoE,
    "emoe_learn": EMoELearn,
    "gmoe": GMoE,
    "moe": MoE,
    "moe_share": MoEShare,
    "moe_adapter": MoEAdapter,
    "hypermoe": HyperMoE,
}


# ------------------------------------------------------------------- model, tuning, task, training


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
    d_model: int = runtime(dataclasses.MISSING)
    d_ff: int = runtime(dataclasses.MISSING)
    num_layers: int = runtime(dataclasses.MISSING)
    gated: bool = runtime(False)  # the FFN has a gate and an up projection (SwiGLU)
    vocab_size: int | None = runtime(None)  # None: images
    max_positions: int | None = runtime(None)
    lora_targets: tuple[str, ...] = ()  # attention projections
    lr_scale: float = runtime(1.0)  # multiplies tuning.learning_rate; tiny models need larger steps


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which parameters train, and how fast."""

    name: Literal["full", "lora", "lora_block"]
    learning_rate: float = runtime(dataclasses.MISSING)  # for trainer.learning_rate=null
    learning_rates: tuple[float, ...] = runtime(dataclasses.MISSING)  # what search=paper tries
    rank: int | None = None
    alpha: int | None = None
    dropout: float | None = None
    new_modules_lr_scale: float = 1.0  # learned routers, copied experts, hypernetworks
    blocks: str | tuple[int, ...] | None = later(None)  # lora_block of a dense model: see `layers`


@dataclass(frozen=True, kw_only=True)
class Task:
    """A suite, which of its members to run, and where their data come from.

    What all suites share; each kind of suite has a dataclass of its own with the rest.
    """

    suite: str
    members: tuple[str, ...]
    data_dir: str | None = runtime(None)  # a folder per task; the content of the files is in the id
    hub_id: str | None = runtime(None)
    revision: str = runtime("main")
    ood: tuple[str, ...] = runtime(())  # names of out-of-domain sets; "all": the paper's partners
    ood_dir: str | None = runtime(None)
    limit: int | None = None  # training examples
    eval_limit: int | None = None  # examples of every evaluation set
    data_seed: int = 0  # of generated data and of train_fraction
    skip_missing: bool = runtime(False)


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Texts, or pairs of texts, with a class or a score: GLUE, SuperGLUE."""

    max_length: int | None = None  # tokens; None: 128, or the form's own number (see Recipe)
    train_fraction: float = later(1.0)  # of the training examples, drawn with data_seed


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """Texts that are answered by a text: summarisation, question answering."""

    max_length: int = 1024  # tokens of the source
    target_length: int = 128  # tokens of the target in training
    answer_length: int = 60  # most tokens that are generated
    min_length: int = 0  # fewest
    beams: int = 1
    no_repeat_ngram: int = 0  # 3: no three tokens occur twice in an answer


@dataclass(frozen=True, kw_only=True)
class LanguageModellingTask(Task):
    """Running text, packed into blocks."""

    block_size: int | None = None  # tokens; None: 1024, or the model's positions if fewer


@dataclass(frozen=True, kw_only=True)
class InstructTask(Task):
    """Instructions with responses; what is learned is the response."""

    max_length: int = 512  # tokens of prompt and response
    template: Literal["alpaca", "plain", "chat"] = "alpaca"  # see tasks/instruct.py
    validation_size: int = 100  # records that are held out
    shots: int = 5  # solved examples before a question of MMLU


@dataclass(frozen=True, kw_only=True)
class DomainBedTask(Task):
    """Images from several domains, some of which are held out: DomainBed."""

    pairs: bool = runtime(False)  # also the members that hold out pairs of the members' domains
    image_size: int | None = None  # pixels a side; None: those that the backbone was trained on
    augment: bool = True  # DomainBed's augmentations
    holdout: float = 0.2  # of each domain, for validation
    drop_path: float = 0.1  # share of the blocks' outputs that are dropped in the last layer
    skip_corrupt: bool = runtime(False)  # leave out files that are no images, and count them


TASKS: dict[str, type[Task]] = {
    "glue": TextTask,
    "glue_mini": TextTask,
    "glue_multitask": TextTask,
    "superglue": TextTask,
    "summarisation": GenerationTask,
    "summarisation_mini": GenerationTask,
    "squad": GenerationTask,
    "squad_mini": GenerationTask,
    "language_modelling": LanguageModellingTask,
    "instruct": InstructTask,
    "instruct_mini": InstructTask,
    "domainbed": DomainBedTask,
    "domainbed_mini": DomainBedTask,
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is done beside the equations: nothing (`paper`), or what the authors' code does.

    Each option is off by default and can be switched on alone. Those of EMoE's code act on `emoe`,
    `emoe_learn` and `gmoe`, and not on Llama, whose code has none of them; those of HyperMoE's code
    act on `moe`, `moe_share`, `moe_adapter` and `hypermoe`.
    """

    name: Literal["paper", "reference"] = "paper"
    # EMoE's code
    gate_noise: float = later(0.0)  # in training, N(0, 1) * gate_noise / E on the scores
    capacity_factor: float | None = later(None)  # room of an expert; the rest is dropped
    fixed_gate_balance_loss: float = later(0.0)  # for emoe, whose router does not learn
    split_output_bias: bool = later(False)  # every expert has b / k of its own
    expert_dropout: float = later(0.0)  # before the activation (vision: after it)
    scale_by_top_k: bool = later(True)  # emoe_learn: weights sum to k, so it starts at dense scale
    contiguous_random: bool = later(False)  # random experts: blocks in neuron order
    train_outside_layers: bool = later(False)  # lora: also pooler, final norm
    train_gmoe_block: bool = later(False)  # lora: also the blocks that gmoe converts
    rest_lr_scale: float = later(1.0)  # lora: of pretrained weights that train beside LoRA
    # HyperMoE's code
    hypernet_per_stack: bool = later(False)  # encoder and decoder each have a hypernetwork
    sequence_capacity: int | None = later(None)  # Switch: choices per expert and sequence
    dropped_tokens: Literal["zero", "input"] = later("zero")  # over capacity: 0, or weight * input
    jitter: float = later(0.0)  # Switch: noise on the layer's input in training
    straight_through: bool = later(True)  # top_k=1: the router learns from the task's loss
    load_threshold: Literal["scores", "probabilities"] = later("scores")  # of the balance loss


@dataclass(frozen=True, kw_only=True)
class Search:
    """Learning rates and seeds to try; empty lists: one run."""

    name: Literal["single", "paper"]
    tune_learning_rate: bool = False  # try tuning.learning_rates
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Settings of the training loop (Hugging Face Trainer)."""

    learning_rate: float | None = None  # None: tuning.learning_rate * model.lr_scale
    epochs: int | None = None  # None here and below: the task's own number
    max_steps: int | None = None  # updates
    batch_size: int | None = None  # global, per update
    accumulate: int = 1  # micro-batches per update; batch_size / accumulate go through at once
    eval_batch_size: int | None = None
    eval_steps: int | None = later(None)  # updates between evaluations; None: one per epoch
    weight_decay: float | None = None
    schedule: Schedule | None = None  # None: the task's own
    warmup_ratio: float | None = None
    max_grad_norm: float = 1.0
    patience: int | None = None  # evaluations without a better primary metric; 0: never stop
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    length_grouping: bool = False
    gradient_checkpointing: bool = runtime(False)  # computes activations twice, keeps fewer
    deterministic: bool = runtime(False)  # CUDA: deterministic kernels
    save_steps: int | None = runtime(None)  # None: a checkpoint at the end of every epoch
    workers: int = runtime(0)


@dataclass(frozen=True, kw_only=True)
class Logger:
    """Where a copy of the metrics goes."""

    name: Literal["none", "wandb"]
    project: str = "moe-runner"
    mode: Literal["offline", "online"] = "offline"
    group: str | None = None  # of Weights & Biases; a study sets its name


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Folders that are written to."""

    output: str = "outputs"
    cache: str = "outputs/cache"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole validated config."""

    method: Method
    model: Model
    tuning: Tuning
    task: Task
    protocol: Protocol
    search: Search
    trainer: Trainer
    logger: Logger
    paths: Paths
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    keep_model: Literal["none", "best"] = "none"
    evaluate: str | None = None
    export: Literal["none", "dense", "moe"] = "none"
    profile: Literal["mini", "paper"] = "mini"
    dry_run: bool = False
    rerun: bool = False
    quiet: bool = False
    debug: bool = False


GROUPS: dict[str, Any] = {
    "method": METHODS,  # a group with a dataclass per option
    "model": Model,
    "tuning": Tuning,
    "task": TASKS,
    "protocol": Protocol,
    "search": Search,
    "trainer": Trainer,
    "logger": Logger,
}
KIND = {"method": "name", "task": "suite"}  # the key that chooses among a group's dataclasses


# ----------------------------------------------------------------------- from a tree to dataclasses


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Find the allowed name that a typo most likely meant.

    Args:
        name: what was typed.
        allowed: the valid names.

    Returns:
        The nearest one, or None where nothing is near.
    """
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def not_an_option(given: str, of: str, name: str, allowed: Sequence[str], prefix: str = "") -> str:
    """Word the error for an unknown choice: what was given, the nearest, all that is allowed."""
    guess = nearest(name, allowed)
    hint = f"; did you mean {prefix}{guess}?" if guess else "; use one of"
    return f"{given} is not an option{of}{hint} ({', '.join(allowed)})"


def nearest_keys(given: str, keys: Iterable[str]) -> list[str]:
    """Find the dotted keys that a typo or a key of the wrong section most likely meant.

    Args:
        given: what was typed: "method.num_expert", "top_k".
        keys: the valid dotted keys.

    Returns:
        The best ones, usually one; empty where nothing is near.
    """

    def likeness(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    section, _, last = given.rpartition(".")
    scores = {}
    for key in keys:
        its_section, _, its_last = key.rpartition(".")
        scores[key] = likeness(last, its_last)  # a shared "trainer." makes no two names alike
        if its_section != section:
            distance = 1 - likeness(section, its_section)
            scores[key] = max(scores[key], likeness(given, key)) - 0.1 * distance
    good = max(0.65, max(scores.values(), default=0.0) - 0.03)
    return [key for key in sorted(scores, key=lambda key: -scores[key]) if scores[key] >= good][:3]


def unknown_key(given: str, key: str, of: str, keys: Sequence[str]) -> str:
    """Word the error for an unknown key.

    Args:
        given: what was typed: "trainer.foo=1".
        key: its dotted key.
        of: where it was looked for: " of trainer"; "" for the root.
        keys: the valid dotted keys.

    Returns:
        One line: what was given, and the nearest key or, where none is near, all of its section.
    """
    section = key.rpartition(".")[0]
    if near := nearest_keys(key, keys):
        hint = f"did you mean {join(near)}?"
    elif section and (own := [name for name in keys if name.rpartition(".")[0] == section]):
        hint = f"use one of {', '.join(own)}"
    else:
        hint = "moe-run --help lists the options"
    return f"{given} is not an option{of}; {hint}"


def join(words: Sequence[str]) -> str:
    """List words in a sentence: "a", "a or b", "a, b or c"."""
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def show(value: Any) -> str:
    """Write a plain value as a user types it: null, true, 3e-5, [8,10]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", repr(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{show(item)}' for key, item in value.items())}}}"
    return str(value)


def field_names(cls: type) -> list[str]:
    """List the option names of a dataclass, without what the user chooses by the group."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("name", "suite")]


def option_keys(kinds: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """List every dotted key that a user may set.

    Args:
        kinds: the chosen methods and suites, whose options differ: {"method": ["emoe"]}; a group
            that is not there stands for all of its kinds.

    Returns:
        The global keys, then "group.option", each once.
    """
    sections: list[tuple[str, type]] = []
    for group, cls in GROUPS.items():
        if group in KIND:
            sections += [(group, cls[name]) for name in (kinds or {}).get(group, cls)]
        else:
            sections.append((group, cls))
    keys = [name for name in field_names(Settings) if name not in {*GROUPS, "paths"}]
    for section, cls in (*sections, ("paths", Paths)):
        keys += [f"{section}.{name}" for name in field_names(cls)]
    return list(dict.fromkeys(keys))


def build(cls: type[T], tree: Mapping[str, Any], where: str, problems: list[str]) -> T | None:
    """Turn a mapping into a frozen dataclass and say all that is wrong with it.

    Args:
        cls: the dataclass.
        tree: keys and plain values.
        where: the tree's place in the config, for messages ("method").
        problems: every problem found is appended, one line each.

    Returns:
        The dataclass, or None if a key or a type is wrong.
    """
    wrong: list[str] = []
    hints = get_type_hints(cls)
    kind = str(tree.get(KIND[where])) if where in KIND else None
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key, given = f"{where}.{name}", f"{where}.{name}={show(value)}"
        if name not in hints:
            of = f" of {where}={kind}" if kind else f" of {where}"
            keys = option_keys(None if kind is None else {where: [kind]})
            wrong.append(unknown_key(given, key, of, keys))
        elif value == MISSING:
            wrong.append(f"{key} is missing; give {key}=<value>")
        else:
            try:
                values[name] = convert_value(value, hints[name])
            except TypeError as error:
                wrong.append(f"{given} is not valid; use {error}")
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        absent = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if absent and f.name not in tree:
            wrong.append(f"{where}.{f.name} is missing; give {where}.{f.name}=<value>")
    problems += wrong
    for name, value in values.items():
        if text := out_of_range(where, name, value):
            problems.append(f"{where}.{name}={show(value)} {text}")
    return None if wrong else cls(**values)


def convert_value(value: Any, hint: Any) -> Any:
    """Check a plain value against a type hint; lists become tuples, whole numbers fit a float.

    Args:
        value: what the config holds.
        hint: int, float, bool, str, None, Literal, tuple[X, ...], Mapping[str, X] or a union.

    Returns:
        The value in the hint's type.

    Raises:
        TypeError: with the text of what is allowed.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return convert_value(value, option)
            except TypeError:
                continue
        raise TypeError(describe(hint))
    if origin is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        raise TypeError(describe(hint))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(describe(hint))
        try:
            return tuple(convert_value(item, get_args(hint)[0]) for item in value)
        except TypeError:
            raise TypeError(describe(hint)) from None
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise TypeError(describe(hint))
        return {str(key): convert_value(item, get_args(hint)[1]) for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise TypeError(describe(hint))
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is type(None) and value is None:
        return None
    raise TypeError(describe(hint))


def describe(hint: Any) -> str:
    """Say in words which values a type hint allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return join([describe(option) for option in get_args(hint)])
    if get_origin(hint) is Literal:
        return join([str(option) for option in get_args(hint)])
    if get_origin(hint) is tuple:
        items = {int: "whole numbers [1,2]", float: "numbers [0.1,0.2]", str: "names [a,b]"}
        return f"a list of {items[get_args(hint)[0]]}"
    if get_origin(hint) is Mapping:
        return "a mapping {name: value}"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text (in quotes if it looks like a number)",
        type(None): "null",
    }[hint]


def parse(tree: Mapping[str, Any]) -> Settings:
    """Turn the composed config into validated settings.

    Args:
        tree: the whole config as plain Python containers, without Hydra's own node.

    Returns:
        The settings.

    Raises:
        ConfigError: with every problem of keys, types and values, one line each.
    """
    problems: list[str] = []
    parts: dict[str, Any] = {}
    sections = {**GROUPS, "paths": Paths}
    refuse_targets(tree, "", problems)
    for section, cls in sections.items():
        node = tree.get(section)
        if section in KIND and isinstance(node, Mapping):
            cls = cls.get(str(node.get(KIND[section])))
        if not isinstance(node, Mapping) or cls is None:
            given = f"{section}={show(node)}"
            problems.append(f"{given} is not valid; moe-run --help lists the options")
            continue
        parts[section] = build(cls, node, section, problems)
    hints = {key: hint for key, hint in get_type_hints(Settings).items() if key not in sections}
    for key, value in tree.items():
        if key in sections:
            continue
        if key not in hints:
            keys = [*sections, *option_keys()]
            problems.append(unknown_key(f"{key}={show(value)}", key, "", keys))
        elif value == MISSING:
            problems.append(f"{key} is missing; give {key}=<value>")
        else:
            try:
                parts[key] = convert_value(value, hints[key])
            except TypeError as error:
                problems.append(f"{key}={show(value)} is not valid; use {error}")
        if text := out_of_range("", key, parts.get(key)):
            problems.append(f"{key}={show(value)} {text}")
    if parts.get("model") is not None:
        parts["model"] = with_sizes_of_path(parts["model"], problems)
    problems += value_problems(parts)
    if problems:
        raise ConfigError(*problems)
    return Settings(**parts)


def refuse_targets(tree: Mapping[str, Any], where: str, problems: list[str]) -> None:
    """Refuse `_target_` anywhere: components are looked up by name, no config names code to run."""
    for key, value in tree.items():
        if key == "_target_":
            problems.append(
                f"{where}_target_={show(value)} is refused; components are chosen by name"
            )
        elif isinstance(value, Mapping):
            refuse_targets(value, f"{where}{key}.", problems)


# ------------------------------------------------------------------------------ values that clash

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


def value_problems(parts: Mapping[str, Any]) -> list[str]:
    """Find values that are well typed but cannot work together, without loading anything.

    Args:
        parts: section or global key -> its value; None or absent where it has a problem of its own.

    Returns:
        One line per problem; a check whose parts are not all there is left out.
    """
    checks: list[tuple[Callable[..., list[str]], str, str]] = [
        (search_problems, "search", "trainer"),
        (device_problems, "device", "trainer"),
        (task_problems, "task", "model"),
        (tuning_problems, "tuning", "model"),
        (method_problems, "method", "model"),
        (block_problems, "tuning", "method"),
        (protocol_problems, "protocol", "method"),
        (export_problems, "export", "method"),
        (checkpoint_problems, "task", "method"),
        (batch_problems, "task", "trainer"),
    ]
    problems: list[str] = []
    for check, one, other in checks:
        if parts.get(one) is not None and parts.get(other) is not None:
            problems += check(parts[one], parts[other])
    return problems


POSITIVE = {  # section ("" is the root) -> names
    "": "threads",
    "model": "d_model d_ff num_layers lr_scale",
    "method": "router_dim width embedding_dim layer_dim",
    "tuning": "learning_rate rank alpha new_modules_lr_scale",
    "protocol": "capacity_factor rest_lr_scale sequence_capacity",
    "task": "max_length limit eval_limit target_length answer_length beams block_size image_size "
    "validation_size",
    "trainer": "learning_rate epochs max_steps batch_size accumulate eval_batch_size eval_steps "
    "save_steps",
}
NOT_NEGATIVE = {
    "": "seed",
    "method": "cluster_seed balance_loss noise",
    "protocol": "gate_noise fixed_gate_balance_loss",
    "task": "data_seed min_length no_repeat_ngram shots",
    "trainer": "weight_decay max_grad_norm workers patience",
}
SHARES = {"task": "train_fraction"}  # above 0, to 1
FRACTIONS = {
    "tuning": "dropout",
    "task": "holdout drop_path",
    "trainer": "warmup_ratio",
    "protocol": "expert_dropout jitter",
}


def out_of_range(section: str, name: str, value: Any) -> str | None:
    """Say what is wrong with a number that is outside its range; None if nothing is."""
    if value is None:
        return None
    if name in POSITIVE.get(section, "").split() and value <= 0:
        return "is not positive; use a number above 0"
    if name in NOT_NEGATIVE.get(section, "").split() and value < 0:
        return "is negative; use 0 or more"
    if name in SHARES.get(section, "").split() and not 0 < value <= 1:
        return "is not a share; use more than 0 and at most 1"
    if name in FRACTIONS.get(section, "").split() and not 0 <= value < 1:
        return "is not a fraction; use 0 or more and less than 1"
    return None


def search_problems(search: Search, trainer: Trainer) -> list[str]:
    """Check that nothing is both given and searched for."""
    problems = []
    if search.tune_learning_rate and trainer.learning_rate is not None:
        problems.append(
            f"trainer.learning_rate={show(trainer.learning_rate)} and search={search.name} exclude "
            "each other; give one of them"
        )
    return problems


def device_problems(device: str, trainer: Trainer) -> list[str]:
    """Check the device's name, and the precision as far as the name tells."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        return [f"device={device} is not valid; use auto, cpu, mps, cuda or cuda:<n>"]
    if trainer.precision == "fp16" and device in ("cpu", "mps"):
        return [
            f"trainer.precision=fp16 does not work on device={device}; "
            "use trainer.precision=bf16 or fp32"
        ]
    return []


READS: dict[type[Task], tuple[str, tuple[str, ...]]] = {  # kind of task, families that can do it
    TextTask: ("is text classification", ("bert", "gpt2", "llama", "t5", "switch")),
    GenerationTask: ("generates text from text", ("t5", "switch")),
    LanguageModellingTask: ("predicts the next token", ("gpt2", "llama")),
    InstructTask: ("predicts the next token", ("gpt2", "llama")),
    DomainBedTask: ("classifies images", ("vit",)),
}


def task_problems(task: Task, model: Model) -> list[str]:
    """Check a task against the backbone that is to read it."""
    problems = []
    if not task.members:
        problems.append("task.members=[] is empty; name at least one task")
    what, families = READS[type(task)]
    if model.family not in families:
        problems.append(
            f"model={model.name} is of the family {model.family} and task={task.suite} {what}; "
            f"use a model of the family {join(families)}"
        )
        return problems
    if getattr(task, "holdout", 1.0) == 0:
        problems.append("task.holdout=0.0 leaves nothing to select by; use for example 0.2")
    for name in ("max_length", "block_size"):
        length = getattr(task, name, None)
        if length and model.max_positions and length > model.max_positions:
            problems.append(
                f"task.{name}={length} is more than the {model.max_positions} positions "
                f"of model={model.name}; use at most {model.max_positions}"
            )
    if getattr(task, "block_size", None) == 1:
        problems.append("task.block_size=1 leaves no token to predict; use 2 or more")
    return problems


def checkpoint_problems(task: Task, method: Method) -> list[str]:
    """Check that the checkpoints of DomainBed, which select the model, have its final form."""
    at = getattr(method, "convert_at", "both")
    if isinstance(task, DomainBedTask) and at != "both":
        return [
            f"method.convert_at={at} does not go with task={task.suite}, whose selection rules "
            "read every checkpoint as it is trained; use method.convert_at=both"
        ]
    return []


def batch_problems(task: Task, trainer: Trainer) -> list[str]:
    """Check how batches are to be put together against what they are made of."""
    if isinstance(task, DomainBedTask) and trainer.length_grouping:
        return [
            f"trainer.length_grouping=true does not go with task={task.suite}, whose images are of "
            "one length; use trainer.length_grouping=false"
        ]
    return []


def tuning_problems(tuning: Tuning, model: Model) -> list[str]:
    """Check which parameters train against the backbone."""
    if tuning.name == "full":
        return []
    problems = [
        f"tuning.{name}=null does not go with tuning={tuning.name}; give a number"
        for name in ("rank", "alpha", "dropout")
        if getattr(tuning, name) is None
    ]
    if not model.lora_targets:
        problems.append(
            f"tuning={tuning.name} needs model.lora_targets=[...] for model={model.name}: the "
            "names of its attention projections"
        )
    if tuning.blocks is not None:
        problems += layer_problems("tuning.blocks", tuning.blocks, model)
    return problems


def block_problems(tuning: Tuning, method: Method) -> list[str]:
    """Check that lora_block knows its blocks."""
    if tuning.name != "lora_block" or tuning.blocks or not isinstance(method, Dense | NoisyTuning):
        return []
    return [
        f"tuning.blocks=null with method={method.name} names no block to train; "
        "use for example tuning.blocks=last-even:1"
    ]


def protocol_problems(protocol: Protocol, method: Method) -> list[str]:
    """Check values of the protocol that the method cannot follow."""
    if protocol.capacity_factor is not None and getattr(method, "select", "top") != "top":
        return [
            f"protocol.capacity_factor={show(protocol.capacity_factor)} goes with "
            "method.select=top only: priorities are those of the best experts"
        ]
    return []


def export_problems(export: str, method: Method) -> list[str]:
    """Check that the method has the form that is to be written."""
    if export == "moe" and isinstance(method, Dense | NoisyTuning):
        return [f"export=moe and method={method.name} exclude each other; use export=dense"]
    if export == "dense" and not isinstance(method, Dense | NoisyTuning | EMoE):
        return [f"export=dense: {not_mergeable(method)}; use export=moe"]
    if isinstance(method, EMoE) and method.convert_at in ("train", "eval") and export != "none":
        form = "dense" if method.convert_at == "train" else "moe"
        if export != form:
            return [
                f"export={export}: method.convert_at={method.convert_at} ends as {form}; "
                f"use export={form}"
            ]
    return []


def not_mergeable(method: Method) -> str:
    """Say why a method has no dense form."""
    if isinstance(method, EMoELearn):
        return "method=emoe_learn cannot be merged: its learned router weighs the experts"
    return f"method={method.name} cannot be merged: its experts are different FFNs after tuning"


def method_problems(method: Method, model: Model) -> list[str]:
    """Check a method against the sizes of the backbone."""
    if model.d_ff < 1 or model.num_layers < 1 or isinstance(method, Dense | NoisyTuning):
        return []
    problems: list[str] = []
    num_experts = method.num_experts
    if num_experts is not None and model.family == "switch" and isinstance(method, MoE):
        problems.append(
            f"method.num_experts={num_experts} cannot be chosen for model={model.name}, whose "
            "experts are pretrained; use method.num_experts=null"
        )
    if num_experts is None:
        num_experts = NUM_COPIES
    if isinstance(method, Clustered) and (num_experts < 1 or model.d_ff % num_experts):
        sizes = divisors(model.d_ff)
        above = bisect.bisect(sizes, num_experts)
        first = max(min(above - 1, len(sizes) - 3), 0)
        problems.append(
            f"method.num_experts={num_experts} does not divide d_ff={model.d_ff} of "
            f"model={model.name}; use one of {', '.join(map(str, sizes[first : first + 3]))}, ..."
        )
    elif num_experts < 1:
        problems.append(f"method.num_experts={num_experts} is not positive; use 1 or more")
    if num_experts > 0 and not 1 <= method.top_k <= num_experts:
        bound = "more than" if method.top_k > 0 else "not allowed with"
        problems.append(
            f"method.top_k={method.top_k} is {bound} method.num_experts={num_experts}; "
            f"use 1 to {num_experts}"
        )
    if isinstance(method, EMoE):
        problems += gate_problems(method, model)
    return problems + layer_problems("method.layers", method.layers, model)


def gate_problems(method: EMoE, model: Model) -> list[str]:
    """Check selection and gate source of EMoE."""
    problems = []
    if method.select == "not_top" and method.top_k == method.num_experts:
        problems.append(
            f"method.select=not_top leaves no expert with method.top_k={method.top_k} of "
            f"{method.num_experts}; use a smaller top_k"
        )
    if method.gate_on != "gate" and not model.gated:
        problems.append(
            f"method.gate_on={method.gate_on} needs a gated FFN and model={model.name} has none; "
            "use method.gate_on=gate"
        )
    if method.gate_on == "inter" and method.backend not in ("auto", "masked"):
        problems.append(
            f"method.gate_on=inter computes every neuron and has no back end `{method.backend}`; "
            "use method.backend=masked"
        )
    if method.gate_on == "inter" and method.normalize_gate:
        problems.append(
            "method.normalize_gate=true does not go with method.gate_on=inter, which has no gate "
            "vectors; use method.normalize_gate=false"
        )
    return problems


def layer_problems(key: str, rule: str | Sequence[int], model: Model) -> list[str]:
    """Check a layer rule against the number of layers; a Switch has its own count of FFN sites."""
    if model.family == "switch":
        return []
    try:
        select_layers(rule, model.num_layers)
    except ValueError as error:
        return [f"{key}={error} (model={model.name} has {model.num_layers} layers)"]
    return []


def select_layers(rule: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Choose which layers of a stack are converted.

    Args:
        rule: a list of 0-based indices, or `all`, `last:n` (the last n), `last-even:n` (the last n
            with an even 0-based index: the EMoE paper's choice; for 12 layers and n = 2: 8, 10).
        num_layers: layers of the stack.

    Returns:
        Ascending 0-based indices.

    Raises:
        ValueError: for an unknown rule or an index that does not exist; names the value.
    """
    if isinstance(rule, str):
        match = re.fullmatch(r"(last|last-even):([1-9]\d*)", rule)
        if rule != "all" and match is None:
            raise ValueError(f"{rule} is not a rule; use [8,10], all, last:<n> or last-even:<n>")
        kind, count = ("last", num_layers) if match is None else (match[1], int(match[2]))
        candidates = range(0, num_layers, 2 if kind == "last-even" else 1)
        if count > len(candidates):
            most = f"{kind}:{len(candidates)}"
            raise ValueError(f"{rule} asks for more layers than there are; use at most {most}")
        return tuple(candidates[len(candidates) - count :])
    chosen = sorted(set(rule))
    outside = [index for index in chosen if not 0 <= index < num_layers]
    if outside or not chosen:
        raise ValueError(f"{show(rule)} names layers that do not exist; use 0 to {num_layers - 1}")
    return tuple(chosen)


def divisors(number: int) -> list[int]:
    """List the divisors of a positive number in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]
