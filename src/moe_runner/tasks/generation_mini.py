"""The suites `squad_mini` and `summarisation_mini`: synthetic texts, generated; no files."""

from pathlib import Path
from typing import TYPE_CHECKING

from moe_runner.options.task import Task
from moe_runner.tasks import squad, summarisation
from moe_runner.tasks.base import About, Recipe, Source, TaskData
from moe_runner.tasks.free_text import no_ood, ood_names, texts
from moe_runner.tasks.mini.texts import SIZES, VERSION, questions
from moe_runner.tasks.mini.texts import summaries as summarised

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TASKS", "load", "ood_names", "sources"]

RECIPE = Recipe(  # ours
    epochs={"full": 4, "lora": 8, "lora_block": 8},
    learning_rate=1e-4,
    batch_size=32,
    eval_batch_size=50,
)
ABOUT = About(source="generated", licence="MIT", rows=SIZES)
TASKS = {
    "squad_mini": squad.questions("squad_mini", ABOUT, RECIPE),
    "summarisation_mini": summarisation.summaries("summarisation_mini", ABOUT, RECIPE),
}
MADE = {  # generator, and its column of answers
    "squad_mini": (questions, "answers"),
    "summarisation_mini": (summarised, "summary"),
}


def sources(options: Task, name: str) -> dict[str, Source]:
    """Say what is generated, from which version and seed; see `tasks.sources`."""
    no_ood(options, name)
    source = Source(generated=f"{name} v{VERSION} seed {options.data_seed}")
    return dict.fromkeys(["train", "validation"], source)


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Generate the data of a task, the same for the same version and `data_seed`."""
    import pyarrow as pa  # heavy, so here

    no_ood(options, name)
    generate, answers = MADE[name]
    columns = {column: column for column in TASKS[name].columns}

    def made(split: str, limit: int | None) -> "Dataset":
        table = pa.table(generate(split, seed=options.data_seed))
        return texts(table, f"{name}/{split}", columns, answers, limit)

    return TaskData(
        spec=TASKS[name],
        train=made("train", options.limit),
        validation={"validation": made("validation", options.eval_limit)},
    )
