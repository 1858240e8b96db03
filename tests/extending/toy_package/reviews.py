"""The suite `reviews`: csv files with the columns `text` and `label` (0 or 1)."""

from __future__ import annotations

from pathlib import Path

from moe_runner.options.task import TextTask
from moe_runner.options.training import Recipe
from moe_runner.tasks.places import Source, check
from moe_runner.tasks.specs import TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.tables import tidy

STARS = TaskSpec(
    name="stars",
    columns=("text",),
    labels=("bad", "good"),
    metrics=("accuracy",),
    validation=("validation",),
    recipe=Recipe(epochs={"full": 3, "lora": 3}),
)


class Reviews(Suite[TextTask]):
    """One task, in `task.data_dir/<split>.csv`."""

    options = TextTask
    specs = {"stars": STARS}

    def sources(self, options: TextTask, name: str) -> dict[str, Source]:
        """See `Suite`; no file is read."""
        found = {}
        for split in ("train", "validation"):
            file = Path(options.data_dir or ".").expanduser() / f"{split}.csv"
            if file.is_file():
                found[split] = Source(files=(file,))
            else:
                found[split] = Source(problem=f"{file} does not exist; use task.data_dir=<folder>")
        return found

    def load(self, options: TextTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`."""
        from pyarrow import csv  # heavy, so here

        found = self.sources(options, name)
        check(found)
        limits = {"train": options.limit, "validation": options.eval_limit}
        data = {
            split: tidy(
                csv.read_csv(source.files[0]), source.origin, [("text",)], STARS.labels,
                limits[split],
            )
            for split, source in found.items()
        }  # fmt: skip
        return TaskData(
            spec=STARS, train=data["train"], validation={"validation": data["validation"]}
        )


SUITE: Suite[TextTask] = Reviews()
