"""The suite `superglue`: eight tasks of SuperGLUE, from local parquet files or the Hub.

ReCoRD is answered by a text (an entity), the others by a class; COPA, MultiRC, ReCoRD and WSC are
read by backbones that generate text only. The epochs where a head classifies are EMoE's for GLUE,
those of text to text HyperMoE's (PROTOCOL.md II.2).

Source: SuperGLUE, arXiv:1905.00537; the texts of ReCoRD and WSC after T5, arXiv:1910.10683.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runner.options.task import TextTask
from moe_runner.tasks.free_text import both_splits, expect, texts
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import glue
from moe_runner.tasks.tables import chosen_rows, read, read_table, tidy

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "aps/super_glue"
FALSE_TRUE = ("False", "True")
CONFIGS = {"wsc": "wsc.fixed"}  # on the Hub, where it is not the task's name


def _task(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    classified: bool = False,
) -> TaskSpec:
    return TaskSpec(
        name=name,
        form="classification" if classified else "text_to_text",
        columns=columns,
        labels=labels,
        free_text=not labels,
        metrics=metrics,
        validation=("validation",),
        recipe=glue.RECIPE if classified else glue.HYPERMOE,
        about=About(source=HUB_ID, licence="each set's own"),
        recipes={"text_to_text": glue.HYPERMOE},
    )


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _task("boolq", ("question", "passage"), FALSE_TRUE, classified=True),
        _task(
            "cb",
            ("premise", "hypothesis"),
            ("entailment", "contradiction", "neutral"),
            ("macro_f1", "accuracy"),
            classified=True,
        ),
        _task("copa", ("premise", "choice1", "choice2", "question"), ("choice1", "choice2")),
        _task(
            "multirc", ("question", "answer", "paragraph"), FALSE_TRUE, ("f1", "group_exact_match")
        ),
        _task("record", ("query", "entities", "passage"), (), ("token_f1", "exact_match")),
        _task("rte", ("premise", "hypothesis"), glue.ENTAILMENT, classified=True),
        _task("wic", ("word", "sentence1", "sentence2"), FALSE_TRUE, classified=True),
        _task("wsc", ("text",), FALSE_TRUE),
    )
}


def _read(
    name: str, source: Source, limit: int | None, cache: Path | None, *, training: bool
) -> Dataset:
    """Read a split of a task."""
    spec = TASKS[name]
    if name not in ("record", "multirc", "wsc"):
        data = read(source, [spec.columns], spec.labels, limit, cache)
        assert data is not None  # check() has seen to it
        return data
    table, origin = read_table(source)
    if name == "record":
        return _read_record(table, origin, limit, training=training)
    if name == "multirc":
        return _read_multirc(table, origin, limit)
    table = _with_marked_spans(table, origin)
    return tidy(table, origin, [spec.columns], spec.labels, limit)


def _read_multirc(table: Any, origin: str, limit: int | None) -> Dataset:
    """Keep which question an answer belongs to: all of its answers are scored together."""
    import pyarrow as pa

    spec = TASKS["multirc"]
    expect(table, origin, (*spec.columns, "idx", "label"))
    table = table.take(chosen_rows(len(table), limit))
    groups = [f"{idx['paragraph']}/{idx['question']}" for idx in table["idx"].to_pylist()]
    data = tidy(table, origin, [spec.columns], spec.labels)
    return data.add_column("group", pa.array(groups))


def _read_record(table: Any, origin: str, limit: int | None, *, training: bool) -> Dataset:
    """Make an example of every query; in training one of each of its right answers, as T5 does."""
    import pyarrow as pa

    expect(table, origin, ("passage", "query", "entities", "answers"))
    rows = []
    for row in table.take(chosen_rows(len(table), limit)).to_pylist():
        made = {
            "query": row["query"],
            "entities": ", ".join(dict.fromkeys(row["entities"])),
            "passage": row["passage"].replace("\n@highlight\n", " "),
        }
        answers = list(dict.fromkeys(row["answers"]))
        alone = training and len(answers) > 1
        for given in [[answer] for answer in answers] if alone else [answers]:
            rows.append({**made, "answers": {"text": given}})
    columns = {column: column for column in TASKS["record"].columns}
    made_table = pa.table({name: [row[name] for row in rows] for name in (*columns, "answers")})
    return texts(made_table, origin, columns, "answers")


def _with_marked_spans(table: Any, origin: str) -> Any:
    """Mark WSC's noun with # and its pronoun with * in the text, as T5 does."""
    import pyarrow as pa

    spans = ("span1_text", "span1_index", "span2_text", "span2_index")
    expect(table, origin, ("text", *spans, "label"))
    marked = []
    for row in table.to_pylist():
        words = row["text"].split()
        for sign, number in (("*", 2), ("#", 1)):
            span, start = row[f"span{number}_text"], row[f"span{number}_index"]
            end = start + len(span.split())
            here = " ".join(words[start:end])
            if not here.lower().startswith(span.lower()):
                raise ValueError(
                    f"{origin} has the text {row['text'][:60]!r}..., in which word {start} is not "
                    f"{span!r}"
                )
            word = f"{sign} {here[: len(span)]} {sign}{here[len(span) :]}"
            words[start:end] = [word, *[""] * (end - start - 1)]
        marked.append(" ".join(word for word in words if word))
    return pa.table({"text": marked, "label": table["label"]})


class SuperGlue(Suite[TextTask]):
    """Eight tasks; some are read by backbones that generate text only."""

    options = TextTask
    specs = TASKS

    def sources(self, options: TextTask, name: str) -> dict[str, Source]:
        """See `Suite`."""
        return both_splits(options, name, HUB_ID, CONFIGS.get(name, name), instead="")

    def load(self, options: TextTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; of MultiRC, `limit` counts answers."""
        found = self.sources(options, name)
        check(found)
        return TaskData(
            spec=TASKS[name],
            train=_read(name, found["train"], options.limit, cache, training=True),
            validation={
                "validation": _read(
                    name, found["validation"], options.eval_limit, cache, training=False
                )
            },
        )


SUITE: Suite[TextTask] = SuperGlue()
