"""The suite `summarisation`: XSum and CNN/DailyMail, from local parquet files or the Hub.

Settings as in HyperMoE's experiments (PROTOCOL.md II.2): the first 1,600 validation examples are
evaluated, by ROUGE-1, -2 and -L.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_runner.options.task import GenerationTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.free_text import both_splits, read_texts
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

ROUGE = ("rouge1", "rouge2", "rougeL")
RECIPE = Recipe(
    epochs={"full": 10, "lora": 10, "lora_block": 10},
    learning_rate=3e-5,
    batch_size=8,
    eval_batch_size=2,
    weight_decay=0.1,
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a data set is on the Hub, and its columns."""

    hub_id: str
    config: str
    document: str
    summary: str


PLACES: Mapping[str, Place] = {
    "xsum": Place(
        hub_id="EdinburghNLP/xsum",
        config="default",
        document="document",
        summary="summary",
    ),
    "cnn_dailymail": Place(
        hub_id="abisee/cnn_dailymail",
        config="3.0.0",
        document="article",
        summary="highlights",
    ),
}


def summaries(name: str, about: About, recipe: Recipe = RECIPE) -> TaskSpec:
    """Say what a task of summarising is."""
    return TaskSpec(
        name=name,
        form="text_to_text",
        columns=("document",),
        free_text=True,
        template="summarize: {document}",
        metrics=ROUGE,
        validation=("validation",),
        recipe=recipe,
        about=about,
    )


TASKS = {
    name: summaries(name, About(source=place.hub_id, licence="see its card on the Hub"))
    for name, place in PLACES.items()
}


class Summarisation(Suite[GenerationTask]):
    """Texts with their summaries."""

    options = GenerationTask
    specs = TASKS

    def sources(self, options: GenerationTask, name: str) -> dict[str, Source]:
        """See `Suite`."""
        place = PLACES[name]
        return both_splits(options, name, place.hub_id, place.config, instead="summarisation_mini")

    def load(self, options: GenerationTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; validation: the first `eval_limit` examples."""
        found = self.sources(options, name)
        check(found)
        place = PLACES[name]
        columns = {"document": place.document}
        return TaskData(
            spec=TASKS[name],
            train=read_texts(
                found["train"], columns, place.summary, limit=options.limit, cache=cache
            ),
            validation={
                "validation": read_texts(
                    found["validation"],
                    columns,
                    place.summary,
                    first=options.eval_limit,
                    cache=cache,
                )
            },
        )


SUITE: Suite[GenerationTask] = Summarisation()
