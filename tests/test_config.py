"""The option files and the dataclasses agree; every kind of wrong value has its line."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from moe_runner.cli.values import parse_config
from moe_runner.methods.emoe.options import EMoE
from moe_runner.options.build import build
from moe_runner.options.errors import ConfigError, join, nearest_keys, show
from moe_runner.options.files import read_option
from moe_runner.options.layers import select_layers
from moe_runner.options.model import Model, families_with_options, with_sizes_of_path
from moe_runner.options.settings import GROUPS, KIND, Settings, option_keys, options_class, parse
from moe_runner.registry import METHODS, SUITES

CONF = Path(__file__).parents[1] / "conf"
OPTION_FILES = [
    (group, file.relative_to(CONF / group).with_suffix("").as_posix())
    for group in sorted(GROUPS)
    for file in sorted((CONF / group).rglob("*.yaml"))
]
IMAGES_ONLY = {"vit_base", "vit_small", "vit_tiny"}
MODEL_OF_FAMILY = {"bert": "bert_tiny", "gpt2": "gpt2", "t5": "t5_base", "vit": "vit_tiny"}


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


# ------------------------------------------------------------------------------- option files


def test_every_yaml_is_an_option_of_a_known_group():
    files = {file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml")}
    assert len(OPTION_FILES) > 30
    files = {
        file for file in files if not file.startswith(("study/", "hydra/"))
    }  # see tests/sweeps
    assert files == {"config", *(f"{group}/{option}" for group, option in OPTION_FILES)}


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_composes_and_validates(group, option):
    overrides = [f"{group}={option}"]
    if group == "task":
        suite = SUITES[read_option((CONF,), group, option)["suite"]]
        families = families_with_options(suite.options.forms)
        overrides.append(f"model={MODEL_OF_FAMILY[families[0]]}")
    if option in IMAGES_ONLY:
        with pytest.raises(ConfigError, match="use a model of the family"):
            parse_config(compose("config", overrides))
        return
    settings = parse_config(compose("config", overrides))
    assert isinstance(settings, Settings)
    name = getattr(getattr(settings, group), "name", option)
    assert name == option or group == "trainer"


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_has_the_keys_of_its_dataclass(group, option):
    tree = read_option((CONF,), group, option)
    cls = options_class(group, tree[KIND[group]] if group in KIND else "")
    assert cls is not None
    assert [str(key) for key in tree] == [f.name for f in dataclasses.fields(cls)]


@pytest.mark.parametrize(("group", "option"), OPTION_FILES)
def test_option_file_opens_with_its_command(group, option):
    first = (CONF / group / f"{option}.yaml").read_text().partition("\n")[0]
    expected = "moe-run trainer." if group == "trainer" else f"moe-run {group}={option}"
    assert first.startswith(f"# {expected}")


def test_main_file_has_the_keys_of_the_settings(composed):
    assert set(composed) == {f.name for f in dataclasses.fields(Settings)}
    globals_ = {f.name: f.default for f in dataclasses.fields(Settings) if f.name not in GROUPS}
    del globals_["paths"]
    assert {name: composed[name] for name in globals_} == globals_


def test_the_defaults_of_method_dataclasses_are_those_of_the_files():
    for name, cls in METHODS.items():
        assert OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml")) == {
            f.name: f.default for f in dataclasses.fields(cls)
        }


# ------------------------------------------------------------------------------- problems

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
        "paths.zzz=1 is not an option of paths; use one of paths.output, paths.cache",
    ),
    ({"paths": 3}, "paths=3 is not valid; moe-run --help lists the options"),
    ({"method__top_k": "a"}, "method.top_k=a is not valid; use a whole number"),
    ({"method__top_k": True}, "method.top_k=true is not valid; use a whole number"),
    ({"method__top_k": 2.0}, "method.top_k=2.0 is not valid; use a whole number"),
    ({"method__top_k": "???"}, "method.top_k is missing; give method.top_k=<value>"),
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


@pytest.mark.parametrize(("changes", "line"), PROBLEMS)
def test_problem_has_its_line(composed, changes, line):
    assert line in problems_of(composed, **changes)


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


def test_a_missing_key_is_told():
    problems: list[str] = []
    assert build(Model, {"name": "x", "family": "bert"}, "model", problems) is None
    assert problems == [
        "model.d_model is missing; give model.d_model=<value>",
        "model.d_ff is missing; give model.d_ff=<value>",
        "model.num_layers is missing; give model.num_layers=<value>",
    ]


def test_an_interpolation_that_leads_nowhere_is_one_line():
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", ["paths.output=${foo}"]))
    assert caught.value.problems == (
        "paths.output refers to something that is not there: Interpolation key 'foo' not found",
    )


def test_hydras_node_is_left_out():
    cfg = compose("config", return_hydra_config=True)
    assert parse_config(cfg).method == EMoE()


def test_lists_become_tuples_and_whole_numbers_floats(composed):
    settings = parse({**composed, "trainer": {**composed["trainer"], "weight_decay": 1}})
    assert settings.task.ood == ("all",)
    assert settings.tuning.learning_rates == (2e-5, 3e-5, 5e-5)
    assert isinstance(settings.trainer.weight_decay, float)


# ------------------------------------------------------------------------------- wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (3e-5, "3e-5"),
        (0.1, "0.1"),
        (1e20, "1e+20"),
        ([8, None], "[8,null]"),
        ({"a": (1,)}, "{a:[1]}"),
        ("x", "x"),
    ],
)
def test_show_writes_a_value_as_typed(value, text):
    assert show(value) == text


def test_join():
    assert [join(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("top_k", ["method.top_k"]),
        ("topk", ["method.top_k"]),
        ("learning_rate", ["tuning.learning_rate", "trainer.learning_rate"]),
        ("trainer.seed", ["seed"]),
        ("metod.top_k", ["method.top_k"]),
        ("modle.revision", ["model.revision"]),
        ("trainer.foo", []),
        ("zzz", []),
    ],
)
def test_nearest_keys(given, expected):
    assert nearest_keys(given, option_keys()) == expected


# ------------------------------------------------------------------------------- sizes of a folder

FOLDERS = [  # family, config.json, d_model, d_ff, num_layers, gated, vocab_size, max_positions
    (
        "bert",
        {"model_type": "bert", "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3,
         "vocab_size": 77, "max_position_embeddings": 40},
        (32, 96, 3, False, 77, 40),
    ),
    (
        "gpt2",
        {"model_type": "gpt2", "n_embd": 24, "n_inner": None, "n_layer": 5, "vocab_size": 55,
         "n_positions": 60, "n_ctx": 60},
        (24, 96, 5, False, 55, 60),
    ),
    (
        "gpt2",
        {"model_type": "gpt2", "n_embd": 24, "n_inner": 48, "n_layer": 5, "vocab_size": 55,
         "n_positions": 60},
        (24, 48, 5, False, 55, 60),
    ),
    (
        "llama",
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 6,
         "vocab_size": 99, "max_position_embeddings": 128},
        (32, 88, 6, True, 99, 128),
    ),
    (
        "t5",
        {"model_type": "t5", "d_model": 16, "d_ff": 64, "num_layers": 7, "vocab_size": 33,
         "n_positions": 50, "feed_forward_proj": "relu"},
        (16, 64, 7, False, 33, None),
    ),
    (
        "t5",
        {"model_type": "t5", "d_model": 16, "d_ff": 40, "num_layers": 8, "vocab_size": 33,
         "num_decoder_layers": 8, "feed_forward_proj": "gated-gelu"},
        (16, 40, 8, True, 33, None),
    ),
    (
        "switch",
        {"model_type": "switch_transformers", "d_model": 16, "d_ff": 64, "num_layers": 6,
         "vocab_size": 33, "num_sparse_encoder_layers": 3},
        (16, 64, 6, False, 33, None),
    ),
    (
        "vit",
        {"model_type": "vit", "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 4,
         "image_size": 32},
        (48, 192, 4, False, None, None),
    ),
    (
        "vit",
        {"model_type": "deit", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
        (48, 96, 2, False, None, None),
    ),
]  # fmt: skip


def option_of(family: str) -> Model:
    files = {"bert": "bert", "gpt2": "gpt2", "llama": "llama2", "t5": "t5_base"}
    files |= {"switch": "switch_base_8", "vit": "vit_small"}
    problems: list[str] = []
    tree = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{files[family]}.yaml"))
    model = build(Model, tree, "model", problems)
    assert model is not None
    return model


@pytest.mark.parametrize(("family", "content", "sizes"), FOLDERS)
def test_sizes_of_a_local_folder_win(tmp_path, family, content, sizes):
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = dataclasses.replace(option_of(family), path=str(tmp_path))
    problems: list[str] = []
    found = with_sizes_of_path(model, problems)
    assert problems == []
    names = ("d_model", "d_ff", "num_layers", "gated", "vocab_size", "max_positions")
    assert tuple(getattr(found, name) for name in names) == sizes


def test_the_families_of_the_option_files_are_those_that_messages_name():
    files = sorted((CONF / "model").glob("*.yaml"))
    found = {OmegaConf.load(file).family for file in files}
    assert set(families_with_options()) == found


def test_an_unknown_family_is_named_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", ["model.family=robertaa"]))
    assert caught.value.problems == (
        "model.family=robertaa is not a known family; did you mean roberta?",
    )


def test_the_layers_of_an_albert_are_named_all_or_not_at_all():
    overrides = ["model.family=albert", "method.num_experts=8", "method.top_k=2"]
    with pytest.raises(ConfigError) as caught:
        parse_config(compose("config", [*overrides, "method.layers=last:1"]))
    assert caught.value.problems == (
        "method.layers=last:1 names 1 of 4 layers of model=bert_tiny, which share one FFN; "
        "use method.layers=all",
    )
    parse_config(compose("config", [*overrides, "method.layers=all"]))


def test_experts_are_checked_against_the_local_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FOLDERS[0][1]))
    cfg = compose("config", ["model=bert", f"model.path={tmp_path}", "task.max_length=64"])
    with pytest.raises(ConfigError) as caught:
        parse_config(cfg)
    assert caught.value.problems == (
        "task.max_length=64 is more than the 40 positions of model=bert; use at most 40",
        "method.num_experts=64 does not divide d_ff=96 of model=bert; use one of 32, 48, 96, ...",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "model.path={0} is not a model folder: {0}/config.json does not exist"),
        ("{", "model.path={0} is not a model folder: {0}/config.json is not readable"),
        ("3", "model.path={0} is not a model folder: {0}/config.json is not readable"),
        (
            '{"model_type": "roberta"}',
            "model.path={0} holds a model of type roberta; model=bert is of the family bert",
        ),
        (
            '{"model_type": "gpt2"}',
            "model.path={0} holds a model of type gpt2; model=bert is of the family bert",
        ),
    ],
)
def test_a_wrong_local_folder_is_told(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    model = dataclasses.replace(option_of("bert"), path=str(tmp_path))
    problems: list[str] = []
    assert with_sizes_of_path(model, problems) == model
    assert problems == [problem.format(tmp_path)]


# ------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("rule", "num_layers", "chosen"),
    [
        ("last-even:1", 12, (10,)),
        ("last-even:2", 12, (8, 10)),
        ("last-even:1", 24, (22,)),
        ("last-even:1", 48, (46,)),
        ("last-even:2", 32, (28, 30)),
        ("last-even:1", 5, (4,)),
        ("last-even:1", 1, (0,)),
        ("last-even:2", 4, (0, 2)),
        ("last:1", 12, (11,)),
        ("last:3", 4, (1, 2, 3)),
        ("all", 3, (0, 1, 2)),
        ([10, 8], 12, (8, 10)),
        ((3, 3), 4, (3,)),
    ],
)
def test_select_layers(rule, num_layers, chosen):
    assert select_layers(rule, num_layers) == chosen


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("last:0", "last:0 is not a rule"),
        ("last-even:", "last-even: is not a rule"),
        ("last:5", "last:5 asks for more layers than there are; use at most last:4"),
        ("last-even:3", "last-even:3 asks for more layers than there are; use at most last-even:2"),
        ([4], r"\[4\] names layers that do not exist; use 0 to 3"),
        ([-1], r"\[-1\] names layers that do not exist; use 0 to 3"),
        ([], r"\[\] names layers that do not exist; use 0 to 3"),
    ],
)
def test_select_layers_refuses(rule, problem):
    with pytest.raises(ValueError, match=problem):
        select_layers(rule, 4)


@pytest.mark.parametrize("module", ["moe_runner.options.settings", "moe_runner.cli.arguments"])
def test_importing_takes_neither_torch_nor_transformers(module):
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
