"""The suite `instruct_mini`: generated instructions, and multiple-choice questions like MMLU's.

Synthetic; made by a seeded grammar, no files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_runner.config import InstructTask, Task
from moe_runner.tasks import instruct, mmlu
from moe_runner.tasks.base import GENERATED, OODSpec, Recipe, Source, TaskData, TaskSpec, chosen_ood
from moe_runner.tasks.mini.instruct import VERSION, questions, records

OOD = "mmlu_mini"
RECIPE = Recipe(  # ours: a minute on a CPU
    epochs={"full": 3, "lora": 3, "lora_block": 3},
    batch_size=32,
    eval_batch_size=64,
    schedule="cosine",
    warmup_ratio=0.03,
)
TASKS: dict[str, TaskSpec] = {
    "instruct": replace(
        instruct.TASKS["alpaca"], name="instruct", ood=(OOD,), recipe=RECIPE, about=GENERATED
    )
}


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on."""
    return TASKS[task_name].ood


def sources(options: Task, name: str) -> dict[str, Source]:
    """Say what is generated, from which version and seed.

    Args:
        options: the task's options.
        name: the member task.

    Returns:
        "train", "validation" and "ood/mmlu_mini" if it is chosen; the last one has a problem, or
        where it is not named is absent, if lm-evaluation-harness is not installed.

    Raises:
        ConfigError: for an unknown out-of-domain set.
    """
    made = Source(generated=f"instruct_mini v{VERSION} seed {options.data_seed}")
    found = {"train": made, "validation": made}
    for ood, named in chosen_ood(options, name, ood_names, TASKS[name].ood).items():
        problem = mmlu.harness_problem(ood)
        if problem and named:
            found[f"ood/{ood}"] = replace(made, problem=problem)
        else:
            found[f"ood/{ood}"] = replace(made, absent=problem)
    return found


def load(options: Task, name: str, cache: Path | None = None) -> TaskData:
    """Generate the records and the questions.

    Args:
        options: the task's options.
        name: the member task.
        cache: `paths.cache`; only what is encoded is kept there.

    Returns:
        The data; the same for the same version and `data_seed`.

    Raises:
        ConfigError: for an unknown out-of-domain set.
    """
    assert isinstance(options, InstructTask)
    found = sources(options, name)
    train, validation = instruct.divided(records(seed=options.data_seed), options)
    ood = {
        key.removeprefix("ood/"): mmlu.to_dataset(
            questions(seed=options.data_seed), options.eval_limit
        )
        if place.available
        else None
        for key, place in found.items()
        if key.startswith("ood/")
    }
    return TaskData(
        spec=TASKS[name],
        train=train,
        validation={"validation": validation},
        ood=ood,
        ood_specs=dict.fromkeys(ood, OODSpec(columns=mmlu.COLUMNS, metrics=("accuracy",))),
    )
