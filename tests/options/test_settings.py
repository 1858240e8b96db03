"""Every kind of wrong value has its line."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe_runner.options.checks import USUAL_BLOCKS
from moe_runner.options.errors import ConfigError
from moe_runner.options.folders import CONF
from moe_runner.options.settings import parse


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def composed() -> dict:
    tree = OmegaConf.to_container(compose("config"), resolve=True)
    assert isinstance(tree, dict)
    return tree


def problems_of(tree: dict, **changes: object) -> list[str]:
    """Parse a copy of a config with `method__top_k=3` changed, and return the problems."""
    tree = copy.deepcopy(tree)
    for path, value in changes.items():
        *sections, name = path.split("__")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    try:
        parse(tree)
    except ConfigError as error:
        return list(error.problems)
    return []


PROBLEMS = [
    # keys and types
    (
        {"method__num_expert": 3},
        "method.num_expert=3 is not an option of method=emoe; did you mean method.num_experts?",
    ),
    (
        {"trainer__top_k": 8},
        "trainer.top_k=8 is not an option of trainer; did you mean method.top_k?",
    ),
    ({"sede": 1}, "sede=1 is not an option; did you mean seed?"),
    ({"zzz": None}, "zzz=null is not an option; moe-run --help lists the options"),
    (
        {"paths__zzz": 1},
        "paths.zzz=1 is not an option of paths; use one of paths.output, paths.cache, paths.data, "
        "paths.models",
    ),
    ({"paths": 3}, "paths=3 is not valid; moe-run --help lists the options"),
    ({"method__top_k": "a"}, "method.top_k=a is not valid; use a whole number"),
    ({"method__top_k": True}, "method.top_k=true is not valid; use a whole number"),
    ({"method__top_k": 2.0}, "method.top_k=2.0 is not valid; use a whole number"),
    ({"method__top_k": "???"}, "method.top_k is missing; give method.top_k=<value>"),
    (
        {"method__cluster_seed": 1.5},
        "method.cluster_seed=1.5 is not valid; use a whole number or null",
    ),
    ({"method__cluster_seed": -1}, "method.cluster_seed=-1 is negative; use 0 or more"),
    ({"seed": "???"}, "seed is missing; give seed=<value>"),
    ({"seed": [1]}, "seed=[1] is not valid; use a whole number"),
    ({"dry_run": 1}, "dry_run=1 is not valid; use true or false"),
    ({"trainer__epochs": "x"}, "trainer.epochs=x is not valid; use a whole number or null"),
    (
        {"trainer__weight_decay": float("nan")},
        "trainer.weight_decay=nan is not valid; use a number or null",
    ),
    ({"method__select": "tpo"}, "method.select=tpo is not valid; use top, bottom or not_top"),
    ({"task__ood": "imdb"}, "task.ood=imdb is not valid; use a list of names [a,b]"),
    ({"task__members": [1]}, "task.members=[1] is not valid; use a list of names [a,b]"),
    (
        {"evaluate": 123},
        "evaluate=123 is not valid; use text (in quotes if it looks like a number) or null",
    ),
    (
        {"model___target_": "os.system"},
        "model._target_=os.system is refused; components are chosen by name",
    ),
    # ranges
    ({"seed": -1}, "seed=-1 is negative; use 0 or more"),
    ({"seed": 2**32}, "seed=4294967296 is too large for a seed; use at most 4294967295"),
    ({"search__seeds": [-1]}, "search.seeds=[-1] has -1, which is negative; use 0 or more"),
    (
        {"search__seeds": [0, 2**32]},
        "search.seeds=[0,4294967296] has 4294967296, which is too large for a seed; "
        "use at most 4294967295",
    ),
    (
        {"tuning__learning_rates": [-0.001]},
        "tuning.learning_rates=[-0.001] has -0.001, which is not positive; use a number above 0",
    ),
    (
        {"tuning__learning_rates": [0.001, 0.0, -2]},
        "tuning.learning_rates=[0.001,0.0,-2.0] has -2.0, which is not positive; "
        "use a number above 0",
    ),
    ({"threads": 0}, "threads=0 is not positive; use a number above 0"),
    ({"trainer__epochs": 0}, "trainer.epochs=0 is not positive; use a number above 0"),
    ({"model__d_ff": 0}, "model.d_ff=0 is not positive; use a number above 0"),
    (
        {"trainer__learning_rate": -3e-5},
        "trainer.learning_rate=-3e-5 is not positive; use a number above 0",
    ),
    (
        {"trainer__warmup_ratio": 1.0},
        "trainer.warmup_ratio=1.0 is not a fraction; use 0 or more and less than 1",
    ),
    # values that clash
    (
        {"search__tune_learning_rate": True, "trainer__learning_rate": 3e-5},
        "trainer.learning_rate=3e-5 and search=single exclude each other; give one of them",
    ),
    ({"device": "gpu"}, "device=gpu is not valid; use auto, cpu, mps, cuda or cuda:<n>"),
    (
        {"device": "cpu", "trainer__precision": "fp16"},
        "trainer.precision=fp16 does not work on device=cpu; use trainer.precision=bf16 or fp32",
    ),
    ({"task__members": []}, "task.members=[] is empty; name at least one task"),
    (
        {"task__max_length": 300},
        "task.max_length=300 is more than the 256 positions of model=bert_tiny; use at most 256",
    ),
    (
        {"task__train_fraction": 0.0},
        "task.train_fraction=0.0 is not a share; use more than 0 and at most 1",
    ),
    (
        {"task__train_fraction": 1.5},
        "task.train_fraction=1.5 is not a share; use more than 0 and at most 1",
    ),
    (
        {"tuning__name": "lora", "tuning__rank": 8, "tuning__alpha": 16},
        "tuning.dropout=null does not go with tuning=lora; give a number",
    ),
    (
        {"tuning__rank": 4},
        "tuning.rank=4 does nothing with tuning=full; use tuning=lora, or leave it out",
    ),
    (
        {
            "tuning__name": "lora",
            "tuning__rank": 8,
            "tuning__alpha": 16,
            "tuning__dropout": 0.1,
            "tuning__blocks": "last:1",
        },
        "tuning.blocks=last:1 does nothing with tuning=lora; use tuning=lora_block, "
        "or leave it out",
    ),
    (
        {
            "tuning__name": "lora_block",
            "tuning__rank": 8,
            "tuning__alpha": 16,
            "tuning__dropout": 0.1,
            "tuning__blocks": [0],
            "method__layers": [1, 3],
        },
        "tuning.blocks=[0] does nothing with method=emoe, which trains the blocks that it converts "
        "(method.layers=[1,3]); leave it out, or choose the blocks with method.layers",
    ),
    (
        {"method__num_experts": 60},
        "method.num_experts=60 does not divide d_ff=512 of model=bert_tiny; "
        "use one of 32, 64, 128, ...",
    ),
    (
        {"method__num_experts": 60, "model__d_ff": 3072, "model__name": "bert"},
        "method.num_experts=60 does not divide d_ff=3072 of model=bert; use one of 48, 64, 96, ...",
    ),
    (
        {"method__num_experts": 16, "method__top_k": 20},
        "method.top_k=20 is more than method.num_experts=16; use 1 to 16",
    ),
    (
        {"method__top_k": 0},
        "method.top_k=0 is not allowed with method.num_experts=64; use 1 to 64",
    ),
    (
        {"method__select": "not_top", "method__top_k": 64},
        "method.select=not_top leaves no expert with method.top_k=64 of 64; use a smaller top_k",
    ),
    (
        {"method__gate_on": "up"},
        "method.gate_on=up needs a gated FFN and model=bert_tiny has none; use method.gate_on=gate",
    ),
    (
        {"method__gate_on": "up_abs", "method__normalize_gate": True, "model__gated": True},
        "method.normalize_gate=true does not go with method.gate_on=up_abs, which has no gate "
        "vectors; use method.normalize_gate=false",
    ),
    (
        {"method__gate_on": "inter_abs", "method__backend": "sorted", "model__gated": True},
        "method.gate_on=inter_abs computes every neuron and has no back end `sorted`; "
        "use method.backend=masked",
    ),
    (
        {"method__num_experts": 256, "method__backend": "grouped_mm"},
        "method.backend=grouped_mm does not go with model=bert_tiny here: grouped_mm takes rows of "
        "16, 32, 48, ... bytes: in 32-bit numbers d_model=128 and the 2 neurons of an expert must "
        "be multiples of 4; use method.backend=sorted or auto",
    ),
    (
        {
            "method__num_experts": 128,
            "method__backend": "grouped_mm",
            "trainer__precision": "bf16",
        },
        "method.backend=grouped_mm does not go with model=bert_tiny here: grouped_mm takes rows of "
        "16, 32, 48, ... bytes: in 16-bit numbers d_model=128 and the 4 neurons of an expert must "
        "be multiples of 8; use method.backend=sorted or auto",
    ),
    (
        {"method__backend": "kernel", "trainer__precision": "bf16"},
        "method.backend=kernel computes in fp32 and does not go with trainer.precision=bf16; "
        "use method.backend=auto for a new run",
    ),
    (
        {"method__backend": "kernel", "device": "cuda:0"},
        "method.backend=kernel computes on a CPU and does not go with device=cuda:0; "
        "use method.backend=auto for a new run",
    ),
    (
        {"trainer__inference": "kernel", "device": "mps"},
        "trainer.inference=kernel computes on a CPU and does not go with device=mps; "
        "use trainer.inference=plain for a new run",
    ),
    (
        {"method__layers": "even"},
        "method.layers=even is not a rule; use [8,10], all, last:<n> or last-even:<n> "
        "(model=bert_tiny has 4 layers)",
    ),
    (
        {"method__layers": "last-even:3"},
        "method.layers=last-even:3 asks for more layers than there are; "
        "use at most last-even:2 (model=bert_tiny has 4 layers)",
    ),
    (
        {"method__layers": [2, 4]},
        "method.layers=[2,4] names layers that do not exist; use 0 to 3 "
        "(model=bert_tiny has 4 layers)",
    ),
]


def test_grouped_mm_is_allowed_with_sizes_that_it_takes(composed):
    fits = {"method__num_experts": 128, "method__backend": "grouped_mm"}
    assert problems_of(composed, **fits) == []
    assert problems_of(composed, **fits | {"method__num_experts": 0})[0].startswith(
        "method.num_experts=0 "
    )


@pytest.mark.parametrize(("changes", "line"), PROBLEMS)
def test_problem_has_its_line(composed, changes, line):
    assert line in problems_of(composed, **changes)


@pytest.mark.parametrize("blocks", ["the file's", None, [1, 3]])
def test_blocks_that_nobody_typed_or_that_are_the_same_are_no_problem(composed, blocks):
    tuning = yaml.safe_load((CONF / "tuning" / "lora_block.yaml").read_text())
    assert tuning["blocks"] == USUAL_BLOCKS
    if blocks != "the file's":
        tuning["blocks"] = blocks
    assert problems_of(composed, tuning=tuning, method__layers=[1, 3]) == []


IMAGE_PROBLEMS = [
    (
        {"trainer__length_grouping": True},
        "trainer.length_grouping=true does not go with task=domainbed_mini, whose images are of "
        "one length; use trainer.length_grouping=false",
    ),
    (
        {"method__convert_at": "eval"},
        "method.convert_at=eval does not go with task=domainbed_mini, whose selection rules read "
        "every checkpoint as it is trained; use method.convert_at=both",
    ),
    (
        {"task__holdout": 0.0},
        "task.holdout=0.0 leaves nothing to select by; use for example 0.2",
    ),
    (
        {"task__drop_path": 1.0},
        "task.drop_path=1.0 is not a fraction; use 0 or more and less than 1",
    ),
    ({"task__image_size": 0}, "task.image_size=0 is not positive; use a number above 0"),
]


@pytest.mark.parametrize(("changes", "line"), IMAGE_PROBLEMS)
def test_problem_of_images_has_its_line(changes, line):
    cfg = compose("config", ["task=domainbed_mini", "model=vit_tiny"])
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert problems_of(tree, **changes) == [line]


def test_the_largest_seed_is_a_seed(composed):
    assert problems_of(composed, seed=2**32 - 1, search__seeds=[0, 2**32 - 1]) == []


def test_a_key_of_no_chosen_method_names_the_method(composed):
    tree = {**composed, "method": {"name": "dense", "top_k": 8}}
    assert problems_of(tree) == [
        "method.top_k=8 is not an option of method=dense; moe-run --help lists the options"
    ]


def test_several_problems_are_told_at_once(composed):
    given = problems_of(
        composed,
        method__num_experts=60,
        method__select="not_top",
        trainer__epochs="x",
        trainer__patience=-1,
        device="gpu",
        seed=-1,
        task__max_length=300,
        tuning__name="lora",
        zzz=1,
    )
    assert [line.partition(" ")[0] for line in given] == [
        "trainer.epochs=x",
        "trainer.patience=-1",
        "seed=-1",
        "zzz=1",
        "task.max_length=300",
        "tuning.rank=null",
        "tuning.alpha=null",
        "tuning.dropout=null",
        "method.num_experts=60",
    ]


def test_lists_become_tuples_and_whole_numbers_floats(composed):
    settings = parse({**composed, "trainer": {**composed["trainer"], "weight_decay": 1}})
    assert settings.task.ood == ("all",)
    assert settings.tuning.learning_rates == (2e-5, 3e-5, 5e-5)
    assert isinstance(settings.trainer.weight_decay, float)
