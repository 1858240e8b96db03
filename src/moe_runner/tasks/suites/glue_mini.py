"""The suite `glue_mini`: synthetic tasks in the form of GLUE, generated from a seed; no files.

Each has one out-of-domain partner with the columns of its task, scored as GLUE-X's are.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import TextTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import gluex
from moe_runner.tasks.cache import cached_table
from moe_runner.tasks.mini.glue import OOD_NAMES, SIZES, VERSION, generate
from moe_runner.tasks.places import Source, chosen_ood
from moe_runner.tasks.specs import About, OODSpec, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import glue
from moe_runner.tasks.tables import tidy

if TYPE_CHECKING:
    from datasets import Dataset

RECIPE = replace(glue.RECIPE, epochs={"full": 4, "lora": 8, "lora_block": 8})  # ours
TEXT_RECIPE = Recipe(  # ours
    epochs=dict.fromkeys(RECIPE.epochs, 8),  # to write a digit takes longer than to choose a class
    learning_rate=1e-4,
    batch_size=16,
    eval_batch_size=64,
    max_length=256,
)
TASKS: dict[str, TaskSpec] = {
    name: replace(
        spec,
        ood=(OOD_NAMES[name],),
        recipe=RECIPE,
        recipes={"text_to_text": TEXT_RECIPE},
        about=About(source="generated", licence="MIT", rows=SIZES[name]),
    )
    for name, spec in glue.TASKS.items()
}


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on: its one partner."""
    return TASKS[task_name].ood


class GlueMini(Suite[TextTask]):
    """Eight generated tasks with a partner each."""

    options = TextTask
    specs = TASKS

    def sources(self, options: TextTask, name: str) -> dict[str, Source]:
        """See `Suite`: what is generated, from which version and seed."""
        spec = TASKS[name]
        source = Source(generated=f"glue_mini v{VERSION} seed {options.data_seed}")
        ood = chosen_ood(options, name, ood_names, spec.ood)
        return dict.fromkeys(["train", *spec.validation, *(f"ood/{n}" for n in ood)], source)

    def load(self, options: TextTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; the data are the same for the same version and `data_seed`."""
        spec = TASKS[name]
        columns = [spec.columns]

        def made(split: str, limit: int | None) -> "Dataset":
            key = ["glue_mini", VERSION, name, split, options.data_seed]
            make = partial(generate, name, split, seed=options.data_seed)
            table = cached_table(make, key, cache)
            return tidy(table, f"glue_mini/{name}/{split}", columns, spec.labels, limit)

        chosen = chosen_ood(options, name, ood_names, spec.ood)
        metrics = gluex.CORRELATION if name == "stsb" else gluex.ACCURACY
        return TaskData(
            spec=spec,
            train=made("train", options.limit),
            validation={split: made(split, options.eval_limit) for split in spec.validation},
            ood={ood: made("ood", options.eval_limit) for ood in chosen},
            ood_specs={ood: OODSpec(columns=spec.columns, metrics=metrics) for ood in chosen},
        )


SUITE: Suite[TextTask] = GlueMini()
