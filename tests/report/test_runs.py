"""`moe-report runs`, `show`, `compare` and `page`: runs of one's own."""

from __future__ import annotations

import csv
import dataclasses
import shutil

import pytest

from moe_runner.report import command
from moe_runner.report.stored import differing, rows_of, same, shortest, varied
from moe_runner.runs.result import Checkpoint, write_result
from moe_runner.runs.store import Store
from tests.report.test_beside import plan, study  # noqa: F401
from tests.results import make_result, scores

GRID = study(
    {"method": "dense", "task": "glue_mini/rte", "seed": [0, 1, 2]},
    {"method": "emoe", "method.top_k": [16, 32], "task": "glue_mini/rte", "seed": [0, 1, 2]},
    {"method": "dense", "task": "glue_mini/cola", "seed": 0},
)


@pytest.fixture
def place(tmp_path, plan):  # noqa: F811
    """A store of ten runs, of which that on cola is not done."""
    store = Store(tmp_path / "out")
    for job in plan(GRID).jobs:
        run = job.run
        folder = store.folder(run.id)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(run.to_yaml())
        if run.task_name == "cola":
            continue
        gain = {"dense": 0.0}.get(run.method.name, 0.1)
        primary = 0.5 + gain + 0.01 * run.seed
        curve = tuple(
            Checkpoint(step, step / 8, 0.7, primary - 0.1 * (8 - step), {}) for step in (4, 8)
        )
        result = make_result(
            run.axes(), primary, id=run.id, settings=run.settings(), metrics=("accuracy",),
            id_metrics={"validation": scores(primary, accuracy=primary)},
            ood_metrics={"far": scores(0.4, accuracy=0.4), "gone": None}, learning_curve=curve,
        )  # fmt: skip
        write_result(folder / "result.json", result)
    return store


@pytest.fixture
def report(place, capsys, monkeypatch):
    """Run a subcommand; its exit code and what it printed."""

    def run(*words: str, width: int = 150) -> tuple[int, str]:
        monkeypatch.setattr("moe_runner.console.WIDTH", width)
        code = command.run([*words, f"output={place.root.parent}"])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def ids(place, **axes) -> list[str]:
    rows = rows_of(place)
    return [
        row.id for row in rows if all(row.value(k.replace("__", ".")) == v for k, v in axes.items())
    ]


def test_runs_are_listed_with_what_differs(report, place):
    code, text = report("runs", "task=rte")
    assert code == 0
    assert text.startswith("9 runs in")
    lines = [line for line in text.splitlines() if "emoe bert_tiny rte" in line]
    assert len(lines) == 6
    assert all("seed" in line and "top_k=" in line for line in lines)
    assert "num_experts" not in text  # all have the same
    assert "accuracy 61.0" in text
    assert "accuracy 51.0" in text


def test_a_narrow_terminal_loses_nothing(report):
    _, text = report("runs", width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["method=emoe"], 6),
        (["method=emoe", "method.top_k=16"], 3),
        (["method.top_k=16,32", "seed=0"], 2),
        (["state=done"], 9),
        (["state=pending"], 1),
        (["learning_rate=5e-4"], 10),
        ([], 10),
    ],
)
def test_runs_are_filtered_by_anything(report, words, number):
    code, text = report("runs", *words)
    assert code == 0
    assert text.startswith(f"{number} runs in")


def test_runs_are_sorted(report):
    _, text = report("runs", "method=emoe", "method.top_k=16", "sort=-score")
    found = [line.split("accuracy ")[1][:4] for line in text.splitlines() if "accuracy" in line]
    assert found == ["62.0", "61.0", "60.0"]
    _, text = report("runs", "sort=score")
    assert "pending" in text.splitlines()[-3]  # without a score it is last


def test_nothing_is_said_in_a_line(report, tmp_path):
    assert report("runs", "task=qqp") == (0, f"no runs in {tmp_path}/out with these values\n")
    assert command.run(["runs", f"output={tmp_path}/empty"]) == 0
    assert command.run(["page", f"output={tmp_path}/empty", "method.top_k=8"]) == 0
    assert command.run(["page", f"output={tmp_path}/empty", "nope=8"]) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs", "methd=emoe"], "methd=emoe is not an option of these runs; did you mean method?"),
        (["runs", "sort=scor"], "sort=scor is not an option; did you mean score?"),
        (["runs", "emoe"], "emoe is not an option of moe-report runs"),
        (["show"], "moe-report show takes one id, not none; moe-report runs lists them"),
        (["compare", "abc"], "moe-report compare takes 2 ids or more, not abc; moe-report"),
        (["show", "zzzz"], "'zzzz' is not a run in"),
        (["page", "format=pdf"], "format=pdf is not an option"),
    ],
)
def test_a_mistake_is_a_line(report, words, line):
    code, text = report(*words)
    assert code == 2
    assert text.startswith(line), text


def test_a_csv_has_everything(report, tmp_path):
    file = tmp_path / "runs.csv"
    report("runs", "method=emoe", "sort=seed", f"to={file}")
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert {row["method.top_k"] for row in rows} == {"16", "32"}
    assert float(rows[0]["primary"]) == pytest.approx(60.0)
    assert float(rows[0]["ood/far/accuracy"]) == pytest.approx(40.0)


def test_a_run_is_shown(report, place):
    (run_id,) = ids(place, method="dense", task="rte", seed=2)
    code, text = report("show", run_id[:12])
    assert code == 0
    assert "trainer.epochs" in text
    assert "validation accuracy" in text
    assert "52.0" in text
    assert "out of domain: far accuracy" in text
    assert "not available" in text  # the set that is not there
    assert str(place.folder(run_id)) in text


def test_runs_are_compared(report, place):
    dense, *_ = ids(place, method="dense", task="rte", seed=0)
    (emoe,) = ids(place, method="emoe", seed=0, **{"method__top_k": 16})
    (other,) = ids(place, method="emoe", seed=0, **{"method__top_k": 32})
    code, text = report("compare", emoe, other)
    assert code == 0
    table = text.partition("scores")[0]
    assert "method.top_k" in table
    assert "seed" not in table
    assert "method.num_experts" not in table
    assert [line.split() for line in text.splitlines() if line.startswith("│ 4 ")] == [
        ["│", "4", "│", "20.0", "│", "20.0", "│"]
    ]
    _, text = report("compare", dense, emoe)
    assert "method.num_experts" in text.partition("scores")[0]  # what only one has


def test_runs_become_a_study_with_verdicts_and_a_page(report, place, tmp_path):
    code, text = report("page", "task=rte", "format=md,csv", f"to={tmp_path}/page")
    assert code == 0
    assert "own: what differs?" in text
    lines = text.splitlines()
    (line,) = (line for line in lines if "top-k 16 of 64" in line and "equal in" in line)
    assert "+10.00 ± 0.00 (3)" in line
    made = (tmp_path / "page" / "tables.md").read_text()
    assert "| dense | 51.0 ± 0.8 (3) |" in made


def test_what_is_damaged_is_named_and_the_others_are_listed(report, place):
    run_id = ids(place, method="dense", task="rte", seed=0)[0]
    (place.folder(run_id) / "result.json").write_text("{")
    code, text = report("runs")
    assert code == 0
    assert text.startswith("10 runs in")
    assert f"damaged: {place.folder(run_id)}/result.json is not readable" in text
    code, text = report("show", run_id)
    assert (code, text.startswith("damaged: ")) == (0, True)


def test_settings_of_a_recipe_do_not_count_as_differences(place):
    rows = rows_of(place)
    assert "method.top_k" in varied(rows)
    assert "seed" in differing(rows)
    assert "method.num_experts" not in varied(rows)
    assert shortest(["abcdefgh1", "abcdefgh2"]) == 9
    assert shortest([]) == 8


@pytest.mark.parametrize(
    ("value", "text", "equal"),
    [
        (0.001, "1e-3", True), (16, "16,32", True), (True, "true", True), (True, "1", False),
        ((8, 10), "[8,10]", True), ("last:1", "last:1", True), (None, "null", True),
        (3, "4", False),
    ],
)  # fmt: skip
def test_values_are_read_as_they_are_typed(value, text, equal):
    assert same(value, text) is equal


def add(place, plan, of, primary=lambda run: 0.5, ood=None, change=lambda run: run):  # noqa: F811
    """Put the finished runs of a grid into the store."""
    for job in plan(of).jobs:
        run = change(job.run)
        folder = place.folder(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(run.to_yaml())
        result = make_result(
            run.axes(), primary(run), id=run.id, settings=run.settings(), metrics=("accuracy",),
            id_metrics={"validation": scores(primary(run), accuracy=primary(run))},
            ood_metrics={name: scores(0.4, accuracy=0.4) for name in ood or ()}, data=run.data,
        )  # fmt: skip
        write_result(folder / "result.json", result)


@pytest.fixture
def own(tmp_path, plan, report, place):  # noqa: F811
    """Fill the store further, and give the rows of its page: row -> what its columns show."""
    shutil.rmtree(place.root)

    def rows(*filters: str) -> dict[str, dict[str, str]]:
        code, text = report("page", "format=csv", f"to={tmp_path}/page", *filters)
        assert code == 0, text
        with (tmp_path / "page" / "own.csv").open() as stream:
            first, *found = list(csv.reader(stream))
        ours = [i for i, name in enumerate(first) if "(accuracy" in name]
        return {row[0]: {first[i].partition(" (")[0]: row[i] for i in ours} for row in found}

    return rows


RTE = {"method": "dense", "task": "glue_mini/rte", "seed": [0, 1]}


def test_a_neutral_value_is_found_and_told(place, plan, own, report):  # noqa: F811
    of = {**RTE, "method": "emoe", "method.convert_at": ["both", "train"]}
    add(place, plan, study(of), lambda run: 0.8 if run.method.convert_at == "both" else 0.6)
    add(place, plan, study(RTE))
    assert own() == {
        "dense": {"bert_tiny rte": "50.0 ± 0.0 (2)"},
        "emoe, MoE throughout": {"bert_tiny rte": "80.0 ± 0.0 (2)"},
        "emoe, MoE in training only": {"bert_tiny rte": "60.0 ± 0.0 (2)"},
    }
    _, text = report("runs", "method=emoe")
    assert text.count("convert_at=both") == text.count("convert_at=train") == 2
    for word, number in (("method.convert_at=both", 2), ("task.train_fraction=1.0", 6)):
        assert report("runs", word)[1].startswith(f"{number} runs in")
    assert report("runs", "method.convert_at=eval")[1].startswith("no runs")
    both, train = (ids(place, **{"method__convert_at": value})[0] for value in ("both", "train"))
    table = report("compare", both, train)[1].partition("scores")[0]
    (line,) = (line for line in table.splitlines() if "method.convert_at" in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["both", "train"]


def test_two_suites_with_a_task_of_one_name_are_two_columns(place, plan, own, report):  # noqa: F811
    add(place, plan, study(RTE), lambda run: 0.6)

    def of_glue(run):
        return dataclasses.replace(run, task=dataclasses.replace(run.task, suite="glue"))

    add(place, plan, study(RTE), lambda run: 0.9, change=of_glue)
    assert own() == {"dense": {"glue": "90.0 ± 0.0 (2)", "glue_mini": "60.0 ± 0.0 (2)"}}
    assert report("runs")[1].count("suite glue_mini, seed") == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights": "hub bert at 0123456789"}, "weights 012345"),
        ({"data": {"train": "x"}}, "data "),
    ],
)
def test_other_weights_and_data_are_other_columns(place, plan, own, report, change, word):  # noqa: F811
    add(place, plan, study(RTE), lambda run: 0.6)
    other = {"change": lambda run: dataclasses.replace(run, **change)}
    add(place, plan, study(RTE), lambda run: 0.9, **other)
    found = own()["dense"]
    assert sorted(found.values()) == ["60.0 ± 0.0 (2)", "90.0 ± 0.0 (2)"]
    assert any(word in name for name in found)
    _, text = report("runs")
    assert word in text
    assert sum(f", {word.split()[0]} " in line for line in text.splitlines()) == 4


def test_other_targets_of_lora_are_other_rows(place, plan, own, report):  # noqa: F811
    of = {**RTE, "tuning": "lora", "model.lora_targets": [["query"], ["query", "key"]]}
    add(place, plan, study(of), lambda run: 0.5 + 0.1 * len(run.model.lora_targets))
    assert own() == {
        "lora targets [query]": {"bert_tiny rte": "60.0 ± 0.0 (2)"},
        "lora targets [query,key]": {"bert_tiny rte": "70.0 ± 0.0 (2)"},
    }
    assert report("runs")[1].count("lora_targets=[query,key]") == 2
    assert report("runs", "model.lora_targets=[query]")[1].startswith("2 runs in")
    (place.folder(place.ids()[0]) / "config.yaml").unlink()  # such a run is listed all the same
    assert report("runs")[1].startswith("4 runs in")


def test_a_seed_counts_once_whatever_sets_it_was_evaluated_on(place, plan, own, report):  # noqa: F811
    add(place, plan, study(RTE), lambda run: 0.5 + 0.1 * run.seed, ood=["overlap_traps"])
    add(place, plan, study({**RTE, "task.ood": [[]]}), lambda run: 0.5 + 0.1 * run.seed)
    assert own() == {"dense": {"bert_tiny rte": "55.0 ± 5.0 (2)"}}
    assert own("seed=0") == {"dense": {"bert_tiny rte": "50.0 (1)"}}
    _, text = report("runs")
    assert text.startswith("4 runs in")
    assert text.count("ood=[overlap_traps]") == text.count("ood=[]") == 2
