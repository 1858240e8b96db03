"""The pictures, and how an analysis lies in its folder and stands on a page."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np
import pytest

from moe_runner.analysis.drawing import KINDS, draw_sets, draw_subject, shorten, some
from moe_runner.analysis.numbers import cosines
from moe_runner.analysis.records import Layer, Loads, Subject, Tokens, told_apart
from moe_runner.analysis.sheets import compared_sets, sets_sheet, subject_sheets
from moe_runner.analysis.stored import (
    Analysis,
    Picture,
    analyses_of,
    read_analysis,
    write_analysis,
)
from moe_runner.report.page import write_page
from moe_runner.report.sheet import Entry, Sheet, to_csv
from moe_runner.runs.objects import StoreError
from moe_runner.runs.store import Store

PNG = b"\x89PNG\r\n\x1a\n"
RUN = "0123456789abcdef"


def make_layer(name: str = "encoder 0", num_experts: int = 4, seed: int = 0, **more) -> Layer:
    """Make what was seen of 60 tokens in 12 examples; a token goes to the expert of its number."""
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, num_experts, 60)
    vectors = rng.normal(size=(num_experts, 8))
    fields = {
        "tokens": Tokens(np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12), identity),
        "chosen": np.eye(num_experts, dtype=bool)[identity],
        "tied": 0.0,
        "keys": cosines(vectors),
        "outputs": cosines(vectors),
        "split": True,
        "energy": rng.random((60, num_experts)).astype(np.float32),
        "random_groups": 0.4,
    }
    return Layer(name, **{**fields, **more})


def make_subject(**more) -> Subject:
    """Make a subject of one layer whose vocabulary is a number, a word and two determiners."""
    layer = make_layer()
    fields = {
        "name": "abc",
        "title": "emoe of tests",
        "sets": {"validation": [layer], "other": [make_layer(seed=1)]},
        "before": [make_layer(seed=2)],
        "over_training": [Loads("encoder 0", np.array([5, 10]), np.array([[1, 2, 3, 4]] * 2))],
        "vocabulary": ("7", "dog", "the", "a"),
        "kinds": (2, 17, 3, 3),
    }
    return Subject(**{**fields, **more})


def with_hyper_expert() -> Layer:
    selections = np.eye(4, dtype=bool)
    return make_layer(
        energy=None, random_groups=None, split=False, norms=(3.0, 1.0), beside="HyperExpert",
        selections=selections, selection_tokens=np.full(4, 0.25), embeddings=np.eye(4),
    )  # fmt: skip


def test_every_kind_of_picture_is_drawn_with_a_labelled_scale(tmp_path):
    subject = make_subject(sets={"validation": [with_hyper_expert()]})
    for kind in KINDS:
        drawn = KINDS[kind](make_subject() if kind != "beside" else subject)
        assert drawn is not None, kind
        figure, caption = drawn
        assert caption.endswith(".")
        images = [ax for ax in figure.axes if ax.get_images()]
        scales = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
        assert len(images) == len(scales), kind
        assert all(ax.get_ylabel() for ax in scales)
    pictures = draw_subject(make_subject(), tmp_path)
    assert [p.file.name for p in pictures] == [f"abc-{k}.png" for k in KINDS if k != "beside"]
    assert all(p.file.read_bytes()[:8] == PNG for p in pictures)


def test_side_experts_of_many_layers_are_drawn_of_some():
    layers = [make_layer(f"encoder {i}", norms=(3.0, 1.0 + i)) for i in range(14)]
    drawn = KINDS["beside"](make_subject(sets={"validation": layers}))
    assert drawn is not None
    figure, caption = drawn
    assert len(figure.axes[0].patches) == 12
    assert figure.axes[0].patches[-1].get_height() == pytest.approx(100 * 14 / 17)
    assert caption.endswith("12 of 14 layers are shown.")


def test_what_is_not_known_is_not_drawn():
    undecided = make_subject(before=[make_layer(tied=1.0)])
    assert KINDS["change"](undecided) is None
    assert "the router starts at zero" in subject_sheets(undecided)["layers"].caption
    assert KINDS["change"](make_subject(before=[])) is None
    assert KINDS["beside"](make_subject()) is None
    pictures = replace(make_layer().tokens, identity=None)
    no_text = make_subject(sets={"images": [make_layer(tokens=pictures)]}, kinds=())
    assert KINDS["classes"](no_text) is None
    assert "no tokens (pictures)" in subject_sheets(no_text)["information"].caption


def test_names_of_experts_do_not_overlap_in_pictures_of_many():
    """The label of each column is narrower than the column, also of 64 experts."""
    subject = make_subject(
        sets={"validation": [make_layer(num_experts=64)]},
        over_training=[],
        vocabulary=("dog",) * 64,
        kinds=(17,) * 64,
    )
    for kind in ("load", "classes"):
        figure, _ = KINDS[kind](subject)
        figure.canvas.draw()
        labels = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
        assert len(labels) == (32 if kind == "load" else 64)  # in order, every second one
        overlaps = [a.x1 > b.x0 for a, b in zip(labels, labels[1:], strict=False)]
        assert not any(overlaps), kind


def test_sheets_have_the_figures():
    found = subject_sheets(make_subject())
    assert [entry.text for entry in found["activation"].rows[0]][:2] == ["encoder 0", "1 of 4"]
    known = {row[1].text: row for row in found["information"].rows}
    assert known["token"][2].text == "1.000"
    assert known["token"][4].text == "100.0"
    experts = {row[1].text: row for row in found["experts"].rows}
    assert experts["0"][4].text == "number"
    assert experts["1"][5].text == "dog"
    assert experts["2"][3].text == "0.00"
    assert sum(float(row[2].text) for row in experts.values()) == pytest.approx(100, abs=0.2)
    beside = subject_sheets(make_subject(sets={"validation": [with_hyper_expert()]}))["beside"]
    assert [entry.text for entry in beside.rows[0]] == [
        "encoder 0", "HyperExpert", "3", "1", "25.0", "4", "1.000", "1.000",
    ]  # fmt: skip


def test_sets_of_one_model_and_models_are_compared(tmp_path):
    one = make_subject()
    assert list(compared_sets([one])) == ["validation", "other"]
    two = replace(one, name="abd", title="moe of tests")
    compared = compared_sets([one, two])
    assert list(compared) == ["emoe", "moe"]
    sheet = sets_sheet("both", compared)
    assert [[entry.text for entry in row][:3] for row in sheet.rows] == [
        ["emoe", "encoder 0", "1.000"],
        ["moe", "encoder 0", "1.000"],
    ]
    picture = draw_sets("both", compared, tmp_path / "sets.png")
    assert picture is not None
    assert picture.file.read_bytes()[:8] == PNG
    assert draw_sets("one", {"a": {}}, tmp_path / "none.png") is None


def test_runs_of_one_title_are_told_apart_by_their_settings():
    one = make_subject(settings={"method.select": "top", "method.seed": 1, "weights": "x"})
    two = replace(one, settings={"method.select": "bottom", "method.seed": 1, "weights": "x"})
    other = make_subject(title="moe of tests", settings={"method.select": "top"})
    found = told_apart([one, two, other])
    assert [each.title for each in found] == [
        "emoe of tests select=top", "emoe of tests select=bottom", "moe of tests",
    ]  # fmt: skip
    assert [each.name for each in found] == ["abc", "abc-2", "abc-3"]
    assert list(compared_sets(found[:2])) == ["select=top", "select=bottom"]
    same = compared_sets([one, replace(one, name="abd")])
    assert list(same) == ["emoe of tests (abc)", "emoe of tests (abd)"]


def test_some_are_the_first_the_last_and_between():
    assert some(range(10), 4) == [0, 3, 6, 9]
    assert some([1, 2], 4) == [1, 2]
    assert len(shorten("x" * 100)) <= 40


@pytest.fixture
def stored(tmp_path):
    """Write an analysis of a run into a store; returns the store, the folder and the analysis."""
    store, folder = Store(tmp_path), tmp_path / "analysis" / "mine"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.csv").write_text("")
    sheet = Sheet(title="t", header=("h", "g"), rows=((Entry("1", True), Entry("2")),), caption="c")
    picture = Picture(folder / "a.png", "what it shows")
    analysis = Analysis(
        "mine", "title", (RUN,), ("note",), (sheet,), (picture,), ("a.csv", "a.png")
    )
    write_analysis(folder, analysis)
    return store, folder, analysis


def test_an_analysis_is_read_back_as_it_was(stored):
    store, folder, analysis = stored
    assert read_analysis(folder / "analysis.json") == analysis
    assert analyses_of(store, [RUN, "other"]) == [analysis]
    assert analyses_of(store, ["other"]) == []


def test_files_of_an_older_analysis_go_and_others_stay(stored):
    _, folder, analysis = stored
    (folder / "of the user.txt").write_text("")
    write_analysis(folder, replace(analysis, files=("a.png",)))
    left = {file.name for file in folder.iterdir()}
    assert left == {"a.png", "analysis.json", "of the user.txt"}


def test_a_run_that_was_repeated_since_is_told(stored):
    store, folder, analysis = stored
    result = store.folder(RUN) / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    os.utime(result, ns=(1, 1))
    assert analyses_of(store, [RUN]) == [analysis]
    os.utime(result, ns=(2**62, 2**62))
    (old,) = analyses_of(store, [RUN])
    assert old.notes == (f"Run again since this analysis: moe-report analyze {RUN}", "note")


@pytest.mark.parametrize("harm", ["{", "[]", '{"format": 2}', '{"format": 1, "name": "x"}'])
def test_a_damaged_analysis_is_a_line(stored, harm):
    store, folder, _ = stored
    (folder / "analysis.json").write_text(harm)
    with pytest.raises(StoreError, match=r"analysis.json is damaged .*analyse again"):
        analyses_of(store, [RUN])


def test_a_picture_that_is_gone_is_a_line(stored):
    store, folder, _ = stored
    (folder / "a.png").unlink()
    with pytest.raises(StoreError, match=r"a.png is gone"):
        analyses_of(store, [RUN])


def test_the_page_has_a_section_and_escapes_it(stored, tmp_path):
    store, _, analysis = stored
    hostile = replace(analysis, title="<script>alert(1)</script>\u202e")
    write_page(tmp_path / "page.html", [], [], {}, store, [hostile])
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("<img") == 1
    assert "what it shows" in page
    assert re.findall(r'<td[^>]*class="best"[^>]*>(.*?)</td>', page) == ["1"]
    assert "All runs" not in page


def test_texts_of_tokens_are_no_formula_in_a_csv():
    hostile = make_subject(vocabulary=("=1+1", "@x", "+y", "-z"))
    text = to_csv(subject_sheets(hostile)["experts"])
    assert "\n=" not in text
    assert ",=" not in text
