"""The suite `instruct_mini`: generated instructions, and multiple-choice questions like MMLU's.

Synthetic; made by a seeded grammar, no files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_runner.options.task import InstructTask
from moe_runner.options.training import Recipe
from moe_runner.tasks import mmlu
from moe_runner.tasks.instructions import assemble
from moe_runner.tasks.mini.instruct import VERSION, questions, records
from moe_runner.tasks.places import Source, chosen_ood, ood_part, optional
from moe_runner.tasks.specs import GENERATED, TaskData, TaskSpec
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import instruct

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


class InstructionsMini(Suite[InstructTask]):
    """Generated records and questions."""

    options = InstructTask
    specs = TASKS

    def sources(self, options: InstructTask, name: str) -> dict[str, Source]:
        """See `Suite`; the questions need lm-evaluation-harness."""
        made = Source(generated=f"instruct_mini v{VERSION} seed {options.data_seed}")
        found = {"train": made, "validation": made}
        for ood, named in chosen_ood(options, name, ood_names, TASKS[name].ood).items():
            place = replace(made, problem=mmlu.harness_problem(ood))
            found[f"ood/{ood}"] = place if named else optional(place)
        return found

    def load(self, options: InstructTask, name: str, cache: Path | None = None) -> TaskData:
        """See `Suite`; the data are the same for the same version and `data_seed`."""
        found = self.sources(options, name)
        ood = {
            ood: mmlu.to_dataset(questions(seed=options.data_seed), options.eval_limit)
            if place.available
            else None
            for ood, place in ood_part(found).items()
        }
        made = records(seed=options.data_seed)
        return assemble(TASKS[name], made, ood, options)


SUITE: Suite[InstructTask] = InstructionsMini()
