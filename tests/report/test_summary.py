"""Aggregation and the table at the end of a command, on hand-made results."""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
from fractions import Fraction

import pytest
from rich.console import Console

from moe_runner.options.errors import ConfigError
from moe_runner.report.summary import (
    aggregate,
    build_table,
    group,
    headline,
    mean_ranks,
    ranks_of,
)
from moe_runner.runs.result import Result, Scores
from moe_runner.tasks import gluex
from tests.report.test_beside import plan, study  # noqa: F401
from tests.results import make_result, scores


def result(
    method="emoe",
    task="cola",
    primary=0.5,
    seed=0,
    rate=1e-3,
    ood=None,
    further=None,
    suite="glue",
    **settings,
) -> Result:
    sets = {} if ood is None else ood
    return make_result(
        {"method": method, "suite": suite, "task": task, "learning_rate": rate, "seed": seed},
        primary,
        settings={"method.top_k": 16, "trainer.epochs": 10, **settings},
        id_metrics={"validation": scores(primary), **(further or {})},
        ood_metrics={k: None if v is None else scores(v) for k, v in sets.items()},
    )


def text(*args) -> str:
    stream = io.StringIO()
    Console(width=140, file=stream).print(build_table(*args))
    return stream.getvalue()


def test_the_best_rate_is_chosen_by_the_mean_over_seeds_and_ood_is_read_there():
    results = [
        result(primary=0.9, rate=1e-3, seed=0, ood={"a": 0.1}),
        result(primary=0.1, rate=1e-3, seed=1, ood={"a": 0.1}),
        result(primary=0.6, rate=2e-3, seed=0, ood={"a": 0.3}),
        result(primary=0.8, rate=2e-3, seed=1, ood={"a": 0.5}),
    ]
    cell = aggregate(results)
    assert cell.learning_rate == 2e-3
    assert cell.mean == pytest.approx(0.7)
    assert cell.std == pytest.approx(0.1)  # of the population, not of a sample
    assert cell.ood == {"a": pytest.approx(0.4)}
    assert cell.n == 2


def test_a_set_that_no_run_has_is_not_available():
    rows = [result(ood={"imdb": None, "yelp": 0.25}, further={"validation_mismatched": None})]
    shown = text(rows, {})
    assert "imdb not available, yelp 25.0" in shown
    assert "50.0 (mismatched not available)" in shown


def test_mean_ranks_share_ties_and_skip_sets_that_one_system_lacks():
    cells = {
        ("cola", "x"): aggregate([result(ood={"a": 0.9, "b": 0.5, "c": 0.1})]),
        ("cola", "y"): aggregate([result(ood={"a": 0.1, "b": 0.5, "c": None})]),
    }
    # a: 1 and 2; b: tied at 1.5; c is not ranked
    assert mean_ranks(cells) == {"x": 1.25, "y": 1.75}
    assert mean_ranks({("cola", "x"): cells["cola", "x"]}) == {}


def test_twitter_is_ranked_once_and_mismatched_not_at_all():
    """By hand: with each of the sets for itself y would win two ranks of three, x one."""
    of_x = {"qqp": 0.9, "twitter_pit2015": 0.5, "twitter_url": 0.5}
    of_y = {"qqp": 0.1, "twitter_pit2015": 0.6, "twitter_url": 0.6}
    cells = {("mrpc", name): aggregate([result(ood=o)]) for name, o in (("x", of_x), ("y", of_y))}
    assert mean_ranks(cells) == {"x": 1.5, "y": 1.5}  # qqp 1 and 2, twitter 2 and 1
    of_y["twitter_url"] = 0.3  # the mean of both is 0.45 now
    cells["mrpc", "y"] = aggregate([result(ood=of_y)])
    assert mean_ranks(cells) == {"x": 1.0, "y": 2.0}
    of_y["twitter_url"] = None  # what one of them lacks is not ranked: 0.5 against 0.6
    cells["mrpc", "y"] = aggregate([result(ood=of_y)])
    assert mean_ranks(cells) == {"x": 1.5, "y": 1.5}

    of_x, of_y = {"snli": 0.9, "mismatched": 0.1}, {"snli": 0.1, "mismatched": 0.9}
    for task in ("mnli", "glue/mnli", "bert_large mnli"):
        cells = {(task, n): aggregate([result(ood=o)]) for n, o in (("x", of_x), ("y", of_y))}
        assert mean_ranks(cells) == {"x": 1.0, "y": 2.0}
    cells = {("cola", n): aggregate([result(ood=o)]) for n, o in (("x", of_x), ("y", of_y))}
    assert mean_ranks(cells) == {"x": 1.5, "y": 1.5}  # a set of that name of another task


def test_the_ranked_sets_of_glue_are_the_paper_s_15_pairs_and_13_sets():
    pairs = {
        (task, one)
        for task, sets in gluex.PAPER.items()
        for name in sets
        if (one := gluex.ranked_as(task, name)) is not None
    }
    assert len(pairs) == 15
    names = {one for _, one in pairs}
    assert {"sick_sts", "sick_nli"} < names  # one set, SICK, with two kinds of labels
    assert len(names) - 1 == 13
    of_average = {gluex.ranked_as("", f"{task} > {name}") for task, name in (
        ("mrpc", "twitter_url"), ("mrpc", "twitter_pit2015"), ("qqp", "twitter_url"),
        ("mnli", "mismatched"),
    )}  # fmt: skip
    assert of_average == {"mrpc > twitter", "qqp > twitter", None}


@pytest.mark.parametrize("lower", [False, True])
def test_ranks_of_simulated_ties_are_those_of_exact_fractions(lower):
    """Accuracies of some examples over seeds: many means are equal as fractions, not as floats."""
    rng = random.Random(0)
    split_by_floats = ties = 0
    for _ in range(2000):
        examples = rng.choice([3, 7, 49, 200, 277, 408, 1043, 5463])
        seeds = rng.choice([2, 3, 5, 9])
        rights: dict[str, list[int]] = {}
        total = rng.randrange(examples)
        for name in "abcde":
            own = [rng.randrange(examples + 1) for _ in range(seeds)]
            if rng.random() < 0.5:  # the same sum in another way
                own = split(rng, total, seeds, examples)
            rights[name] = own
        exact = {n: Fraction(sum(own), seeds * examples) for n, own in rights.items()}
        floats = {n: sum(k / examples for k in own) / seeds for n, own in rights.items()}
        for one, other in itertools.combinations("abcde", 2):
            ties += exact[one] == exact[other]
            split_by_floats += exact[one] == exact[other] and floats[one] != floats[other]
        expected = {}
        for name, score in exact.items():
            better = sum(s < score if lower else s > score for s in exact.values())
            equal = sum(s == score for s in exact.values())
            expected[name] = better + (equal + 1) / 2
        assert ranks_of(floats, lower=lower) == expected
    assert ties > 1000
    assert split_by_floats > 50  # so comparing floats would not do


def split(rng: random.Random, total: int, parts: int, most: int) -> list[int]:
    """Split a whole number into parts of at most so much."""
    own = []
    for left in range(parts, 0, -1):
        part = rng.randint(max(0, total - most * (left - 1)), min(most, total))
        part = total if left == 1 else part
        own.append(part)
        total -= part
    return own


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.1 + 0.2, 0.3, 0.2], [1.5, 1.5, 3]),
        ([1e4 / 3, 1e4 / 3 + 1e-11, 7.0], [1.5, 1.5, 3]),  # perplexities
        ([0.5, 0.5 - 1e-7, 0.5 - 2e-7], [1, 2, 3]),  # one example of ten million
        ([0.0, 5e-17, -5e-17], [2, 2, 2]),
        ([-0.2], [1]),
    ],
)
def test_ranks_by_hand(scores, ranks):
    names = [str(i) for i in range(len(scores))]
    assert list(ranks_of(dict(zip(names, scores, strict=True)), lower=False)[n] for n in names) == (
        ranks
    )


def test_the_table_has_averages_for_systems_with_all_tasks_only():
    rows = [
        result("dense", "cola", 0.4, ood={"a": 0.2}),
        result("emoe", "cola", 0.6, ood={"a": 0.4}),
        result("dense", "rte", 0.6),
    ]
    shown = text(rows, {"qqp": "no data"})
    average = next(line for line in shown.splitlines() if "average" in line)
    assert "dense bert_tiny" in average
    assert "50.0" in average
    assert "no data" in next(line for line in shown.splitlines() if "qqp" in line)
    assert "chosen on the ID set shown" in shown


def test_runs_with_other_settings_are_other_systems_not_seeds():
    rows = [
        result(primary=0.2, **{"method.top_k": 16}),
        result(primary=0.6, **{"method.top_k": 32}),
        result(task="rte", primary=0.8, **{"method.top_k": 16, "trainer.epochs": 3}),
    ]
    shown = text(rows, {})
    assert "emoe bert_tiny, top-k 16" in shown
    assert "emoe bert_tiny, top-k 32" in shown
    assert "±" not in shown
    assert "epochs" not in shown  # the tasks have their own; within a task they are equal


def test_tasks_of_two_suites_stay_apart():
    shown = text([result(primary=0.3), result(primary=0.6, suite="glue_mini")], {})
    assert "glue/cola" in shown
    assert "glue_mini/cola" in shown
    assert "±" not in shown


def test_a_perplexity_is_shown_as_it_is_and_the_lower_one_is_better():
    def of(method: str, perplexity: float, test: float, other: float, rate=1e-3) -> Result:
        return make_result(
            {"method": method, "task": "text", "learning_rate": rate},
            perplexity,
            metrics=("perplexity",),
            id_metrics={
                "validation": scores(perplexity),
                "test": scores(test, perplexity=test),
            },
            ood_metrics={"other": scores(other, perplexity=other), "choice": scores(other / 100)},
            best_epoch=2.0,
        )

    results = [of("dense", 62.237, 61.5, 90.0), of("moe", 60.0, 59.0, 80.0)]
    shown = text(results, {})
    assert "62.24 (test 61.50)" in shown
    assert "other 90.00, choice 90.0" in shown
    assert headline(results[0]) == (
        "perplexity 62.24 at epoch 2; out of domain: other 90.00, choice 90.0; 1 s"
    )
    cells = {("text", row.axes.method): aggregate([row]) for row in results}
    # moe has the better (lower) perplexity and the worse share of right choices
    assert mean_ranks(cells) == {"dense": 1.5, "moe": 1.5}
    rates = [of("moe", 70.0, 1.0, 1.0), of("moe", 60.0, 1.0, 1.0, rate=1.0)]
    assert aggregate(rates).mean == 60.0


def test_the_majority_class_has_a_line_and_constant_predictions_a_mark():
    first, second = (
        make_result(
            {"method": method}, value, metrics=("accuracy",),
            id_metrics={"validation": Scores({"accuracy": value}, value, 1.0, 10, {}, 0.65, flat)},
            ood_metrics={"far": Scores({"accuracy": 0.5}, 0.5, 1.0, 10, {}, 0.7, False)},
        )
        for method, value, flat in (("dense", 0.65, True), ("emoe", 0.8, False))
    )  # fmt: skip
    shown = text([first, second], {})
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert ["cola", "accuracy ↑", "dense bert_tiny", "65.0 ‡", "far 50.0", "1"] in lines
    assert ["", "", "emoe bert_tiny", "80.0", "far 50.0", "1"] in lines
    assert ["", "", "majority class", "65.0", "far 70.0", ""] in lines
    assert "‡ every example got the same answer" in " ".join(shown.split())


def of_runs(made, primary=lambda run: 0.5) -> list[Result]:
    """Results of the runs of a plan."""
    return [
        make_result(
            job.run.axes(), primary(job.run), id=job.run.id, settings=job.run.settings(),
            data=job.run.data, metrics=("accuracy",),
        )
        for job in made.jobs
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "key", "words"),
    [
        ("emoe", "method.convert_at", {"both": "MoE throughout", "train": "MoE in training only"}),
        ("emoe", "method.backend", {"auto": "backend auto", "kernel": "backend kernel"}),
        ("dense", "task.train_fraction", {1.0: "100% of the data", 0.5: "50% of the data"}),
        ("emoe", "protocol.gate_noise", {0.0: "gate noise 0.0", 1.0: "gate noise 1.0"}),
        ("hypermoe", "method.hypernet_lr_scale", {
            1.0: "hypernetwork's rate x 1.0", "auto": "hypernetwork's rate automatic"}),
    ],
)  # fmt: skip
def test_an_option_at_its_neutral_value_is_a_system_of_its_own(plan, method, key, words):  # noqa: F811
    of = {"method": method, "task": "glue_mini/rte", "seed": [0, 1], key: list(words)}
    if method == "hypermoe":
        of["model"] = "switch_tiny"
    found = of_runs(plan(study(of)))
    for results in (found, found[::-1]):  # whichever comes first
        groups = group(results)
        assert {name.partition(", ")[2] for _, name in groups} == set(words.values())
        assert {aggregate(rows).n for rows in groups.values()} == {2}


def test_other_data_and_other_targets_of_lora_are_other_systems(plan):  # noqa: F811
    of = {"method": "emoe", "tuning": "lora", "task": "glue_mini/rte", "seed": [0, 1]}
    made = plan(study({**of, "model.lora_targets": [["query"], ["query", "key"]]}))
    runs = {job.run.id: job.run for job in made.jobs}
    groups = group(of_runs(made), runs)
    assert [name for _, name in groups] == [
        "emoe bert_tiny lora, lora targets [query]", "emoe bert_tiny lora, lora targets [query,key]"
    ]  # fmt: skip
    assert [len(rows) for rows in groups.values()] == [2, 2]
    seeds = [result(seed=0), result(seed=1)]
    other = [dataclasses.replace(each, id="other", data={"train": "another"}) for each in seeds]
    assert [len(rows) for rows in group([*seeds, *other]).values()] == [2, 2]
    assert all(", data " in name for _, name in group([*seeds, *other]))


def test_a_seed_counts_once_whatever_sets_it_was_evaluated_on():
    bare = [dataclasses.replace(result(primary=0.2 * n, seed=n), id=f"bare {n}") for n in (1, 2)]
    more = result(primary=0.2, seed=1, ood={"a": 0.4, "b": None})
    more = dataclasses.replace(more, id="more", data={"ood/a": "x", "ood/b": "not available"})
    for rows in ([*bare, more], [more, *bare]):
        ((_, grouped),) = group(rows).items()
        cell = aggregate(grouped)
        assert (cell.n, cell.mean, set(cell.ids)) == (2, pytest.approx(0.3), {"more", "bare 2"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"settings": {"task.train_fraction": 0.5}}, "task.train_fraction (1.0, 0.5)"),
        ({"data": {"train": "another"}}, "task.data;"),
        ({}, "options of the model"),
    ],
)
def test_runs_that_are_no_repetitions_are_not_averaged(change, line):
    one = make_result(id="0123456789")
    other = dataclasses.replace(one, id="9876543210", **change)
    with pytest.raises(ConfigError) as caught:
        aggregate([one, other])
    assert "the runs 01234567 and 98765432 have one rate and seed and differ in" in str(
        caught.value
    )
    assert line in str(caught.value)


def test_a_rate_that_lacks_seeds_is_not_chosen():
    rows = [result(primary=0.7, seed=seed, rate=1e-3) for seed in range(3)]
    rows += [result(primary=0.9, seed=2, rate=2e-3), result(primary=0.8, seed=2, rate=3e-3)]
    cell = aggregate(rows)
    assert (cell.learning_rate, cell.n) == (1e-3, 3)
    assert aggregate(rows[2:]).learning_rate == 2e-3  # of equally many the best


def test_percentages_and_perplexities_have_no_average():
    def of(method: str, task: str, primary: float, metric: str) -> Result:
        return make_result({"method": method, "task": task}, primary, metrics=(metric,),
                           ood_metrics={"far": scores(primary)})  # fmt: skip

    rows = [of("dense", "cola", 0.5, "matthews"), of("dense", "text", 30.0, "perplexity")]
    assert "average" not in text(rows, {})
    rows += [of("moe", "cola", 0.4, "matthews"), of("moe", "text", 40.0, "perplexity")]
    (line,) = (line for line in text(rows, {}).splitlines() if "average" in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells == ["average", "", "dense bert_tiny", "", "mean rank 1.50 of 2", ""]
