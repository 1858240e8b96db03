"""The out-of-domain partners of the GLUE tasks: which sets, where they are, how they are scored.

Source: GLUE-X (Yang et al. 2023) as EMoE uses it; PROTOCOL.md, "OOD map". Scored as in EMoE's code:
plain accuracy, and Pearson and Spearman for STS-B. No set is sub-sampled (see task.eval_limit).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_runner.options.task import Task
from moe_runner.tasks.places import HubSplit, Source, find_parquet, hub_source
from moe_runner.tasks.specs import OODSpec

ACCURACY = ("accuracy",)
CORRELATION = ("pearson", "spearman")
SINGLE = ("sentence",)
PAIR = ("sentence1", "sentence2")
NLI = ("premise", "hypothesis")


@dataclass(frozen=True, kw_only=True)
class Partner:
    """One out-of-domain set; its labels have the encoding of the in-domain task."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ACCURACY
    other_columns: tuple[str, ...] | None = None  # names that the columns may have instead
    glue: tuple[str, str] | None = None  # it is this split of this GLUE task
    hub: HubSplit | None = None  # has the same label encoding in all four cases

    @property
    def spec(self) -> OODSpec:
        """What the evaluation needs to know."""
        return OODSpec(columns=self.columns, metrics=self.metrics)


def _on_hub(hub_id: str, config: str, *columns: str) -> Partner:
    return Partner(
        columns=PAIR if len(columns) == 2 else SINGLE,
        other_columns=columns,
        hub=HubSplit(hub_id=hub_id, config=config, split="test"),
    )


PARTNERS: Mapping[str, Partner] = {
    "cola_ood": Partner(columns=SINGLE),  # GLUE-X's "Grammar test": accuracy in EMoE, not Matthews
    "blimp": Partner(columns=SINGLE),
    "imdb": _on_hub("stanfordnlp/imdb", "plain_text", "text"),
    "yelp": _on_hub("fancyzhx/yelp_polarity", "plain_text", "text"),
    "amazon": _on_hub("fancyzhx/amazon_polarity", "amazon_polarity", "content"),  # without title
    "flipkart": Partner(columns=SINGLE),
    "mrpc": Partner(columns=PAIR, glue=("mrpc", "validation")),
    "qqp": Partner(columns=("question1", "question2"), glue=("qqp", "validation")),
    "twitter_pit2015": Partner(columns=PAIR),
    "twitter_url": Partner(columns=PAIR),
    "sick_sts": Partner(columns=PAIR, metrics=CORRELATION),
    "snli": _on_hub("stanfordnlp/snli", "plain_text", *NLI),
    "sick_nli": Partner(columns=PAIR, other_columns=NLI),
    "mismatched": Partner(columns=NLI, glue=("mnli", "validation_mismatched")),
    "newsqa": Partner(columns=PAIR, other_columns=("question", "sentence")),
    "trecqa": Partner(columns=PAIR, other_columns=("question", "sentence")),
    # These have RTE's two classes: 0 entailment, 1 not_entailment (SciTail's neutral).
    "hans": Partner(columns=PAIR, other_columns=NLI),
    "scitail": Partner(columns=PAIR, other_columns=NLI),
    "advglue_sst2": Partner(columns=SINGLE),
    "advglue_qqp": Partner(columns=PAIR),
    "advglue_mnli": Partner(columns=PAIR),
    "advglue_mnli_mm": Partner(columns=PAIR),
    "advglue_qnli": Partner(columns=PAIR),
}

PAPER: Mapping[str, tuple[str, ...]] = {  # task -> sets, what `task.ood=[all]` means
    "cola": ("cola_ood",),
    "sst2": ("imdb", "yelp", "amazon", "flipkart"),
    "mrpc": ("qqp", "twitter_pit2015", "twitter_url"),
    "stsb": ("sick_sts",),
    "qqp": ("mrpc", "twitter_pit2015", "twitter_url"),
    "mnli": ("snli", "sick_nli", "mismatched"),
    "qnli": ("newsqa",),
    "rte": ("hans", "scitail"),
}

TWITTER = ("twitter_pit2015", "twitter_url")

MORE: Mapping[str, tuple[str, ...]] = {  # not in the paper; AdvGLUE is not disjoint from GLUE's dev
    "cola": ("blimp",),
    "sst2": ("advglue_sst2",),
    "qqp": ("advglue_qqp",),
    "mnli": ("advglue_mnli", "advglue_mnli_mm"),
    "qnli": ("trecqa", "advglue_qnli"),  # TrecQA stands in for NewsQA
}


def ood_names(task_name: str) -> tuple[str, ...]:
    """List the sets that a task can be evaluated on, the paper's first."""
    return PAPER[task_name] + MORE.get(task_name, ())


def ranked_as(task: str, name: str) -> str | None:
    """Say under which name a set counts in a mean rank over out-of-domain sets.

    The paper's ranks are over 13 test sets, 15 pairs of a task and a set. Twitter, one set there,
    is two here (its two sources), which count once. MNLI-mismatched, of the domains of GLUE and
    only logged by EMoE's code, is none of the 13 or 15 (it would be the 16th pair).

    Args:
        task: its name, perhaps among other words: "bert_large mnli", "glue/mnli".
        name: of the set, of an average over tasks "mnli > mismatched"; of any suite.

    Returns:
        The name; None: it is not ranked.

    Source: PROTOCOL.md, "OOD map".
    """
    before, arrow, last = name.rpartition(" > ")
    words = re.split("[ /]", before or task)
    if last == "mismatched" and "mnli" in words:
        return None
    return f"{before}{arrow}twitter" if last in TWITTER else name


def source(options: Task, name: str) -> Source:
    """Say where a set is: in `task.ood_dir`, else on the Hub if it has a public id.

    Args:
        options: `ood_dir` is read.
        name: of a set that is no split of GLUE.

    Returns:
        The source; with a problem if it can't be had.
    """
    place = PARTNERS[name].hub
    if options.ood_dir is not None:
        folder = Path(options.ood_dir).expanduser()
        single = folder / f"{name}.parquet"
        files = find_parquet(folder / name, "test") or ((single,) if single.is_file() else ())
        if files:
            return Source(files=files, original=place)
        looked_for = f"{name}/test.parquet, {name}/test-*-of-*.parquet or {name}.parquet"
        remedy = f"put {looked_for} into task.ood_dir={options.ood_dir}"
    else:
        remedy = f"use task.ood_dir=<folder> with {name}/test.parquet"
    if place is not None:
        return hub_source(place, remedy)
    return Source(problem=f"task.ood=[{name}] is not there and has no public Hub id; {remedy}")
