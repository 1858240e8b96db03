"""Put what is to be analysed to work: a kept run or a model folder, on its data or on texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from moe_runner.analysis.observe import layer_names, observe
from moe_runner.analysis.records import Layer, Loads, Subject
from moe_runner.analysis.words import Vocabulary, read_vocabulary
from moe_runner.backbones.families import positions_of
from moe_runner.conversion.counts import moe_layers
from moe_runner.conversion.saving import from_pretrained
from moe_runner.files import one_line
from moe_runner.options.errors import ConfigError
from moe_runner.options.settings import Logger
from moe_runner.runs.objects import StoreError
from moe_runner.runs.run import Run, stored_run
from moe_runner.runs.store import RunFolder, Store
from moe_runner.training.device import choose_device
from moe_runner.training.evaluate import kept_folder, load_best
from moe_runner.training.fit import Prepared, Resources, build, silence_libraries, take_final_form

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
MOST_UNKNOWN = 0.1  # of the tokens; beyond, it is said
BATCH = 16  # examples at once
Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Request:
    """What to run models on, and where.

    Args:
        texts: lines of each file by its name; empty: the run's own evaluation data.
        limit: examples of each set, spread over it.
        length: tokens of a line of a file; what is longer is cut.
        device: see `choose_device`.
        threads: of torch; None: its own choice.
        cache: folder of clusters and encoded data.
    """

    texts: Mapping[str, Sequence[str]]
    limit: int
    length: int
    device: str
    threads: int | None
    cache: Path


def run_subject(run_id: str, store: Store, request: Request) -> Subject:
    """Analyse a kept run, beside the model that it started from.

    Args:
        run_id: of a run in the store.
        store: holds it.
        request: what to run it on.

    Raises:
        ConfigError: if the run was not kept, cannot be built again or has no experts, or the texts
            do not go with it.
        StoreError: if its files are damaged.
    """
    given = f"moe-report analyze {run_id}"
    run = stored_run(store.folder(run_id), given)
    if not run.method.converts:
        raise ConfigError(f"{given}: method={run.method.name} has no experts; give another run")
    folder = kept_folder(run, store, given)
    resources = Resources(
        device=choose_device(request.device),
        threads=request.threads,
        cluster_cache=request.cache / "clusters",
        logger=Logger(name="none"),
        keep_model=False,
        quiet=True,
        data_cache=request.cache,
    )
    plain = without_kernel(run)
    ready = build(plain, resources)
    notes = []
    form = run.method.converted_at
    if form == "eval":
        take_final_form(ready, plain, resources)  # of the untuned model
    sets = sets_of(ready, run, request, resources.device)
    classes = bool(ready.data.spec.labels) and not request.texts
    main = next(iter(sets.values()))
    before = observe(ready.backbone.model, main, classes=classes)
    if form == "eval":
        ready = build(plain, resources)
        load_best(ready, folder, given)
        take_final_form(ready, plain, resources)
    else:
        load_best(ready, folder, given)
    if form == "train":
        notes.append(
            "Tuned with experts and evaluated merged: the experts of the tuning are shown."
        )
    model = ready.backbone.model
    vocabulary = vocabulary_of(ready.backbone.processor, main)
    return Subject(
        name=run_id,
        title=run.label,
        sets=observe_sets(model, sets, classes),
        before=before,
        over_training=[] if form == "eval" else read_loads(folder, model),
        notes=(*notes, *notes_of(model, ready.backbone.processor, main)),
        vocabulary=vocabulary.text,
        kinds=vocabulary.kind,
        settings=run.settings(),
    )


def without_kernel(run: Run) -> Run:
    """Give the run as PyTorch alone computes it in fp32, as `observe` does, on any device.

    What experts are does not depend on last bits.
    """
    method = run.method
    if getattr(method, "backend", None) == "kernel":
        method = replace(method, backend="auto")  # type: ignore[call-arg]
    trainer = replace(run.trainer, inference="plain", precision="fp32")
    return replace(run, method=method, trainer=trainer)


def folder_subject(folder: Path, request: Request) -> Subject:
    """Analyse a model folder written by `save_pretrained` or `export=moe`.

    Args:
        folder: holds moe_runner.json, and the tokenizer.
        request: with texts.

    Raises:
        ConfigError: if there are no texts, or the folder holds no such model or no tokenizer.
    """
    silence_libraries()
    if not request.texts:
        raise ConfigError(
            f"{folder} is a model folder and has no data of its own; add texts=<file of one text a "
            "line>"
        )
    device = choose_device(request.device)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ConfigError(  # the library would make one without words
            f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}); save the model's own there"
        )
    try:
        model = from_pretrained(folder).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = one_line(error).partition("\n")[0]
        raise ConfigError(
            f"{folder} cannot be loaded ({reason}); save the model and its tokenizer again"
        ) from error
    sets = text_batches(tokenizer, model, request, device)
    main = next(iter(sets.values()))
    vocabulary = vocabulary_of(tokenizer, main)
    return Subject(
        name=folder.resolve().name,
        title=str(folder),
        sets=observe_sets(model, sets, classes=False),
        notes=(
            "A model folder does not say what the model was before tuning.",
            *notes_of(model, tokenizer, main),
        ),
        vocabulary=vocabulary.text,
        kinds=vocabulary.kind,
    )


def observe_sets(
    model: PreTrainedModel, sets: Mapping[str, Batches], classes: bool
) -> dict[str, list[Layer]]:
    """Observe a model on each set; the first one with all that can be measured."""
    return {
        name: observe(model, batches, classes=classes, measure=number == 0)
        for number, (name, batches) in enumerate(sets.items())
    }


def sets_of(
    ready: Prepared, run: Run, request: Request, device: torch.device
) -> dict[str, Batches]:
    """Collate the examples: of the user's texts, else of the run's own evaluation sets.

    Raises:
        ConfigError: if there are texts and the model reads none.
    """
    if request.texts:
        tokenizer = ready.backbone.processor
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(
                f"texts={','.join(request.texts)}: model={run.model.name} reads pictures; leave "
                "texts out"
            )
        return text_batches(tokenizer, ready.backbone.model, request, device)
    data = ready.data
    known: dict[str, tuple[Any, tuple[str, ...]]] = {
        split: (data.validation.get(split), data.spec.columns)
        for split in dict.fromkeys((*data.spec.validation, *data.validation))
    }
    for name, dataset in data.ood.items():
        known[name] = (dataset, data.ood_specs[name].columns)
    found = {}
    for name, (dataset, columns) in known.items():
        encoded = None if dataset is None else ready.encode(dataset, columns)
        if encoded is None or "choices" in getattr(encoded, "column_names", ()):
            continue  # absent, or questions that a harness writes out
        rows = [encoded[i] for i in spread(len(encoded), request.limit)]
        found[name] = [
            {key: value.to(device) for key, value in ready.form.collator(part).items()}
            for part in parts(rows, BATCH)
        ]
    return found


def text_batches(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: Request,
    device: torch.device,
) -> dict[str, Batches]:
    """Tokenize the user's texts; padded on the right.

    Raises:
        ConfigError: for a file without a token.
    """
    length = min(request.length, positions_of(model.config.to_dict()) or request.length)
    padding = tokenizer.pad_token_id or 0
    found: dict[str, Batches] = {}
    for name, lines in request.texts.items():
        chosen = [lines[i] for i in spread(len(lines), request.limit)]
        encoded = tokenizer(chosen, truncation=True, max_length=length)["input_ids"]
        rows = [torch.tensor(ids, dtype=torch.int64) for ids in encoded if ids]
        if not rows:
            raise ConfigError(f"texts={name} holds no token of this model; give other texts")
        found[name] = []
        for part in parts(rows, BATCH):
            ids_BL = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=padding)
            sizes = torch.tensor([len(row) for row in part])
            mask_BL = (torch.arange(ids_BL.shape[1]) < sizes[:, None]).long()
            batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
            found[name].append({key: value.to(device) for key, value in batch.items()})
    return found


def parts(rows: Sequence[Any], size: int) -> Iterator[Any]:
    """Cut into pieces of equal size; the last one may be shorter."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def spread(available: int, limit: int) -> list[int]:
    """Choose examples that are spread evenly over a set, all of them if there are no more."""
    places = np.linspace(0, available - 1, min(available, limit))
    return [int(place) for place in places]


def notes_of(model: PreTrainedModel, tokenizer: Any, batches: Batches) -> list[str]:
    """Say what the figures leave out, and that texts are not in the model's language."""
    notes = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and batches and "input_ids" in batches[0]:
        ids = torch.cat([without_padding(batch) for batch in batches])
        share = float((ids == unknown).double().mean())
        if share > MOST_UNKNOWN:
            notes.append(f"{100 * share:.0f}% of the tokens are unknown to the tokenizer.")
    if model.config.is_encoder_decoder and batches and "labels" not in batches[0]:
        notes.append("Texts have no answers: the decoder's layers are left out.")
    return notes


def without_padding(batch: Mapping[str, Tensor]) -> Tensor:
    """Take the tokens of a batch, int (N,): with some tokenizers padding is the unknown token."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    return ids.flatten() if mask is None else ids[mask == 1]


def vocabulary_of(tokenizer: Any, batches: Batches) -> Vocabulary:
    """Read the tokens that can occur; empty for pictures."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or "input_ids" not in batches[0]:
        return Vocabulary((), ())
    largest = max(int(batch["input_ids"].max()) for batch in batches)
    return read_vocabulary(tokenizer, max(len(tokenizer), largest + 1))


def read_loads(folder: RunFolder, model: PreTrainedModel) -> list[Loads]:
    """Read how the experts were used at each evaluation of a training.

    Raises:
        StoreError: if metrics.jsonl is damaged.
    """
    file = folder.path / "metrics.jsonl"
    try:
        lines = [line for line in folder.metrics() if line["split"] == "eval" and line.get("load")]
        names, layers = [name for name, _ in layer_names(model)], moe_layers(model)
        updates = np.array([line["step"] for line in lines], dtype=np.int64)
        found = []
        for number, (name, layer) in enumerate(zip(names, layers, strict=True)):
            load = np.array([line["load"][number] for line in lines], dtype=np.int64)
            found.append(Loads(name, updates, load.reshape(len(lines), layer.experts.num_experts)))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StoreError(
            f"{file} does not hold the load of the model's experts ({error}); run its command "
            "again with keep_model=best rerun=true"
        ) from error
    return found if len(lines) else []
