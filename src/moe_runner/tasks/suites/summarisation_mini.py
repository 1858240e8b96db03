"""The suite `summarisation_mini`: synthetic texts and their summaries, generated; no files."""

from moe_runner.options.task import GenerationTask
from moe_runner.tasks.generation_mini import ABOUT, RECIPE, GeneratedTexts
from moe_runner.tasks.mini import texts
from moe_runner.tasks.suite import Suite
from moe_runner.tasks.suites import summarisation

SUITE: Suite[GenerationTask] = GeneratedTexts(
    summarisation.summaries("summarisation_mini", ABOUT, RECIPE), texts.summaries, answers="summary"
)
