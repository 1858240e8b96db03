"""The suite `glue`: eight tasks of GLUE, from local parquet files or the Hugging Face Hub.

Source: GLUE, arXiv:1804.07461; epochs and scores as in EMoE (PROTOCOL.md I.4). WNLI is left out, as
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import Task, TextTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import gluex
from moe_runner.tasks.glue_tsv import READING, read_tsv, tsv_source
from moe_runner.tasks.gluex import ood_names
from moe_runner.tasks.places import (
    Source,
    check,
    chosen_ood,
    hub_split,
    ood_part,
    optional,
    split_source,
)
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.tables import read, tidy

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "nyu-mll/glue"
RECIPE = Recipe(epochs={"full": 10, "lora": 20, "lora_block": 20}, patience=4)
HYPERMOE = Recipe(  # as text to text: PROTOCOL.md II.2
    epochs={"full": 10, "lora": 10, "lora_block": 10},
    learning_rate=1e-5,
    batch_size=8,
    eval_batch_size=8,
    weight_decay=0.1,
    max_length=256,
)
LARGE = replace(RECIPE, epochs={"full": 3, "lora": 5, "lora_block": 5})
PARAPHRASE = ("not_equivalent", "equivalent")
DUPLICATE = ("not_duplicate", "duplicate")
ENTAILMENT = ("entailment", "not_entailment")
MNLI_LABELS = ("entailment", "neutral", "contradiction")


def _task(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    *,
    rows: tuple[int, ...],
    licence: str,
    validation: tuple[str, ...] = ("validation",),
    recipe: Recipe = RECIPE,
) -> TaskSpec:
    """Describe a task; `rows` are the published sizes of train and validation, () if unknown."""
    return TaskSpec(
        name=name,
        columns=columns,
        labels=labels,
        metrics=metrics,
        validation=validation,
        ood=gluex.PAPER[name],
        recipe=recipe,
        about=About(
            source=HUB_ID,
            licence=licence,
            rows=dict(zip(("train", *validation), rows, strict=False)),
        ),
        recipes={"text_to_text": HYPERMOE},
    )


PAIR = ("sentence1", "sentence2")
MATCHED = ("validation_matched", "validation_mismatched")
TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _task(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews",),
            rows=(8551, 1043),
            licence="none stated",
        ),
        _task(
            "sst2",
            ("sentence",),
            ("negative", "positive"),
            ("accuracy",),
            rows=(67349, 872),
            licence="none stated",
        ),
        _task(
            "mrpc",
            PAIR,
            PARAPHRASE,
            ("accuracy", "f1"),
            rows=(3668, 408),
            licence="Microsoft Research",
        ),
        _task(
            "stsb",
            PAIR,
            (),
            ("pearson", "spearman"),
            rows=(5749, 1500),
            licence="CC BY-SA 4.0 (scores)",
        ),
        _task(
            "qqp",
            ("question1", "question2"),
            DUPLICATE,
            ("accuracy", "f1"),
            rows=(363846, 40430),
            licence="Quora, non-commercial",
            recipe=LARGE,
        ),
        _task(
            "mnli",
            ("premise", "hypothesis"),
            MNLI_LABELS,
            ("accuracy",),
            rows=(392702, 9815),
            licence="OANC, CC BY 3.0, CC BY-SA 3.0",
            validation=MATCHED,
            recipe=LARGE,
        ),
        _task(
            "qnli",
            ("question", "sentence"),
            ENTAILMENT,
            ("accuracy",),
            rows=(104743, 5463),
            licence="CC BY-SA 4.0",
            recipe=LARGE,
        ),
        _task("rte", PAIR, ENTAILMENT, ("accuracy",), rows=(), licence="unknown"),
    )
}


def _glue_source(options: Task, name: str, split: str) -> Source:
    """Say where a split of a GLUE task is: in `task.data_dir` if that is given, else on the Hub."""
    place = hub_split(options, HUB_ID, name, split)
    if options.data_dir is not None and (own := tsv_source(options.data_dir, name, split)):
        return own
    return split_source(options, name, place, instead=f"glue_mini/{name}")


def _read(
    source: Source,
    columns: Sequence[tuple[str, ...]],
    labels: tuple[str, ...],
    limit: int | None,
    cache: Path | None,
) -> Dataset | None:
    """Read a split, of parquet or GLUE's own files; see `tables.read`."""
    if source.available and source.reading.startswith(READING):
        return tidy(read_tsv(source), source.origin, columns, labels, limit)
    return read(source, columns, labels, limit, cache)


class Glue(Suite[TextTask]):
    """Eight tasks; each may be evaluated on its out-of-domain partners."""

    options = TextTask
    specs = TASKS

    def sources(self, options: TextTask, name: str) -> dict[str, Source]:
        """See `Suite`; needed are "train", the first validation split, and sets that are named."""
        first, *others = TASKS[name].validation
        found = {split: _glue_source(options, name, split) for split in ("train", first)}
        for split in others:
            found[split] = optional(_glue_source(options, name, split))
        for ood, named in chosen_ood(options, name, ood_names, gluex.PAPER[name]).items():
            of_glue = gluex.PARTNERS[ood].glue
            place = _glue_source(options, *of_glue) if of_glue else gluex.source(options, ood)
            found[f"ood/{ood}"] = place if named else optional(place)
        return found

    def load(self, options: TextTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`."""
        spec = TASKS[name]
        found = self.sources(options, name)
        check(found)
        ood, ood_specs = {}, {}
        for ood_name, place in ood_part(found).items():
            partner = gluex.PARTNERS[ood_name]
            columns = [c for c in (partner.columns, partner.other_columns) if c is not None]
            ood_specs[ood_name] = partner.spec
            ood[ood_name] = _read(place, columns, spec.labels, options.eval_limit, cache)
        train = _read(found["train"], [spec.columns], spec.labels, options.limit, cache)
        assert train is not None  # check() has seen to it
        return TaskData(
            spec=spec,
            train=train,
            validation={
                split: _read(found[split], [spec.columns], spec.labels, options.eval_limit, cache)
                for split in spec.validation
            },
            ood=ood,
            ood_specs=ood_specs,
        )


SUITE: Suite[TextTask] = Glue()
