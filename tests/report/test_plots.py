"""What plots show: axes with their metric, published points, one colour scale, means and bands."""

from __future__ import annotations

import warnings

import pytest

from moe_runner.report.canvas import (
    COLOURS,
    MOST_PANELS,
    legend,
    measured,
    panels,
    swatch,
    unit,
    widen,
)
from moe_runner.report.plot_kinds import heatmap, points, published_points, series
from moe_runner.report.plot_runs import by_step, curves, scatter
from moe_runner.report.published import published_tables
from moe_runner.report.study_table import tabulate
from moe_runner.runs.result import Checkpoint
from tests.plans import planned
from tests.report.test_beside import plan, results, study  # noqa: F401
from tests.results import make_result

GRID = study({"method": ["dense", "emoe"], "task": "glue_mini/rte", "seed": [0, 1, 2]})


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (("accuracy",), "accuracy, % (higher is better)"),
        (("perplexity",), "perplexity (lower is better)"),
        (("pearson", "spearman"), "pearson + spearman, %\n(higher is better)"),
        (("accuracy", "accuracy"), "accuracy, % (higher is better)"),
    ],
)
def test_an_axis_names_metric_unit_and_direction(metrics, words):
    assert measured(metrics) == words
    assert unit(()) == "score, %"


def test_points_are_means_with_errors_on_a_zoomed_axis(plan):  # noqa: F811
    made = plan(GRID)
    score = {"dense": 0.80, "emoe": 0.82}
    found = results(made, lambda run: score[run.method.name] + 0.01 * run.seed)
    runs = [job.run for job in made.jobs]
    figure = points(made, tabulate(made, found), runs, {})
    (ax,) = figure.axes
    assert ax.get_xlabel() == "accuracy, % (higher is better)"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dense", "emoe"]
    low, high = ax.get_xlim()
    assert 75 < low < 80
    assert 84 < high < 90
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert means == pytest.approx([81.0, 83.0])
    bars = [path.vertices[:, 0] for group in ax.collections for path in group.get_paths()]
    assert bars[0] == pytest.approx([81 - 1 / 3**0.5, 81 + 1 / 3**0.5])  # std of a sample is 1


def test_published_points_stand_beside_ours_where_they_compare():
    table = published_tables()["emoe-layers"]
    paper = planned("emoe_layers", "paper")
    found = dict(published_points(paper, tabulate(paper, {})))
    place = table.columns.index("average")
    assert found["dense", "all"] == table.rows["standard"][place]
    mini = planned("emoe_layers", "mini")
    assert dict(published_points(mini, tabulate(mini, {}))) == {}  # toy models are elsewhere


def test_a_heat_map_has_one_labelled_scale_and_updates_on_the_axis(plan):  # noqa: F811
    made = plan(GRID)
    found = results(made, lambda run: 0.5)
    lines = {
        job.run.id: [
            {"step": step, "load": [[1, 1, 2 + 4 * (job.run.method.name == "emoe")]]}
            for step in (32, 64)
        ]
        for job in made.jobs
    }
    figure = heatmap(made, tabulate(made, found), [job.run for job in made.jobs], lines)
    *shown, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in shown] == ["dense, seed 0", "emoe, seed 0"]
    assert {ax.images[0].get_clim() for ax in shown} == {(0.0, 0.75)}
    assert bar.get_ylabel() == "share of the choices"
    assert [tick.get_text() for tick in shown[0].get_yticklabels()] == ["32", "64"]
    assert shown[0].get_ylabel() == "updates"


def test_curves_are_a_mean_and_a_band_over_the_runs(plan):  # noqa: F811
    made = plan(GRID)
    found = {}
    for job in made.jobs:
        curve = tuple(
            Checkpoint(step, 1.0, 0.7, 0.5 + 0.1 * job.run.seed + step / 100, {}) for step in (4, 8)
        )
        axes = job.run.axes()
        found[job.run.id] = make_result(
            axes, 0.5, id=job.run.id, metrics=("accuracy",), learning_curve=curve
        )
    figure = curves(made, tabulate(made, found), [job.run for job in made.jobs], found)
    (ax,) = figure.axes
    assert [line.get_ydata() for line in ax.lines] == [pytest.approx([64.0, 68.0])] * 2
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == (pytest.approx(54.0), pytest.approx(78.0))
    assert ax.get_xlabel() == "updates"
    assert scatter(made, tabulate(made, found), [j.run for j in made.jobs], found) is None


def test_a_step_that_not_all_runs_have_is_left_out():
    def run(*steps: int):
        points = tuple(Checkpoint(step, 1.0, 0.7, 0.5, {}) for step in steps)
        return make_result(learning_curve=points)

    assert by_step([run(1, 2), run(1, 3)]) == {1: [50.0, 50.0]}
    assert by_step([run(1), run(2)]) == {1: [50.0], 2: [50.0]}


def test_in_against_out_of_domain_names_both_metrics(plan):  # noqa: F811
    made = plan(GRID)
    found = results(made, lambda run: 0.5 + 0.1 * run.seed)
    figure = scatter(made, tabulate(made, found), [job.run for job in made.jobs], found)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "in domain: accuracy, %"
    assert len(ax.lines) == 6
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["dense", "emoe", "set ood"]


def test_rows_beyond_the_colours_have_hollow_markers(plan):  # noqa: F811
    rates = [1e-5 * (1 + number) for number in range(2 * len(COLOURS))]
    made = plan(
        study({"trainer.learning_rate": rates, "task": "glue_mini/rte"}, rows=["learning_rate"])
    )
    found = results(made, lambda run: 0.7, lambda run: 0.6)
    figure = scatter(made, tabulate(made, found), [job.run for job in made.jobs], found)
    looks = {(line.get_color(), line.get_fillstyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(rates)
    rows = figure.legends[0].get_lines()[: len(rates)]
    assert {(line.get_color(), line.get_fillstyle()) for line in rows} == looks


def test_what_is_left_out_is_said_and_one_value_has_an_axis():
    names = [f"task {number}" for number in range(MOST_PANELS + 3)]
    figure, axes = panels("title", names, 1.0)
    assert len(axes) == MOST_PANELS
    assert figure.get_suptitle() == f"title (the first {MOST_PANELS} of {len(names)})"
    axes[0].plot([50.0], [1.0], "o")
    axes[0].set_xlim(49.99, 50.01)
    widen(axes[0], "x")
    assert axes[0].get_xlim() == (49.5, 50.5)


def test_a_long_legend_makes_the_figure_taller_and_leaves_the_panels_their_room(tmp_path):
    sizes = []
    for count in (3, 60):
        figure, axes = panels("title", ["one", "two"], 2.0)
        legend(figure, [swatch(f"a row with a name of its own, {i}") for i in range(count)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of panels that were pressed to nothing
            figure.savefig(tmp_path / "figure.png")
        sizes.append(axes[0].get_window_extent().height)
    assert sizes[1] > 0.6 * sizes[0]


@pytest.mark.parametrize(
    ("columns", "panels"),
    [
        (("task",), 3),  # no numbers: a panel each, and the average
        (("task", "trainer.epochs"), 3),  # two columns of one number
        (("trainer.epochs",), 1),
    ],
)
def test_a_series_whose_columns_are_no_numbers_is_drawn_as_points(plan, columns, panels):  # noqa: F811
    tasks = ["glue_mini/rte", "glue_mini/cola"] if "task" in columns else "glue_mini/rte"
    epochs = 1 if "task" in columns else [1, 2]
    made = plan(study({"method": "dense", "task": tasks, "trainer.epochs": epochs},
                      columns=columns))  # fmt: skip
    found = results(made, lambda run: 0.5)
    figure = series(made, tabulate(made, found), [job.run for job in made.jobs], {})
    assert len(figure.axes) == panels


def test_a_title_that_is_wider_than_the_figure_is_broken():
    figure, _ = panels("words of a long title " * 12 + "\nend", ["a"], 2.0)
    figure.canvas.draw()
    title = figure._suptitle
    assert title.get_window_extent().x1 <= figure.bbox.x1
    assert title.get_text().endswith("\nend")
