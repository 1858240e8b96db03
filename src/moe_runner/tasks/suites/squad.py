"""The suite `squad`: SQuAD 1.1, answered by a generated text, scored by exact match and F1.

Settings as in HyperMoE's experiments (PROTOCOL.md II.2): the learning rate is the library's
default, since the authors' own value is not passed on.
"""

from pathlib import Path

from moe_runner.options.task import GenerationTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.free_text import both_splits, read_texts
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import About, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite

HUB_ID = "rajpurkar/squad"
COLUMNS = ("question", "context")
RECIPE = Recipe(
    epochs={"full": 10, "lora": 10, "lora_block": 10},
    learning_rate=5e-5,
    batch_size=8,
    eval_batch_size=8,
)


ABOUT = About(source=HUB_ID, licence="CC BY-SA 4.0")


def questions(name: str, about: About, recipe: Recipe = RECIPE) -> TaskSpec:
    """Say what a task of answering questions about a text is."""
    return TaskSpec(
        name=name,
        form="text_to_text",
        columns=COLUMNS,
        free_text=True,
        template="question: {question} context: {context}",
        metrics=("exact_match", "token_f1"),
        validation=("validation",),
        recipe=recipe,
        about=about,
    )


TASKS = {"squad": questions("squad", ABOUT)}


class Squad(Suite[GenerationTask]):
    """Questions about a text; a question may have several right answers."""

    options = GenerationTask
    specs = TASKS

    def sources(self, options: GenerationTask, name: str) -> dict[str, Source]:
        """See `Suite`."""
        return both_splits(options, name, HUB_ID, "plain_text", instead="squad_mini")

    def load(self, options: GenerationTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`."""
        found = self.sources(options, name)
        check(found)
        columns = {column: column for column in COLUMNS}
        limits = {"train": options.limit, "validation": options.eval_limit}
        read = {
            split: read_texts(found[split], columns, "answers", limit=limit, cache=cache)
            for split, limit in limits.items()
        }
        return TaskData(
            spec=TASKS[name],
            train=read["train"],
            validation={"validation": read["validation"]},
        )


SUITE: Suite[GenerationTask] = Squad()
