"""A sweep over methods or suites gives each option to those that have it, and says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_runner.cli.arguments import add_of_kinds, check_arguments
from moe_runner.cli.fitting import fitted
from moe_runner.options.files import OptionFiles
from moe_runner.options.folders import option_folders

FILES = OptionFiles.find(option_folders())


def test_an_option_goes_to_the_methods_that_have_it_and_no_job_comes_twice():
    jobs = [
        [f"method={method}", f"++method.top_k={k}", "seed=0"]
        for method in ("dense", "emoe")
        for k in (4, 8)
    ]
    found, lines = fitted(jobs, FILES)
    assert found == [
        ("method=dense", "seed=0"),
        ("method=emoe", "++method.top_k=4", "seed=0"),
        ("method=emoe", "++method.top_k=8", "seed=0"),
    ]
    assert lines == ["method.top_k is no option of method=dense, which goes without it"]


def test_several_that_lack_it_are_named_and_suites_are_treated_alike():
    jobs = [[f"task={task}", "task.block_size=64"] for task in ("glue_mini/rte", "wikitext_mini")]
    found, lines = fitted(jobs, FILES)
    assert found == [("task=glue_mini/rte",), ("task=wikitext_mini", "task.block_size=64")]
    assert lines == ["task.block_size is no option of task=glue_mini, which goes without it"]
    jobs = [[f"method={name}", "method.width=8"] for name in ("dense", "moe", "hypermoe")]
    assert fitted(jobs, FILES)[1] == [
        "method.width is no option of method=dense, method=moe, which go without it"
    ]


def test_what_all_have_stays():
    jobs = [["method=emoe", "method.top_k=8", "trainer.epochs=1"], ["trainer.epochs=2"]]
    assert fitted(jobs, FILES) == ([tuple(job) for job in jobs], [])
    twice = [["method=emoe"], ["method=emoe"]]  # as it was typed: the second finds the first done
    assert fitted(twice, FILES)[0] == [("method=emoe",)] * 2


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        "-m method=dense,emoe method.num_experts=32",
        "-m method=gmoe,emoe_learn method.router_dim=128",  # the default method has no such option
        "-m method=dense,gmoe method.router_dim=64,128",
        "-m model=gpt2_tiny task=glue_mini/rte,wikitext_mini task.block_size=64",
    ],
)
def test_a_command_runs_each_combination_once(words, tmp_path):
    assert check_arguments(words.split()) == []
    command = [sys.executable, "-m", "moe_runner.train", *words.split(), "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = [line.split()[0] for line in done.stdout.splitlines() if " pending " in line]
    assert len(set(ids)) == len(ids) > 1
    assert "Could not override" not in done.stderr


def test_a_value_that_suits_no_combination_is_refused():
    words = "-m method=dense,emoe method.num_experts=32 method.top_k=40"
    assert check_arguments(words.split()) == [
        "method.top_k=40 is more than method.num_experts=32; use 1 to 32"
    ]


def test_only_a_sweep_is_rewritten():
    assert add_of_kinds(["method.top_k=8"]) == ["method.top_k=8"]
    assert add_of_kinds(["-m", "method.top_k=8", "seed=1"]) == ["-m", "++method.top_k=8", "seed=1"]
