"""Every kind of mistake on the command line has its line, and all are told at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import moe_runner
from moe_runner.cli.arguments import add_only, as_meant, check_arguments, complete_search
from moe_runner.cli.help import chosen_files
from moe_runner.options.errors import nearest_keys
from moe_runner.options.files import OptionFiles
from moe_runner.options.folders import CONF, option_folders
from moe_runner.options.settings import GROUPS, option_keys
from moe_runner.registry import METHODS

NAMES = ", ".join(sorted(METHODS))
OWNERS = ",".join(name for name in METHODS if name not in ("dense", "noisy_tuning"))

FILES = OptionFiles.find(option_folders())
MODELS = ", ".join(FILES.options["model"])
PRECISIONS = "use fp32, bf16 or fp16"
TASKS = ", ".join(FILES.options["task"])


def check(*argv: str) -> list[str]:
    return check_arguments(argv)


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "method=dense model=gpt2 task=glue/cola tuning=lora",
        "method.num_experts=32 method.top_k=8 threads=2 debug=true",
        "++method.top_k=8",
        "task.ood=[imdb,yelp] method.layers=[0,2] method.layers=all",
        "model=bert search=paper",
        "-m method=dense,emoe seed=0,1,2",
        "-m seed=range(0,3) method.top_k=choice(8,16)",
        "-m model=glob([bert*,gpt2_*],exclude=*_large) task.members=[cola],[rte,sst2]",
        "hydra.mode=MULTIRUN seed=1,2",
        "-m trainer.learning_rate=interval(1e-5,1e-4) hydra/sweeper=optuna",
        "method.top_k=8 --cfg job --resolve",
        "paths={output:x} paths.cache=${paths.output}/y",
        "--help",
        "--info defaults",
        "hydra/launcher=joblib hydra.job.name=x",
        "study=emoe_gates trainer.precision=bf16 logger=wandb device=cpu threads=2 dry_run=true",
        "study=all profile=paper study.only.task=[cola,mrpc] study.only.learning_rate=1e-3",
        "--hydra-help foo=1",
        "--config-name other foo=1",
    ],
)
def test_right_command_lines_have_no_problem(argv):
    assert check(*argv.split()) == []


def test_quoted_values_have_no_problem():
    assert check("paths.output='a,b c'", "logger=wandb", 'logger.group="123"') == []


def test_words_that_hydra_would_misread_are_quoted(monkeypatch):
    monkeypatch.setenv("HOME", "/home/o'brien")
    words = {
        "paths.output=~/runs": r"paths.output='/home/o\'brien/runs'",
        'model.path="~/my model"': r"model.path='/home/o\'brien/my model'",
        "hydra.run.dir='~'": r"hydra.run.dir='/home/o\'brien'",
        "model.path=~nobody_here/x": "model.path='~nobody_here/x'",
        "evaluate=69e6123412341234": "evaluate='69e6123412341234'",
        "evaluate=6946123412341234": "evaluate='6946123412341234'",
        "evaluate=69e612,a1,123": "evaluate='69e612',a1,'123'",
        "paths.output=~/a,/b,~": r"paths.output='/home/o\'brien/a',/b,'/home/o\'brien'",
    }
    kept = [
        "evaluate=69e61234f2341234", "seed=3", "paths.output=a~b", "--cfg", "task.ood=[~a]",
        "logger.group='~'", r"paths.output=~/my\\ runs", "~method",
        "paths.output='a,~/b,c'", "evaluate=choice(1,2)",
    ]  # fmt: skip
    assert as_meant([*words, *kept]) == [*words.values(), *kept]
    parsed = OverridesParser.create().parse_overrides(list(words.values())[:5])
    assert [override.value() for override in parsed] == [
        "/home/o'brien/runs", "/home/o'brien/my model", "/home/o'brien", "~nobody_here/x",
        "69e6123412341234",
    ]  # fmt: skip


EVALUATED = "a stored run is evaluated as it is, on the sets of task.ood"
OWN_RATE = "glue_mini has a rate of its own; use trainer.learning_rate"


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        ("tuning.learning_rate=1e-3", []),
        ("tuning.learning_rate=1e-3 tuning=lora model=switch_tiny", []),
        ("model.lr_scale=2 model=switch_tiny", []),
        ("tuning.learning_rates=[1e-3] search=paper", []),
        ("task.ood_dir=null logger.group=null", []),
        ("-m hydra.sweeper.params={tuning:full} tuning.learning_rate=1 model=switch_tiny", []),
        ("-m model=bert_tiny,switch_tiny tuning.learning_rate=1e-3", []),
        ("evaluate=a1 task=gluex task.ood=[imdb] threads=1 device=cpu paths.output=x", []),
        ("evaluate=a1 task=squad task.ood=[x] model=switch_tiny paths={output:x}", []),
        ("evaluate=a1 task.ood=[imdb] dry_run=false", []),
        (
            "tuning.learning_rate=1e-3 model=switch_tiny",
            [f"tuning.learning_rate=0.001 does nothing: task={OWN_RATE}"],
        ),
        (
            "tuning.learning_rate=1e-3 model.lr_scale=2 trainer.learning_rate=1e-4",
            [
                f"{word} does nothing: trainer.learning_rate is the rate; leave one of them out"
                for word in ("tuning.learning_rate=0.001", "model.lr_scale=2")
            ],
        ),
        (
            "tuning.learning_rate=1e-3 search=paper",
            [
                "tuning.learning_rate=0.001 does nothing: search=paper tries "
                "tuning.learning_rates; leave it out"
            ],
        ),
        (
            "tuning.learning_rates=[1e-3]",
            [
                "tuning.learning_rates=[0.001] does nothing: search=single tries no rates; "
                "use search=paper"
            ],
        ),
        (
            "-m task.ood_dir=null,x task=glue/cola",
            ["task.ood_dir=x does nothing: task.ood names no set; add some, or leave it out"],
        ),
        (
            "logger.mode=online",
            [
                "logger.mode=online does nothing: nothing is sent anywhere; add logger=wandb, "
                "or leave it out"
            ],
        ),
        (
            "trainer.epochs=3 trainer.max_steps=20",
            [
                "trainer.epochs=3 does nothing: trainer.max_steps=20 is how long a run trains; "
                "leave one of them out"
            ],
        ),
        (
            "task=glue/cola task.ood_dir=x",
            [
                "task.ood_dir=x does nothing: task.ood names no set; add some, or leave it out"
            ],
        ),
        (
            "evaluate=a1 dry_run=true task.eval_limit=3 method=dense",
            [
                f"{word} does nothing with evaluate=a1: {EVALUATED}; leave {word.split('=')[0]} out"
                for word in ("method=dense", "dry_run=true", "task.eval_limit=3")
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_typed_and_does_nothing_is_refused(argv, problems):
    assert check(*argv.split()) == problems


PROBLEMS = [
    # options of groups
    ("method=emo", f"method=emo is not an option; did you mean emoe? ({NAMES})"),
    ("-m method=dense,emo", f"method=emo is not an option; did you mean emoe? ({NAMES})"),
    ("model=gpt3", f"model=gpt3 is not an option; did you mean gpt2? ({MODELS})"),
    ("task=glue/colaa", f"task=glue/colaa is not an option; did you mean glue/cola? ({TASKS})"),
    ("task=cola", f"task=cola is not an option; did you mean glue/cola? ({TASKS})"),
    (
        "task/glue=cola",
        f"task/glue=cola is not an option; did you mean task=glue/cola? ({TASKS})",
    ),
    ("method=xyz", f"method=xyz is not an option; use one of ({NAMES})"),
    ("method=null", f"method=null is not an option; use one of ({NAMES})"),
    ("+method=dense", "+method=dense is refused: the group is there already; use method=dense"),
    (
        "-m model=glob(z*)",
        f"model=glob(z*) matches no option; use some of {MODELS}",
    ),
    (
        "method@foo=emoe",
        "method@foo=emoe is refused: an option cannot be moved; use method=<value>",
    ),
    # keys
    ("metod=emoe", "metod=emoe is not an option; did you mean method?"),
    ("sede=1", "sede=1 is not an option; did you mean seed?"),
    ("top_k=8", "top_k=8 is not an option; did you mean method.top_k?"),
    (
        "method.num_expert=3",
        "method.num_expert=3 is not an option of method=emoe; did you mean method.num_experts?",
    ),
    (
        "+method.num_expert=3",
        "+method.num_expert=3 is not an option of method=emoe; did you mean method.num_experts?",
    ),
    (
        "++method.num_expert=3",
        "++method.num_expert=3 is not an option of method=emoe; did you mean method.num_experts?",
    ),
    (
        "logger.foo=1",
        "logger.foo=1 is not an option of logger; "
        "use one of logger.project, logger.mode, logger.group",
    ),
    (
        "learning_rate=1",
        "learning_rate=1 is not an option; "
        "did you mean tuning.learning_rate or trainer.learning_rate?",
    ),
    ("zzz=1", "zzz=1 is not an option; moe-run --help lists the options"),
    (
        "method=dense method.num_experts=8",
        f"method.num_experts=8 is not an option of method=dense; it belongs to method={OWNERS}",
    ),
    (
        "-m method=dense,noisy_tuning method.top_k=8",
        "method.top_k=8 is not an option of method=dense,noisy_tuning; "
        f"it belongs to method={OWNERS}",
    ),
    (
        "-m hydra/sweeper=optuna method=dense,emoe method.top_k=8",
        f"method.top_k=8 is not an option of method=dense; it belongs to method={OWNERS}",
    ),
    ("method.name=dense", "method.name=dense is refused; choose with method=dense"),
    ("+threads=2", "+threads=2 is refused: the option is there already; use threads=2"),
    (
        "~trainer.patience",
        "~trainer.patience is refused: no option can be deleted; give another value",
    ),
    ("~method=emoe", "~method=emoe is refused: no option can be deleted; give another value"),
    (
        "method._target_=os.system",
        "method._target_=os.system is refused; components are chosen by name",
    ),
    (
        "paths={a:{_target_:os.system}}",
        "paths.a._target_=os.system is refused; components are chosen by name",
    ),
    (
        "paths={a:1}",
        "paths.a=1 is not an option of paths; use one of paths.output, paths.cache, "
        "paths.data, paths.models",
    ),
    # what cannot be read
    ("a==b", "a==b cannot be read; use key=value, and quote special characters: \"key='a b'\""),
    (
        "task.ood=[imdb",
        "task.ood=[imdb cannot be read; use key=value, and quote special characters: \"key='a b'\"",
    ),
    ("emoe", "emoe has no value; use key=value"),
    ("--dry-run", "--dry-run is not a flag; did you mean dry_run=<value>?"),
    ("--xyzzy", "--xyzzy is not a flag; see moe-run --hydra-help"),
    (
        "--=null",
        "ambiguous option: --=null could match --help, --hydra-help, --version, --cfg, --resolve, "
        "--package, --run, --multirun, --shell-completion, --config-path, --config-name, "
        "--config-dir, --experimental-rerun, --info; see moe-run --hydra-help",
    ),
    (
        "method=emoe -m seed=1,2",
        "seed=1,2 comes after a flag that follows other options; put flags last",
    ),
    (
        "--cfg all_of_it",
        "argument --cfg/-c: invalid choice: 'all_of_it' (choose from 'job', 'hydra', 'all'); "
        "see moe-run --hydra-help",
    ),
    # sweeps and searches
    (
        "method=dense,emoe",
        "method=dense,emoe gives several values; "
        "add -m to run each of them, or write [a,b] for one list",
    ),
    (
        "task.ood=imdb,yelp",
        "task.ood=imdb,yelp gives several values; "
        "add -m to run each of them, or write [a,b] for one list",
    ),
    (
        "-m trainer.learning_rate=interval(1e-5,1e-4)",
        "trainer.learning_rate=interval(1e-5,1e-4) is endless: "
        "it needs hydra/sweeper=optuna, or give some values",
    ),
    ("search=paper seed=1", "seed=1 and search=paper exclude each other; give one of them"),
    (
        "-m search=single,paper seed=0,1",
        "seed=0,1 and search=paper exclude each other; give one of them",
    ),
    (
        "search=paper trainer.learning_rate=3e-5",
        "trainer.learning_rate=3e-5 and search=paper exclude each other; give one of them",
    ),
    # beside a study
    (
        "study=emoe_gates seed=3",
        "seed=3 does not go with a study, whose grid says it; "
        "run the command without study=, or write a study file",
    ),
    (
        "study=emoe_gates trainer.epochs=3",
        "trainer.epochs=3 does not go with a study, whose grid says it; "
        "run the command without study=, or write a study file",
    ),
    ("study=emoe_gates trainer.precision=x", f"trainer.precision=x is not valid; {PRECISIONS}"),
    (
        "study=emoe_gates device=cpu,cuda",
        "device=cpu,cuda gives several values; beside a study give one",
    ),
    (
        "study=emoe_gates,emoe_layers",
        "study=emoe_gates,emoe_layers is refused; "
        "use study=all study.only.study=[emoe_gates,emoe_layers]",
    ),
    (
        "study=all study.only.metod=emoe",
        "study.only.metod=emoe is not an option of a study; did you mean study.only.method?",
    ),
    (
        "study=all study.only.method=emoe,dense",
        "study.only.method=emoe,dense gives several values; "
        "write them as a list: study.only.method=[emoe,dense]",
    ),
    (
        "study=all +study.only.method=emoe",
        "+study.only.method=emoe is refused: the option is there already; "
        "use study.only.method=emoe",
    ),
    (
        "study.only.method=emoe",
        "study.only.method=emoe restricts a study, and there is none; add study=<name>",
    ),
    # values
    ("trainer.epochs=x", "trainer.epochs=x is not valid; use a whole number or null"),
    ("-m seed=0,x", "seed=x is not valid; use a whole number"),
    ("seed=???", "seed is missing; give seed=<value>"),
    (
        "seed=${foo}",
        "seed refers to something that is not there: Interpolation key 'foo' not found",
    ),
    (
        "-m model=bert,bert_tiny method.num_experts=384",
        "method.num_experts=384 does not divide d_ff=512 of model=bert_tiny; "
        "use one of 128, 256, 512, ...",
    ),
    (
        "model.path=/nowhere",
        "model.path=/nowhere is not a model folder: /nowhere/config.json does not exist",
    ),
]


@pytest.mark.parametrize(("argv", "line"), PROBLEMS)
def test_problem_is_one_line(argv, line):
    assert check(*argv.split()) == [line]


def test_all_problems_are_told_at_once():
    argv = "a==b metod=emoe model=gpt3 ~seed method.num_experts=60 trainer.epochs=x trainer.foo=1"
    lines = check(*argv.split(), "trainer.patience=-1", "trainer.epoch=1")
    assert [line.partition(" ")[0] for line in lines] == [
        "a==b",
        "~seed",
        "model=gpt3",
        "metod=emoe",
        "trainer.foo=1",
        "trainer.epoch=1",
        "trainer.epochs=x",
        "trainer.patience=-1",
    ]  # nothing about num_experts, since it depends on the model that was meant


def test_a_sweep_without_m_does_not_hide_other_problems():
    lines = check("seed=1,2", "method=dense,emoe", "trainer.epochs=x")
    assert [line.partition(" ")[0] for line in lines] == [
        "seed=1,2",
        "method=dense,emoe",
        "trainer.epochs=x",
    ]


def test_a_wrong_method_is_taken_for_the_nearest_one():
    assert check("method=dens", "method.top_k=8") == [
        f"method=dens is not an option; did you mean dense? ({NAMES})",
        f"method.top_k=8 is not an option of method=dense; it belongs to method={OWNERS}",
    ]


def test_every_option_of_a_long_sweep_is_validated():
    lines = check("-m", "seed=range(0,1000)", "model=bert_tiny,vit_small,vit_base")
    assert [line.partition(" ")[0] for line in lines] == ["model=vit_small", "model=vit_base"]


def test_options_of_the_users_own_folder_count(tmp_path):
    folder = tmp_path / "my conf"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "emoe_32.yaml").write_text("name: emoe\nnum_experts: 32\ntop_k: 8\n")
    assert check("--config-dir", str(folder), "method=emoe_32", "method.top_k=4") == []
    assert check("--config-dir", str(folder), "method=emoe_32", "method.top_k=40") == [
        "method.top_k=40 is more than method.num_experts=32; use 1 to 32"
    ]


def test_hydra_can_run_after_the_check():
    check("method=dense")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert hydra.compose("config", ["method=dense"]).method.name == "dense"


def test_optuna_looks_for_the_highest_score_unless_told_otherwise():
    optuna, up, seed = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.sampler.seed=0",
    )
    assert complete_search(["-m", "seed=0,1"]) == ["-m", "seed=0,1"]
    assert complete_search([optuna, "seed=0,1", "-m"]) == [optuna, up, seed, "seed=0,1", "-m"]
    down = [optuna, "hydra.sweeper.direction=minimize"]
    assert complete_search(down) == [optuna, seed, down[1]]
    grid = [optuna, "hydra/sweeper/sampler=grid"]
    assert complete_search(grid) == [optuna, up, grid[1]]


def test_study_only_can_be_given_without_a_plus():
    words = ["study=all", "study.only.seed=0", "dry_run=true"]
    assert add_only(words) == ["study=all", "++study.only.seed=0", "dry_run=true"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert hydra.compose("config", add_only(words)).study.only == {"seed": 0}


def test_every_group_is_in_the_defaults_list():
    files = FILES
    folders = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
    assert set(files.options) == folders
    assert set(GROUPS) <= folders
    assert files.defaults["study"] is None
    assert all(files.defaults[group] in files.options[group] for group in folders - {"study"})


def help_text(*arguments: str) -> str:
    command = [sys.executable, "-m", "moe_runner.train", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_names_every_global_key_and_group():
    text = help_text()
    keys = [
        key
        for key in option_keys({"method": [], "task": []})
        if "." not in key or key.startswith("paths.")
    ]
    assert len(keys) > 5
    for name in (*keys, *GROUPS):
        assert re.search(rf"\b{re.escape(name)}[=:]", text), name
    assert max(len(line) for line in text.splitlines()) <= 150


def test_help_names_every_option_in_lines_that_are_wrapped(tmp_path):
    (tmp_path / "model").mkdir()
    for number in range(20):  # the user's own
        (tmp_path / "model" / f"bert-of-a-long-name-{number}.yaml").touch()
    text = help_text("--config-dir", str(tmp_path))
    assert max(len(line) for line in text.splitlines()) <= 150
    listed = text.partition("Groups (group=option)\n\n")[2].partition("\n\n")[0]
    options = OptionFiles.find(option_folders(tmp_path)).options
    assert len(options["model"]) > 20
    assert [" ".join(line.split()) for line in re.sub(r",\n +", ", ", listed).splitlines()] == [
        f"{group}: {', '.join(names)}" for group, names in sorted(options.items())
    ]


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["method=emoe"], ["method/emoe"]),
        (["-m", "method=dense,emoe"], ["method/dense", "method/emoe"]),
        (["task=glue/cola", "tuning=lora"], ["task/glue", "task/glue/cola", "tuning/lora"]),
        (["seed=3"], None),
    ],
)
def test_help_of_an_option_is_its_file(words, files):
    texts = [(CONF / f"{name}.yaml").read_text() for name in files or ()]
    assert chosen_files([*words, "--help"]) == ("\n".join(texts) or None)
    assert chosen_files(words) is None


def test_every_command_tells_its_version():
    line = f"moe-runner {version('moe-runner')}"
    for module, ending in (("train", " (torch "), ("report.command", "\n")):
        command = [sys.executable, "-m", f"moe_runner.{module}", "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert text.startswith(line + ending)
    assert moe_runner.__version__ == version("moe-runner")
    assert {"EMoE", "convert", "__version__"} <= set(dir(moe_runner))


# ------------------------------------------------------------------------------- misspellings

KEYS = [*FILES.options, *option_keys({"method": ["emoe"], "task": ["glue"]})]
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@st.composite
def misspellings(draw: Callable) -> tuple[str, str]:
    """Draw a valid key, and the key with one letter more, less or replaced."""
    key = draw(st.sampled_from(KEYS))
    place = draw(st.integers(0, len(key) - 1))
    edit = draw(st.sampled_from(["insert", "delete", "replace"]))
    letter = "" if edit == "delete" else draw(st.sampled_from(LETTERS))
    return key, key[:place] + letter + key[place + (edit != "insert") :]


def edits(key: str) -> set[str]:
    cuts = [(key[:i], key[i:]) for i in range(len(key) + 1)]
    letters = LETTERS + "."
    return {
        *(a + b[1:] for a, b in cuts if b),
        *(a + c + b for a, b in cuts for c in letters),
        *(a + c + b[1:] for a, b in cuts if b for c in letters),
    }


def is_found(key: str, typo: str, suggested: list[str]) -> bool:
    """Tell whether the key meant is suggested, or another one that is as near to the typo."""
    return key in suggested or any(typo in edits(other) for other in suggested)


@settings(max_examples=150, deadline=None)
@given(misspellings())
@example(("method.top_k", "methodtop_k"))
@example(("model", "mode"))
@example(("task.ood", "task.oxd"))
def test_nearest_keys_finds_the_key_of_one_typo(case):
    key, typo = case
    assume(typo not in KEYS)
    assert is_found(key, typo, nearest_keys(typo, KEYS))


@settings(max_examples=12, deadline=None)
@given(misspellings(), st.sampled_from(["", "+", "++"]))
def test_one_typo_is_caught_and_the_key_suggested(case, prefix):
    key, typo = case
    assume(typo not in KEYS and not typo.startswith(("hydra.", ".")) and ".." not in typo)
    assume(not typo.endswith(".name") and typo.partition(".")[0] != "hydra")
    [line] = check(f"{prefix}{typo}=1")
    assert line.startswith(f"{prefix}{typo}=1 is not an option")
    suggested = re.split(r", | or ", line.partition("did you mean ")[2].rstrip("?"))
    assert is_found(key, typo, suggested)
