"""Carry out one run: load, convert, tune, evaluate in and out of domain."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import torch
import transformers
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerState

from moe_runner import tasks
from moe_runner.backbones.loading import Backbone
from moe_runner.backbones.lora import merge_lora
from moe_runner.backbones.weights import find_weights
from moe_runner.conversion.convert import convert, merge
from moe_runner.conversion.counts import count_parameters, lora_parameters
from moe_runner.conversion.record import Conversion
from moe_runner.conversion.saving import save_pretrained
from moe_runner.conversion.standard import check_standard, to_standard
from moe_runner.files import writing_tensors
from moe_runner.methods.dense.options import Dense
from moe_runner.metrics import lower_is_better
from moe_runner.moe.layer import for_inference
from moe_runner.options.settings import Logger
from moe_runner.options.training import Trainer
from moe_runner.runs import processes, stopping
from moe_runner.runs.result import (
    Axes,
    Clusters,
    Flops,
    Parameters,
    PrimaryOnly,
    Result,
    Scores,
    Speed,
    checkpoint_of,
)
from moe_runner.runs.run import Run
from moe_runner.runs.store import RunFolder
from moe_runner.tasks.specs import OODSpec, TaskData
from moe_runner.training import checkpoint
from moe_runner.training.callbacks import EvaluateAtEnd, SaveAndStop, SaveEvery, ShowProgress
from moe_runner.training.device import (
    check_kernel,
    check_measuring,
    check_precision,
    peak_memory,
    prepare,
)
from moe_runner.training.forms import FORMS, Form
from moe_runner.training.forms.base import Collator
from moe_runner.training.routing import (
    changed,
    choices,
    compare_norms,
    count_load,
    sum_norms,
    summarise,
)
from moe_runner.training.timing import time_inference
from moe_runner.training.tracking import tracker
from moe_runner.training.trainer import RunTrainer, training_arguments
from moe_runner.training.tuning import apply_tuning

log = logging.getLogger(__name__)

PROBE_EXAMPLES = 128  # of the validation set, to see which choices of experts change


@dataclass(frozen=True)
class Resources:
    """What a run may use; nothing here changes a number (on one device)."""

    device: torch.device
    threads: int | None
    cluster_cache: Path
    logger: Logger
    keep_model: bool
    export: str = "none"  # or dense, moe, hf: the form of the Hugging Face folder to write
    quiet: bool = False  # no progress bar
    data_cache: Path | None = None  # paths.cache: read and encoded data; None: made anew, in memory


@dataclass
class Prepared:
    """A model that is ready to train or to load trained weights, and its data."""

    form: Form
    conversion: Conversion
    data: TaskData
    lr_scales: dict[str, float]
    data_cache: Path | None

    def encode(self, dataset: Dataset, columns: tuple[str, ...]) -> Dataset:
        """Turn examples into what the model takes, once for all runs; see `Form`."""
        return self.form.encode(dataset, columns, self.data_cache)

    @property
    def backbone(self) -> Backbone:
        """The model with its processor."""
        return self.form.backbone


def build(run: Run, resources: Resources) -> Prepared:
    """Seed, load the data and the backbone, convert, add LoRA, set what trains: in this order."""
    check_precision(run.trainer, resources.device)
    check_measuring(run.trainer)
    check_kernel(run.method, run.trainer, resources.device)
    silence_libraries()
    prepare(run.seed, resources.threads)
    data = tasks.load(run.task, run.task_name, resources.data_cache)
    data = data.for_run(run.seed)
    form = load_form(run, data)
    backbone = form.backbone
    # LoRA2EMoE trains the dense model
    method = Dense() if run.method.converted_at == "eval" else run.method.seeded(run.seed)
    conversion = convert(
        backbone.model, method, protocol=run.protocol, cache=resources.cluster_cache
    )
    lr_scales = apply_tuning(
        backbone.model,
        run.tuning,
        run.model.lora_targets,
        head=backbone.head,
        conversion=conversion,
        protocol=run.protocol,
        method=run.method,
    )
    backbone.model.to(resources.device)
    if run.trainer.inference == "kernel":
        for_inference(backbone.model)
    for line in conversion.report(backbone.model).splitlines():
        log.info("  %s", line)
    return Prepared(form, conversion, data, lr_scales, resources.data_cache)


def load_form(run: Run, data: TaskData) -> Form:
    """Load the backbone as it is before any conversion, with what the task adds."""
    weights = find_weights(run.model)
    with weights.fetching():
        return FORMS[run.form](run, data, weights)


def take_final_form(ready: Prepared, run: Run, resources: Resources) -> None:
    """Give the tuned model the form that is evaluated.

    EMoE2LoRA (`convert_at=train`) is merged after tuning, LoRA2EMoE (`convert_at=eval`) converted.
    """
    model = ready.backbone.model
    if run.method.converted_at == "both":
        return
    merge(model)
    method = run.method.seeded(run.seed) if run.method.converted_at == "eval" else Dense()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    ready.conversion = convert(model, method, protocol=run.protocol, cache=resources.cluster_cache)
    if run.trainer.inference == "kernel":
        for_inference(model)
    ready.lr_scales = {name: ready.lr_scales.get(name, 1.0) for name in trains}


def carry_out(run: Run, folder: RunFolder, resources: Resources) -> Result | PrimaryOnly:
    """Train from the newest checkpoint or from the start, evaluate at the best epoch.

    Args:
        run: what to do.
        folder: claimed by this process; of several, by the leader.
        resources: where.

    Returns:
        The result; of the processes beside the leader only its primary score.

    Raises:
        ConfigError: if the device cannot do what was asked for, or the converted model cannot be
            exported as that.
        FloatingPointError: if the loss is not finite.
    """
    started = time.monotonic()
    ready = build(run, resources)
    if resources.export == "hf":
        check_standard(ready.backbone.model)  # now: training takes hours
    form, model, data = ready.form, ready.backbone.model, ready.data
    spec = data.spec
    train = ready.encode(data.train, spec.columns)
    validation = {
        split: None if dataset is None else ready.encode(dataset, spec.columns)
        for split, dataset in data.validation.items()
    }
    selecting = validation[spec.validation[0]]
    assert selecting is not None  # its absence is a problem of the plan
    probe = list(probe_batches(selecting, form.collator, run, resources.device))
    before = choices(model, probe, run.trainer.precision)

    progress = ShowProgress(run.label, spec.metrics, quiet=resources.quiet)
    newest = checkpoint.newest_checkpoint(folder.checkpoint)
    resumed_at = newest[1] if newest else 0
    processes.wait()  # until all have looked for it
    if processes.is_leader():
        folder.truncate_metrics(lambda line: newest is not None and line["step"] <= resumed_at)
        warn_of_rest(run, len(train))
    if newest:
        log.info("  going on from update %d", resumed_at)
    with tracker(run, folder, resources.logger) as copy, closing(progress):
        trainer = make_trainer(run, folder, resources, ready, train, selecting, progress)
        trainer.tracker = copy
        untuned: dict[str, Scores | None] = {}
        if run.trainer.evaluate_first:
            with torch.random.fork_rng(devices=[]):  # training is as without it
                untuned[spec.validation[0]] = predict(trainer, selecting, spec.metrics)
        training_started = time.monotonic()
        try:
            if newest and checkpoint.training_ended(newest[0]):
                trainer.state = TrainerState.load_from_json(str(newest[0] / checkpoint.STATE))
            else:
                with stopping.deferred():
                    trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
        finally:
            progress.close()
        training_seconds = time.monotonic() - training_started - trainer.evaluation_seconds
        share = trainer.data_seconds / training_seconds
        log.info("  %.1f%% of the training time went into waiting for data", 100 * share)
        copy.trained(trainer)
        best_step = trainer.load_best()
        if resources.keep_model:
            checkpoint.save_trained(model, folder.best)
        take_final_form(ready, run, resources)
        results = {
            split: None if dataset is None else predict(trainer, dataset, spec.metrics)
            for split, dataset in validation.items()
        }
        ood = evaluate_ood(trainer, ready, run)
        copy.finished({**results, **ood})
    reported = results[spec.validation[0]]
    assert reported is not None
    changes = changed(before, choices(model, probe, run.trainer.precision))  # by all processes
    if not processes.is_leader():
        return PrimaryOnly(reported.primary)
    curve = [line for line in folder.metrics() if line["split"] == "eval"]
    (best,) = (line for line in curve if line["step"] == best_step)
    counts = parameters(ready)  # before LoRA is merged away
    wall_seconds, peak = time.monotonic() - started, peak_memory(resources.device)
    inference = None
    if run.trainer.time_inference:
        trainer.optimizer = None  # room for the dense model
        dense = load_form(run, data).backbone.model.to(resources.device)
        inference = time_inference(model, dense, probe[0])
    if resources.export != "none":
        export(ready, folder, resources.export)
    return Result(
        id=run.id,
        axes=Axes(**run.axes()),
        settings=run.settings(),
        metrics=spec.metrics,
        id_metrics=results,
        primary=reported.primary,
        ood_metrics=ood,
        best_epoch=best["epoch"],
        selection=f"best epoch on {spec.validation[0]}, the set that is reported",
        learning_curve=tuple(checkpoint_of(line) for line in curve),
        parameters=counts,
        flops_per_token=Flops(ready.conversion.dense_flops, ready.conversion.flops),
        converted_layers=tuple(f"{s.stack}:{s.layer}" for s in ready.conversion.sites),
        clusters=clusters(ready.conversion),
        routing={
            **{key: value for key, value in best.items() if key.startswith("routing/")},
            "routing/changed": changes,
        },
        speed=speed(trainer, run, resumed_at, training_seconds),
        wall_seconds=wall_seconds,
        resumed_at_update=resumed_at,
        updates=trainer.state.global_step,
        peak_memory_bytes=peak,
        device=str(resources.device),
        threads=torch.get_num_threads(),
        data=dict(run.data),
        skipped=data.skipped,
        weights=run.weights,
        before=untuned,
        inference=inference,
    )


def warn_of_rest(run: Run, examples: int) -> None:
    """Tell that with several processes the last update of an epoch differs from one process's.

    accelerate fills it up with examples of the epoch's start; one process makes a smaller update.
    """
    size = run.trainer.batch_size
    assert size is not None  # resolved
    if processes.world_size() > 1 and examples % size:
        log.warning(
            "  trainer.batch_size=%d does not divide the %d training examples: with several "
            "processes the last update of an epoch is filled up, and figures differ from those of "
            "one process",
            size,
            examples,
        )


def export(ready: Prepared, folder: RunFolder, form: str) -> None:
    """Write the tuned model and its tokenizer as a Hugging Face folder; LoRA is merged.

    Args:
        ready: the model at its best epoch, which is changed by this.
        folder: of the run; the model goes to `model/`.
        form: `dense`, `moe`, or `hf`: a mixture of transformers.
    """
    model = ready.backbone.model
    merge_lora(model)
    with writing_tensors(folder.export):
        if form == "moe":
            save_pretrained(model, folder.export)
        elif form == "hf":
            to_standard(model).save_pretrained(folder.export)
        else:
            if ready.conversion.method.converts:
                merge(model)
            model.save_pretrained(folder.export)
    ready.backbone.processor.save_pretrained(folder.export)
    log.info("  exported (%s): %s", form, folder.export)


def parameters(ready: Prepared) -> Parameters:
    """Count parameters, before and after the conversion; LoRA apart."""
    conversion, model = ready.conversion, ready.backbone.model
    return Parameters(
        dense=conversion.dense_parameters,
        total=conversion.parameters,
        active_per_token=conversion.active_parameters,
        lora=lora_parameters(model),
        trainable=count_parameters(model, trainable=True),
    )


def clusters(conversion: Conversion) -> Clusters | None:
    """Report how alike the neurons of an expert are, beside random groups; None: no clusters."""
    return None if conversion.inertia is None else Clusters(*conversion.inertia)


def speed(trainer: RunTrainer, run: Run, resumed_at: int, seconds: float) -> Speed:
    """Divide what this attempt trained on by its time, evaluations left out, padding too."""
    steps = trainer.state.global_step
    updates = steps - resumed_at
    tokens = trainer.tokens_seen() * updates / max(steps, 1)
    assert run.trainer.batch_size is not None  # resolved
    return Speed(
        examples_per_second=updates * run.trainer.batch_size / seconds,
        tokens_per_second=tokens / seconds,
        data_share_of_time=trainer.data_seconds / seconds,
    )


def start_plain_processes() -> None:
    """Let data loaders start their workers in a process of joblib, whose own kind refuses them."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)


def make_trainer(
    run: Run,
    folder: RunFolder,
    resources: Resources,
    ready: Prepared,
    train: Dataset,
    validation: Dataset,
    progress: ShowProgress,
) -> RunTrainer:
    """Make the Trainer of a run."""
    options, device = run.trainer, resources.device
    assert options.batch_size is not None  # resolved
    if options.workers:
        start_plain_processes()
    callbacks: list[Any] = [progress]
    if options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    if options.eval_steps is not None:
        callbacks.append(EvaluateAtEnd())
    every = "epoch" if options.eval_steps is None else "steps"
    if options.save_steps is not None:
        callbacks.append(SaveEvery(options.save_steps, options.eval_steps))
    callbacks.append(SaveAndStop(options.eval_steps))
    own = {"include_num_input_tokens_seen": "non_padding", **ready.form.arguments()}
    arguments = training_arguments(
        lower_is_better=lower_is_better(ready.data.spec.metrics),
        eval_strategy=every,
        save_strategy=every,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps or 500,  # unused where there is one per epoch
        output_dir=str(folder.checkpoint.resolve()),
        per_device_train_batch_size=options.batch_size
        // (options.accumulate * processes.world_size()),
        gradient_accumulation_steps=options.accumulate,
        per_device_eval_batch_size=options.eval_batch_size,
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        weight_decay=options.weight_decay,
        lr_scheduler_type=schedule_of(options),
        warmup_steps=options.warmup_ratio,  # below 1: a fraction of the updates
        activation_checkpointing=options.gradient_checkpointing,
        # recomputed with gradients, as routers and frozen embeddings (LoRA) need it
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_grad_norm=options.max_grad_norm,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        train_sampling_strategy="group_by_length" if options.length_grouping else "random",
        seed=run.seed,
        data_seed=run.seed,
        full_determinism=options.deterministic and device.type == "cuda",
        use_cpu=device.type == "cpu",
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=device.type == "cuda",
        report_to=["wandb"] if resources.logger.name == "wandb" and processes.is_leader() else [],
        run_name=run.label,
        **own,
    )
    return ready.form.trainer(
        folder=folder,
        metric_names=ready.data.spec.metrics,
        lr_scales=ready.lr_scales,
        model=ready.backbone.model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=ready.form.collator,
        callbacks=callbacks,
    )


def schedule_of(options: Trainer) -> str:
    """Name the schedule as transformers does, whose `constant` has no warm-up."""
    warms_up = options.schedule == "constant" and options.warmup_ratio
    return "constant_with_warmup" if warms_up else str(options.schedule)


def evaluate_ood(trainer: RunTrainer, ready: Prepared, run: Run) -> dict[str, Scores | None]:
    """Evaluate the model as it is on every out-of-domain set; None: not available."""
    results: dict[str, Scores | None] = {}
    for name, dataset in ready.data.ood.items():
        if dataset is None:
            results[name] = None
            continue
        spec: OODSpec = ready.data.ood_specs[name]
        encoded = ready.encode(dataset, spec.columns)
        results[name] = predict(trainer, encoded, spec.metrics)
    return results


def predict(trainer: RunTrainer, dataset: Dataset, names: tuple[str, ...]) -> Scores:
    """Compute metrics and routing figures on a data set."""
    trainer.metric_names = names
    with count_load(trainer.model) as loads, sum_norms(trainer.model) as norms:
        output = trainer.predict(dataset, metric_key_prefix="")
    found = output.metrics
    majority, constant = trainer.plain_facts(output)
    own = {name: float(found[f"_{name}"]) for name in names}
    parts = {key[1:]: float(value) for key, value in found.items() if "/" in key}
    return Scores(
        metrics={**own, **parts},
        primary=float(found["_primary"]),
        loss=float(found["_loss"]),
        examples=int(found.get("_examples", len(dataset))),
        routing={**summarise(loads), **compare_norms(norms)},
        majority=majority,
        constant=constant,
    )


def probe_batches(
    dataset: Dataset, collator: Collator, run: Run, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Collate the first examples of a data set."""
    size = run.trainer.eval_batch_size
    assert size is not None  # resolved
    rows = [dataset[i] for i in range(min(PROBE_EXAMPLES, len(dataset)))]
    for start in range(0, len(rows), size):
        batch = collator(rows[start : start + size])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def silence_libraries() -> None:
    """Leave the terminal to us: no bars, no reports of new heads, no warning of theirs twice."""
    datasets.utils.logging.disable_propagation()
    huggingface_hub.logging.disable_propagation()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
