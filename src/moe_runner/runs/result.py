"""What a run found, and its file: `result.json` is written and read here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moe_runner.files import write_json
from moe_runner.metrics import is_known
from moe_runner.runs.objects import StoreError, read_object
from moe_runner.runs.types import mismatch

SCHEMA = 1  # of result.json: raise it, and extend `upgrade`, when the file changes

OF_A_SET = ("primary", "loss", "examples", "majority", "constant")  # beside metrics and routing
Scored = Mapping[str, "Scores | None"]  # by set; None: the set is not available


@dataclass(frozen=True, slots=True)
class Axes:
    """What distinguishes a run, see `Run.axes`."""

    method: str
    model: str
    tuning: str
    protocol: str
    suite: str
    task: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model scores on one set.

    Args:
        metrics: by name, those of parts ("accuracy/anatomy") among them; fractions, but for those
            of `metrics.RAW`.
        primary: the one number.
        loss: of the task, mean over the examples.
        examples: of the set.
        routing: figures of the routers by name, "routing/entropy"; empty for a dense model.
        majority: the primary number of who always answers with the set's most frequent class (of
            scores: their mean); None: not recorded, or there is no such answer.
        constant: whether all answers of the model are one; None: not recorded.
    """

    metrics: Mapping[str, float]
    primary: float
    loss: float
    examples: int
    routing: Mapping[str, float]
    majority: float | None = None
    constant: bool | None = None

    def figures(self) -> dict[str, float]:
        """List all figures by name, as files and trackers have them."""
        own = {"primary": self.primary, "loss": self.loss, "examples": self.examples}
        return {**self.metrics, **own, **self.routing}

    def facts(self) -> dict[str, float | bool]:
        """List what files have beside the figures, as far as it is known."""
        known = {"majority": self.majority, "constant": self.constant}
        return {name: value for name, value in known.items() if value is not None}


class Accuracy(NamedTuple):
    """Accuracy on both splits of a domain, fractions.

    Args:
        in_split: the larger one, trained on unless the domain is held out; "in" in files.
        out_split: the smaller one; "out" in files.
    """

    in_split: float
    out_split: float


class Checkpoint(NamedTuple):
    """One evaluation during training.

    Args:
        step: updates done.
        epoch: epochs done.
        loss: on the set that selects.
        primary: on the same.
        domains: accuracy by domain; empty where no domains are held out.
    """

    step: int
    epoch: float
    loss: float
    primary: float
    domains: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters.

    Args:
        dense: of the backbone, before the conversion.
        total: of the converted model, without LoRA.
        active_per_token: of these, what takes part in one token.
        lora: of LoRA.
        trainable: of all, what trains.
    """

    dense: int
    total: int
    active_per_token: int
    lora: int
    trainable: int


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of a token's forward pass, before and after the conversion."""

    dense: int
    converted: int


@dataclass(frozen=True, slots=True)
class Clusters:
    """Inertia of the experts' neurons, and of random groups; means over the layers."""

    inertia: float
    random_inertia: float


@dataclass(frozen=True, slots=True)
class Speed:
    """What the last attempt trained on, by its time; evaluations left out, padding too.

    Args:
        examples_per_second: of the training set.
        tokens_per_second: without padding.
        data_share_of_time: fraction in which training waited for data; None: not measured.
    """

    examples_per_second: float
    tokens_per_second: float
    data_share_of_time: float | None


@dataclass(frozen=True, slots=True)
class Inference:
    """How fast the tuned model is in use: forward passes in turns with the backbone as it came.

    Args:
        seconds: median of a pass of the tuned model, after `for_inference`.
        dense_seconds: of the backbone, on the same batch.
        tokens: of the batch, padding left out; 0: of images.
        backend: `kernel` if the C++ kernel computed a layer, else `torch`.
    """

    seconds: float
    dense_seconds: float
    tokens: int
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run found.

    Args:
        id: of the run.
        axes: what distinguishes the run, for tables.
        settings: what must be equal for repetitions, by key ("trainer.epochs").
        metrics: names of the task's; the primary number is their mean.
        id_metrics: of the model as selected, by validation set, the one that selects first.
        primary: on the set that selects.
        ood_metrics: by out-of-domain set.
        best_epoch: epochs done at the selected checkpoint.
        selection: how the checkpoint was selected, in words.
        learning_curve: every evaluation, oldest first.
        parameters: their numbers.
        flops_per_token: before and after the conversion.
        converted_layers: "<stack>:<layer>".
        clusters: of an EMoE; None: there are none, or they were not measured.
        routing: figures at the selected checkpoint by name, and "routing/changed": the fraction of
            choices that tuning changed; None for a dense model.
        speed: of training.
        wall_seconds: of the last attempt, all in all.
        resumed_at_update: where it went on; 0: at the start.
        updates: all in all.
        peak_memory_bytes: of the device.
        device: as torch names it.
        threads: of torch; None: not known.
        data: what each split holds, see `Run`.
        skipped: examples left out, by where they were; see `TaskData`.
        weights: what the backbone's files hold, see `Run`.
        before: of the model before tuning, on the set that selects; {}: not evaluated.
        inference: how fast it is in use; None: not measured.
    """

    id: str
    axes: Axes
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    id_metrics: Scored
    primary: float
    ood_metrics: Scored
    best_epoch: float
    selection: str
    learning_curve: tuple[Checkpoint, ...]
    parameters: Parameters
    flops_per_token: Flops
    converted_layers: tuple[str, ...]
    clusters: Clusters | None
    routing: Mapping[str, float | None]
    speed: Speed
    wall_seconds: float
    resumed_at_update: int
    updates: int
    peak_memory_bytes: int
    device: str
    threads: int | None
    data: Mapping[str, str]
    skipped: Mapping[str, int]
    weights: str
    before: Scored = field(default_factory=dict)
    inference: Inference | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the content of result.json."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "axes": asdict(self.axes),
            "settings": dict(self.settings),
            "metrics": list(self.metrics),
            "id_metrics": figures_by_set(self.id_metrics),
            "primary": self.primary,
            "ood_metrics": figures_by_set(self.ood_metrics),
            "best_epoch": self.best_epoch,
            "selection": self.selection,
            "learning_curve": [_point(checkpoint) for checkpoint in self.learning_curve],
            "parameters": asdict(self.parameters),
            "flops_per_token": asdict(self.flops_per_token),
            "converted_layers": list(self.converted_layers),
            "clusters": None if self.clusters is None else asdict(self.clusters),
            "routing": dict(self.routing),
            **asdict(self.speed),
            "wall_seconds": self.wall_seconds,
            "resumed_at_update": self.resumed_at_update,
            "updates": self.updates,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device": self.device,
            "threads": self.threads,
            "data": dict(self.data),
            "skipped": dict(self.skipped),
            "weights": self.weights,
            **self.if_measured(),
        }

    def if_measured(self) -> dict[str, Any]:
        """Give what is in result.json only where it was asked for."""
        found: dict[str, Any] = {"before": figures_by_set(self.before)} if self.before else {}
        return found if self.inference is None else {**found, "inference": asdict(self.inference)}


@dataclass(frozen=True, slots=True)
class PrimaryOnly:
    """What a process beside the leader knows of a result; NaN: nothing."""

    primary: float


def figures_by_set(scored: Scored) -> dict[str, dict[str, Any] | None]:
    """List the figures of each set by name, as files have them."""
    return {
        name: None if found is None else {**found.figures(), **found.facts()}
        for name, found in scored.items()
    }


def write_result(file: Path, result: Result) -> None:
    """Write a result.json.

    Args:
        file: in the folder that has the run's id for its name.
        result: of that run.

    Raises:
        StoreError: if a score is not a number, or the result is another run's.
        TypeError: if `result` holds something JSON has no word for, such as a tensor.
    """
    _check(file, result)
    write_json(file, result.to_json())


def read_result(file: Path) -> Result | None:
    """Read a result.json.

    Args:
        file: in the folder that has the run's id for its name.

    Returns:
        The result; None if there is no file.

    Raises:
        StoreError: if it is not JSON, its schema is none of ours, something is missing in it,
            unknown or of another type, a primary score is not a number, or it is another
            run's: one line, with the remedy.
    """
    tree = read_object(file, _remedy(file))
    if tree is None:
        return None
    if tree.get("schema") != SCHEMA:
        raise StoreError(
            f"{file} has schema={tree.get('schema')}, and this version reads {SCHEMA}; use the "
            f"version of moe-runner that wrote it (see environment.json), or {_remedy(file)}"
        )
    try:
        result = _result(upgrade(tree))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else str(error)
        words = words.replace(".__init__()", "")  # of our dataclasses: "Axes got an unexpected ..."
        raise StoreError(f"{file} is damaged: {words}; {_remedy(file)}") from error
    if (wrong := mismatch(result, Result, "")) is not None:
        raise StoreError(f"{file} is damaged: {wrong}; {_remedy(file)}")
    _check(file, result)
    return result


def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
    """Bring the content of an older result.json into today's form.

    All are of schema 1, to which keys were added. What came later, and what its absence means:

    - `settings`: {}; nothing tells such runs of one system apart. The results of that time (their
      ids are of schema 1, which no command of today means) count LoRA among the parameters and
      the FLOPs, and there was no method that adds parameters.
    - `threads`: None, not known.
    - `clusters`: None, not measured.
    - `skipped`: {}; there were no suites of images, which alone leave files out.
    - `data_share_of_time`: None, not measured.
    - `majority` and `constant` of a set: None, not recorded.

    A checkpoint of the learning curve without `domains` is of a suite that holds none out; `before`
    and `inference` are there only where they were asked for.

    Args:
        tree: with its schema checked; it is not changed.
    """
    later: dict[str, Any] = {"settings": {}, "threads": None, "clusters": None, "skipped": {}}
    tree = {**later, "data_share_of_time": None, **tree}
    counts = tree["parameters"]
    if "lora" not in counts:
        lora = counts["total"] - counts["dense"]
        active = counts["active_per_token"] - lora
        tree["parameters"] = counts | {
            "total": counts["dense"], "active_per_token": active, "lora": lora
        }  # fmt: skip
    return tree


def _result(tree: dict[str, Any]) -> Result:
    """Build a result from the content of a file of today's form, which is used up."""
    del tree["schema"]
    speed = [tree.pop(name) for name in Speed.__slots__]
    clusters, inference = tree["clusters"], tree.get("inference")
    tree |= {
        "axes": Axes(**tree["axes"]),
        "metrics": tuple(tree["metrics"]),
        "id_metrics": _scored(tree["id_metrics"]),
        "ood_metrics": _scored(tree["ood_metrics"]),
        "learning_curve": tuple([checkpoint_of(p) for p in tree["learning_curve"]]),
        "parameters": Parameters(**tree["parameters"]),
        "flops_per_token": Flops(**tree["flops_per_token"]),
        "converted_layers": tuple(tree["converted_layers"]),
        "clusters": None if clusters is None else Clusters(**clusters),
        "speed": Speed(*speed),
        "before": _scored(tree.get("before", {})),
        "inference": None if inference is None else Inference(**inference),
    }
    return Result(**tree)


def _scored(tree: dict[str, dict[str, Any] | None]) -> dict[str, Scores | None]:
    return {name: None if figures is None else _scores(figures) for name, figures in tree.items()}


def _scores(figures: Mapping[str, Any]) -> Scores:
    """Sort the figures of a set, see `Scores.figures`."""
    metrics, routing = {}, {}
    for name, value in figures.items():
        if name.startswith("routing/"):
            routing[name] = value
        elif name not in OF_A_SET:
            metrics[name] = value
    return Scores(
        metrics, figures["primary"], figures["loss"], int(figures["examples"]), routing,
        figures.get("majority"), figures.get("constant"),
    )  # fmt: skip


def checkpoint_of(line: Mapping[str, Any]) -> Checkpoint:
    """Pick what a learning curve keeps of a line of metrics.jsonl.

    Raises:
        KeyError: if it is not there.
    """
    domains: dict[str, Accuracy] = {}
    if "domains" in line:
        domains = {d: Accuracy(a["in"], a["out"]) for d, a in line["domains"].items()}
    return Checkpoint(line["step"], line["epoch"], line["loss"], line["primary"], domains)


def _point(checkpoint: Checkpoint) -> dict[str, Any]:
    point = checkpoint._asdict()
    domains = point.pop("domains")
    if domains:
        point["domains"] = {d: {"in": a.in_split, "out": a.out_split} for d, a in domains.items()}
    return point


def _check(file: Path, result: Result) -> None:
    """Refuse what tables would show wrongly.

    Raises:
        StoreError: see `read_result`.
    """
    if result.id != file.parts[-2]:
        raise StoreError(f"{file} is the result of the run {result.id}; {_remedy(file)}")
    before = {f"{name} before tuning": scores for name, scores in result.before.items()}
    sets = {**result.id_metrics, **result.ood_metrics, **before}
    names = list(result.metrics)
    primaries = {"primary": result.primary}
    for name, scores in sets.items():
        if scores is not None:
            primaries[f"{name}/primary"] = scores.primary
            names += scores.metrics
    for name, primary in primaries.items():
        if type(primary) not in (float, int) or math.isnan(primary):
            raise StoreError(f"{file} has {name}={primary}, which is no number; {_remedy(file)}")
    for name in names:
        if not is_known(name):
            raise StoreError(
                f"{file} has the metric {name}, which is not known to this version of moe-runner; "
                f"use the one that wrote it (see environment.json), or {_remedy(file)}"
            )


def _remedy(file: Path) -> str:
    return f"delete it and run {file.parts[-2]} again"
