"""Values that options cannot have: of every option by its type, and those that contradict."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from moe_runner.options.fields import Range
from moe_runner.options.settings import GROUPS, KIND, Paths, Settings, options_class
from moe_runner.tasks import SUITES
from tests.torture.bad.case import Case

# What a type cannot be. Written down by hand, not taken from the code that reads options.
WRONG: dict[Any, tuple[str, ...]] = {
    int: ("x", "1.5", "true", "[1]", "{a:1}"),
    float: ("x", "true", "[1]", "nan", "inf"),
    bool: ("2", "x", "[true]"),
    str: ("[1]", "{a:1}", "true"),
    tuple: ("{a:1}", "5"),
    Mapping: ("[1]", "x"),
    Literal: ("nope", "[1]", "true"),
}
OUTSIDE = ("-1", "0", "5000000000", "1.5")  # tried against the ranges of an option
TASKS = {"language_modelling": "wikitext_mini", "summarisation": "xsum"}  # suites' option files


def cases() -> list[Case]:
    """List the cases."""
    return [*generated(), *by_hand()]


def generated() -> Iterator[Case]:
    """Give every option two or three values that it cannot have."""
    seen = set()
    for chosen, where, cls in sections():
        hints = get_type_hints(cls, include_extras=True)
        for number, field in enumerate(fields(cls)):
            key = f"{where}{field.name}"
            hidden = field.name in (*GROUPS, "paths", "name", "suite")
            if hidden or key in seen or key in ("evaluate", "hydra"):
                continue
            seen.add(key)
            wrong = [*outside(hints[field.name]), *rotated(bad_values(hints[field.name]), number)]
            for value in wrong[:3]:
                yield Case(f"{key}={value}", (*chosen, f"{key}={value}"), (f"{key}=",))


def sections() -> Iterator[tuple[tuple[str, ...], str, type]]:
    """List the groups of options: what chooses one, the start of its keys, its dataclass."""
    yield (), "", Settings
    yield (), "paths.", Paths
    for group, found in GROUPS.items():
        if group == "method":
            for name in found:
                yield (f"method={name}",), "method.", options_class("method", name)  # type: ignore[misc]
        elif group == "task":
            for name in SUITES:
                yield (f"task={TASKS.get(name, name)}",), "task.", options_class("task", name)  # type: ignore[misc]
        else:
            yield (), f"{group}.", found
    assert set(KIND) == {"method", "task"}


def bad_values(hint: Any) -> list[str]:
    """List values that a type cannot be; of a union, what none of its types can be."""
    origin = get_origin(hint)
    if origin is Annotated:
        return bad_values(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        lists = [bad_values(each) for each in get_args(hint) if each is not type(None)]
        return [value for value in lists[0] if all(value in other for other in lists[1:])]
    return list(WRONG[origin or hint])


def outside(hint: Any) -> list[str]:
    """List numbers outside the ranges of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        return [value for each in get_args(hint) for value in outside(each)]
    if get_origin(hint) is not Annotated:
        return []
    kind, *ranges = get_args(hint)
    return [
        value
        for value in OUTSIDE
        if not (kind is int and "." in value)
        and any(isinstance(each, Range) and not each.holds(float(value)) for each in ranges)
    ]


def rotated(values: list[str], number: int) -> list[str]:
    """Begin at another value for every option."""
    start = number % max(1, len(values))
    return values[start:] + values[:start]


def by_hand() -> list[Case]:
    """List what only a person knows to be wrong."""
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("method=nope", ("method=nope", "did you mean")),
        ("method=Emoe", ("method=Emoe", "emoe")),
        ("model=gpt3", ("model=gpt3",)),
        ("task=glu", ("task=glu", "glue")),
        ("task=glue_mini/nope", ("glue_mini/nope",)),
        ("tuning=lorra", ("tuning=lorra", "lora")),
        ("protocol=papers", ("protocol=papers",)),
        ("search=all", ("search=all",)),
        ("study=nope", ("study=nope", "use one of")),
        ("study=null", ("study=null",)),
        ("logger=tensorboard", ("logger=tensorboard",)),
        ("learning_rate=1e-3", ("learning_rate=1e-3", "trainer.learning_rate")),
        ("lr=1e-3", ("lr=1e-3",)),
        ("method.experts=8", ("method.experts=8", "method.num_experts")),
        ("method.num_expert=8", ("method.num_expert=8", "method.num_experts")),
        ("trainer.epoch=1", ("trainer.epoch=1", "trainer.epochs")),
        ("epochs", ("epochs",)),
        ("--epochs=1", ("--epochs",)),
        ("method.top_k=65", ("method.top_k=65",)),
        ("method.num_experts=7", ("num_experts=7", "512")),
        ("method.num_experts=1024", ("num_experts=1024",)),
        ("method.layers=[9]", ("method.layers",)),
        ("method.layers=[-1]", ("method.layers",)),
        ("method.layers=last0", ("method.layers=last0",)),
        ("method.layers=every", ("method.layers=every",)),
        ("model.num_layers=40", ("model.num_layers=40",)),
        ("model.d_model=64", ("model.d_model", "contradicts")),
        ("model.d_ff=64", ("model.d_ff", "contradicts")),
        ("model.family=gpt2", ("gpt2", "bert")),
        ("model.family=nope", ("nope",)),
        ("model.path=HERE/nowhere", ("HERE/nowhere",)),
        ("model.package=nope_package", ("nope_package",)),
        ("model.package=../x", ("../x",)),
        ("task.members=[nope]", ("nope",)),
        ("task.members=[rte,rte]", ("rte twice",)),
        ("task.members=[]", ("task.members",)),
        ("task.ood=[nope]", ("nope",)),
        ("task.max_length=1", ("task.max_length=1",)),
        ("task.max_length=100000", ("100000",)),
        ("task.data_dir=HERE/nowhere", ("HERE/nowhere",)),
        ("task.train_fraction=2", ("task.train_fraction=2",)),
        ("search.seeds=[0,0]", ("0 twice",)),
        ("search.seeds=[-1]", ("search.seeds",)),
        ("trainer.batch_size=7 trainer.accumulate=2", ("7", "accumulate")),
        ("trainer.precision=fp8", ("fp8",)),
        ("trainer.schedule=step", ("step",)),
        ("trainer.learning_rate=1e400", ("trainer.learning_rate",)),
        ("device=tpu", ("device=tpu",)),
        ("device=cuda", ("cuda",)),
        ("device=cuda:9", ("cuda",)),
        ("threads=0", ("threads=0",)),
        ("seed=4294967296", ("seed=4294967296",)),
        ("export=onnx", ("export=onnx",)),
        ("keep_model=all", ("keep_model=all",)),
        ("method=dense export=moe", ("export=moe",)),
        ("export=hf", ("export=hf",)),
        ("evaluate=", ("is not a run",)),
        ("evaluate=0123", ("0123",)),
        ("evaluate=../..", ("../..",)),
        ("paths.output=/proc/x", ("/proc/x",)),
        ("paths.cache=/proc/x", ("/proc/x",)),
        ("hydra.run.dir=/proc/x", ("/proc/x",)),
        ("hydra/launcher=nope", ("nope",)),
        ("hydra/sweeper=nope", ("nope",)),
        ("seed=${nope}", ("nope",)),
        ("seed=${oc.env:NOPE_NOT_SET}", ("NOPE_NOT_SET",)),
        ("method={name:emoe}", ("method",)),
        ("method._target_=os.system", ("_target_",)),
        ("+trainer.x=1", ("trainer.x",)),
        ("~method", ("method",)),
        ("method.num_experts=", ("method.num_experts",)),
        ("method.num_experts=[8,16]", ("method.num_experts",)),
        ("method.num_experts=8,16", ("-m",)),
        ("seed=0,1", ("-m",)),
        ("seed='", ("seed",)),
        ("seed=[", ("seed",)),
        ("study=emoe_gates method=emoe", ("method",)),
        ("study=emoe_gates profile=huge", ("huge",)),
        ("study=emoe_gates study.only.method=nope", ("nope",)),
        ("profile=mini", ("profile",)),
        ("model=vit_tiny task=glue_mini/rte", ("vit",)),
        ("model=bert_tiny task=domainbed_mini", ("bert",)),
        ("model=bert_tiny task=wikitext_mini", ("bert",)),
        ("model=bert_tiny task=squad_mini", ("bert",)),
        ("model=gpt2_tiny task=summarisation_mini", ("gpt2",)),
        ("model=switch_tiny task=wikitext_mini", ("switch",)),
        ("method=dense protocol.nope=1", ("protocol.nope",)),
        ("tuning=full tuning.rank=4", ("rank",)),
        ("tuning=lora tuning.rank=0", ("tuning.rank=0",)),
        ("search=paper tuning.learning_rates=[]", ("tuning.learning_rates=[]",)),
    ]
    return [
        Case(
            f"by hand: {words}",
            (
                *(() if words.startswith("study=emoe") else ("task=glue_mini/rte",)),
                *words.split(" "),
            ),
            says,
        )
        for words, says in rows
    ]
