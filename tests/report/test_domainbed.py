"""DomainBed's selection rules on hand-made checkpoints, computed by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from moe_runner.report.domainbed import (
    Choice,
    build_sheet,
    build_sheets,
    chosen_ids,
    scores,
    select,
)
from moe_runner.report.sheet import to_rich
from moe_runner.report.summary import print_results
from moe_runner.runs.result import Accuracy, Checkpoint
from tests.results import make_result

DOMAINS = ("a", "b", "c")


def run(held_out, curve, rate=1e-3, seed=0, method="emoe"):
    """Make a result; `curve` gives at every checkpoint (in, out) of a, b, c."""
    axes = {
        "method": method, "model": "vit_tiny", "suite": "domainbed", "task": f"pacs/{held_out}",
        "learning_rate": rate, "seed": seed,
    }  # fmt: skip
    checkpoints = tuple(
        Checkpoint(
            100 * number,
            1.0,
            0.5,
            0.5,
            {domain: Accuracy(*both) for domain, both in zip(DOMAINS, row, strict=True)},
        )
        for number, row in enumerate(curve, start=1)
    )
    return make_result(
        axes,
        metrics=("accuracy",),
        settings={"trainer.max_steps": 300},
        learning_curve=checkpoints,
    )


# Held out: a. The mean of b and c (out) is 0.5, 0.8, 0.6; a is 0.1, 0.2, 0.3 (in).
OF_A = run(
    "a",
    [
        [(0.1, 0.9), (1.0, 0.4), (1.0, 0.6)],
        [(0.2, 0.1), (1.0, 0.9), (1.0, 0.7)],
        [(0.3, 0.7), (1.0, 0.5), (1.0, 0.7)],
    ],
)
# The same at another rate: 0.7 at its best checkpoint, the last; a is 0.6 there (out 0.5).
OF_A_SLOWER = run(
    "a",
    [
        [(0.4, 0.0), (1.0, 0.1), (1.0, 0.1)],
        [(0.5, 0.0), (1.0, 0.2), (1.0, 0.2)],
        [(0.6, 0.5), (1.0, 0.8), (1.0, 0.6)],
    ],
    rate=1e-4,
)


def pair(held_out, ins, **options):
    """Make a run of a pair with the in-split accuracies of a, b, c at every checkpoint."""
    return run(held_out, [[(value, 0.0) for value in row] for row in ins], **options)


# On b, held out with a: 0.9, 0.2, 0.1; on c, held out with a: 0.3, 0.6, 0.9: means 0.6, 0.4, 0.5.
OF_A_AND_B = pair("a+b", [(0, 0.9, 0), (0, 0.2, 0), (0, 0.1, 0)])
OF_A_AND_C = pair("a+c", [(0, 0, 0.3), (0, 0, 0.6), (0, 0, 0.9)])


def test_training_domain_takes_the_checkpoint_that_is_best_on_the_other_domains():
    assert select([OF_A], "training_domain") == {
        "a": {0: Choice(pytest.approx(0.8), 0.2, 200, 1e-3)}
    }


def test_training_domain_takes_the_rate_that_is_best_on_the_other_domains():
    chosen = select([OF_A_SLOWER, OF_A], "training_domain")["a"][0]
    assert (chosen.learning_rate, chosen.test) == (1e-3, 0.2)


def test_oracle_takes_the_last_checkpoint_and_only_the_rate_by_the_test_domain():
    assert select([OF_A], "oracle") == {"a": {0: Choice(0.7, 0.3, 300, 1e-3)}}
    assert select([OF_A_SLOWER, OF_A], "oracle")["a"][0].learning_rate == 1e-3  # 0.7 > 0.5


def test_leave_one_domain_out_goes_by_the_domains_held_out_with_the_test_domain():
    results = [OF_A, OF_A_AND_B, OF_A_AND_C]
    chosen = select(results, "leave_one_domain_out")
    assert chosen == {"a": {0: Choice(pytest.approx(0.6), 0.1, 100, 1e-3)}}


def test_leave_one_domain_out_needs_every_pair_of_the_same_rate_and_trial():
    assert select([OF_A, OF_A_AND_B], "leave_one_domain_out") == {}
    other = pair("a+c", [(0, 0, 1)] * 3, seed=1)
    assert select([OF_A, OF_A_AND_B, other], "leave_one_domain_out") == {}
    other = pair("a+c", [(0, 0, 1)] * 3, rate=1e-4)
    assert select([OF_A, OF_A_AND_B, other], "leave_one_domain_out") == {}


def test_the_runs_behind_a_score_are_those_at_the_chosen_rate():
    slower_pair = pair("a+b", [(0, 0.9, 0)] * 3, rate=1e-4)
    ids = ("of a", "slower", "a and b", "a and c", "slower pair")
    every = [OF_A, OF_A_SLOWER, OF_A_AND_B, OF_A_AND_C, slower_pair]
    results = [replace(each, id=name) for each, name in zip(every, ids, strict=True)]
    assert chosen_ids(results, "training_domain") == ("of a",)
    assert chosen_ids(results, "leave_one_domain_out") == ("of a", "a and b", "a and c")


def test_leave_one_domain_out_reads_the_checkpoints_that_all_runs_have():
    shorter = pair("a+c", [(0, 0, 0.3), (0, 0, 0.9)])  # means 0.6, 0.55
    chosen = select([OF_A, OF_A_AND_B, shorter], "leave_one_domain_out")["a"][0]
    assert (chosen.step, chosen.validation) == (100, pytest.approx(0.6))


def test_scores_are_mean_and_standard_error_over_trials():
    flat = [[(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]]
    results = [
        run("a", [[(0.2, 0), (0, 1), (0, 1)]], seed=0),
        run("a", [[(0.6, 0), (0, 1), (0, 1)]], seed=1),
        run("b", flat, seed=0),
        run("b", flat, seed=1),
        run("c", flat, seed=0),
    ]
    found = scores(results, "training_domain")
    assert found["a"].mean == pytest.approx(0.4)
    assert found["a"].error == pytest.approx(0.2 / 2**0.5)  # population std 0.2, two trials
    assert str(found["a"]) == "40.0 ± 14.1"
    assert found["c"].n == 1
    # Only trial 0 has all domains: (0.2 + 0.5 + 0.5) / 3.
    assert found["average"].mean == pytest.approx(0.4)
    assert found["average"].n == 1


def test_without_one_domain_there_is_no_average():
    assert set(scores([OF_A], "training_domain")) == {"a"}


def shown(results, gaps) -> str:
    from moe_runner.report.summary import group

    stream = io.StringIO()
    console = Console(width=140, file=stream)
    for sheet in build_sheets(group(results), gaps):
        console.print(to_rich(sheet))
    return stream.getvalue()


def test_the_table_has_the_rules_and_says_what_is_missing():
    dense = run("a", [[(0.25, 0.5), (0, 1), (0, 1)]], method="dense")
    text = shown([dense, OF_A], {"vlcs/sun09": "no folder"})
    lines = [line for line in text.splitlines() if "vit_tiny" in line]
    assert [line.split("│")[1].split() for line in lines[::2]] == [
        ["training_domain"],
        ["leave_one_domain_out"],
        ["oracle"],
    ]
    assert "25.0" in lines[0]  # dense
    assert "20.0" in lines[1]  # emoe
    assert "not available" in lines[2]
    assert "30.0" in lines[5]
    assert "leave_one_domain_out needs the same command with task.pairs=true" in text
    assert "vlcs/sun09" in text
    assert "no folder" in text


def test_pairs_are_no_domains_of_the_table_and_its_hint_goes():
    text = shown([OF_A, OF_A_AND_B, OF_A_AND_C], {})
    assert "needs" not in text
    assert "a+b" not in text
    line = next(line for line in text.splitlines() if "leave_one_domain_out" in line)
    assert "10.0" in line


def test_a_command_of_other_tasks_prints_the_usual_table_too(capsys):
    print_results([make_result({"suite": "glue", "task": "cola"}), OF_A], {})
    text = capsys.readouterr().out
    assert "cola" in text
    assert "pacs: accuracy on the held-out domain" in text


def test_the_best_has_all_trials_and_is_not_equal_to_all_others():
    def entries(**accuracies) -> list[list[bool]]:
        """Tell of each system (rule: oracle) which of its cells are the best."""
        systems = {
            name: [run("a", [[(x, 0), (0, 1), (0, 1)]], seed=n) for n, x in enumerate(of_trials)]
            for name, of_trials in accuracies.items()
        }
        rows = build_sheet("pacs", systems).rows[-len(systems) :]
        return [[entry.best for entry in row[2:3]] for row in rows]

    assert entries(x=[0.9], y=[0.5, 0.6], z=[0.4, 0.6]) == [[False], [True], [False]]
    assert entries(x=[0.5, 0.6], y=[0.6, 0.5]) == [[False], [False]]
    assert entries(x=[0.5]) == [[True]]
