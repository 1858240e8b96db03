"""The suite `squad_mini`: synthetic texts and questions about them, generated; no files."""

from moe_runner.options.task import GenerationTask
from moe_runner.tasks.generation_mini import ABOUT, RECIPE, GeneratedTexts
from moe_runner.tasks.mini import texts
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import squad

SUITE: Suite[GenerationTask] = GeneratedTexts(
    squad.questions("squad_mini", ABOUT, RECIPE), texts.questions, answers="answers"
)
