"""`moe-report analyze` as a user types it, on tiny kept runs and model folders."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from moe_runner.analysis import drawing
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.report.command import run as moe_report
from moe_runner.runs.store import Store
from moe_runner.training.execute import execute

SMALL_HYPER = HyperMoE(num_experts=4, width=4, embedding_dim=6, layers=(1,))


@pytest.fixture
def kept(make_settings, only_run):
    """Carry out a run and keep its weights; returns its result and the output folder."""

    def build(family="bert", method=None, **trainer):
        settings = make_settings(family, method or EMoE(num_experts=8, top_k=2), **trainer)
        settings = dataclasses.replace(settings, keep_model="best")
        output = Path(settings.paths.output)
        return execute(only_run(settings), settings, Store(output)), output

    return build


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave the pictures out, which take seconds."""
    monkeypatch.setattr(drawing, "draw_subject", lambda *_: [])
    monkeypatch.setattr(drawing, "draw_sets", lambda *_: None)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def is_png(file: Path) -> bool:
    return file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_kept_run_is_analysed_to_the_figures_of_its_result(
    kept, capsys, monkeypatch, no_pictures
):
    monkeypatch.setenv("COLUMNS", "80")
    result, output = kept(epochs=2)
    assert moe_report(["analyze", result.id[:8], f"output={output}", "threads=1"]) == 0
    out = output / "analysis" / result.id[:8]
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-2])) <= 80
    (layer,) = rows(out / f"{result.id}-layers.csv")
    assert layer["selected"] == "2 of 8"
    # the run's own figures, of the same 40 examples
    assert float(layer["changed"]) == pytest.approx(
        100 * result.routing["routing/changed"], abs=0.06
    )
    routing = result.id_metrics["validation"].routing
    assert float(layer["even"]) == pytest.approx(routing["routing/entropy"], abs=6e-4)
    assert float(layer["most"]) == pytest.approx(100 * routing["routing/max_share"], abs=0.06)
    held = rows(out / f"{result.id}-activation.csv")[0]
    assert held["any"] == "25.0"
    assert 0 < float(held["selected"]) <= float(held["best"]) <= 100
    experts = rows(out / f"{result.id}-experts.csv")
    assert len(experts) == 8
    assert sum(float(row["share"]) for row in experts) == pytest.approx(100, abs=0.5)
    known = {row["known"]: row for row in rows(out / f"{result.id}-information.csv")}
    assert list(known) == ["token", "class", "position", "label"]
    assert float(known["token"]["explained"]) >= float(known["class"]["explained"])
    assert [row["set"] for row in rows(out / "sets.csv")] == ["validation", "cola_ood"]


@pytest.mark.long
def test_pictures_and_a_page_are_written(kept):
    result, output = kept(epochs=1)
    assert moe_report(["analyze", result.id, f"output={output}", "threads=1"]) == 0
    out = output / "analysis" / result.id
    pictures = sorted(file.stem.removeprefix(f"{result.id}-") for file in out.glob("*.png"))
    assert pictures == [
        "activation", "change", "classes", "information", "likeness", "load", "sets",
    ]  # fmt: skip
    assert all(map(is_png, out.glob("*.png")))
    page = (out / "index.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(pictures)
    assert "All runs" not in page


def test_load_over_training_is_that_of_the_evaluations(kept):
    from moe_runner.analysis.subjects import Request, run_subject

    result, output = kept(epochs=3)
    request = Request({}, 256, 128, "cpu", 1, output / "cache")
    subject = run_subject(result.id, Store(output), request)
    lines = (output / "runs" / result.id / "metrics.jsonl").read_text().splitlines()
    curve = [line for line in map(json.loads, lines) if line["split"] == "eval"]
    (history,) = subject.over_training
    assert history.updates.tolist() == [12, 24, 36]
    assert history.load.tolist() == [line["load"][0] for line in curve]
    assert len(subject.before) == len(subject.layers) == 1


@pytest.mark.parametrize("phase", ["eval", "train"])
def test_models_that_are_experts_only_for_a_while(kept, phase, capsys, no_pictures):
    result, output = kept(method=EMoE(num_experts=4, top_k=2, convert_at=phase), epochs=1)
    assert moe_report(["analyze", result.id, f"output={output}", "threads=1"]) == 0
    shown = capsys.readouterr().out
    assert ("evaluated merged" in shown) == (phase == "train")
    (layer,) = rows(output / "analysis" / result.id / f"{result.id}-layers.csv")
    routing = result.id_metrics["validation"].routing
    if phase == "eval":
        assert float(layer["even"]) == pytest.approx(routing["routing/entropy"], abs=6e-4)
    assert float(layer["changed"]) < float(layer["chance"])


def test_a_hypermoe_has_its_own_table_and_runs_stand_side_by_side(kept, capsys, no_pictures):
    hyper, output = kept(method=SMALL_HYPER, epochs=1)
    emoe, _ = kept(epochs=1)
    words = ["analyze", hyper.id, emoe.id, hyper.id[:6], f"output={output}", "threads=1"]
    assert moe_report(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    (out,) = (output / "analysis").iterdir()
    (beside,) = rows(out / f"{hyper.id}-beside.csv")
    routing = hyper.id_metrics["validation"].routing
    own, other = routing["routing/experts_norm"], routing["routing/beside_norm"]
    assert float(beside["experts"]) == pytest.approx(own, rel=6e-3)
    assert float(beside["share"]) == pytest.approx(100 * other / (own + other), abs=0.06)
    assert not (out / f"{hyper.id}-activation.csv").exists()
    assert "router starts at zero" in told
    sets = rows(out / "sets.csv")
    assert [row["set"] for row in sets] == ["hypermoe", "emoe"]


def test_texts_of_the_user_take_the_place_of_the_data(kept, tmp_path, capsys, no_pictures):
    result, output = kept(epochs=1)
    (tmp_path / "a.txt").write_text("w1 w2 good\n\n w3 bad \n")
    (tmp_path / "b.txt").write_text("w5\n")
    texts = f"texts={tmp_path}/a.txt,{tmp_path}/b.txt"
    to = tmp_path / "here"
    assert moe_report(["analyze", result.id, f"output={output}", texts, f"to={to}"]) == 0
    assert "9 tokens of a.txt" in " ".join(capsys.readouterr().out.split())  # [CLS] and [SEP] too
    assert [row["set"] for row in rows(to / "sets.csv")] == ["a.txt", "b.txt"]
    assert "label" not in {row["known"] for row in rows(to / f"{result.id}-information.csv")}


def test_padding_is_no_unknown_token(backbone_folder, tiny_model):
    from transformers import AutoTokenizer

    from moe_runner.analysis.subjects import notes_of

    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("bert"))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    batch = {"input_ids": mask * 7 + (1 - mask) * tokenizer.unk_token_id, "attention_mask": mask}
    model = tiny_model("bert")
    assert notes_of(model, tokenizer, [batch]) == []
    batch["input_ids"][0, :2] = tokenizer.unk_token_id
    (note,) = notes_of(model, tokenizer, [batch])
    assert note == "29% of the tokens are unknown to the tokenizer."


@pytest.mark.parametrize(("length", "expected"), [(5, 5), (100, 10)])
def test_texts_are_cut_to_the_positions_that_roberta_has_left(backbone_folder, length, expected):
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    from moe_runner.analysis.subjects import Request, text_batches

    config = RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    model, cpu = RobertaModel(config).eval(), torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("bert"))
    request = Request({"a.txt": [" ".join(["w1"] * 30)]}, 8, length, "cpu", 1, Path())
    (batch,) = text_batches(tokenizer, model, request, cpu)["a.txt"]
    assert batch["input_ids"].shape == (1, expected)
    model(**batch)


def test_a_model_folder_is_analysed_on_texts(backbone_folder, tmp_path, capsys, no_pictures):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from moe_runner import convert, save_pretrained

    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(backbone_folder("bert"))
    convert(model, EMoE(num_experts=4, top_k=1))
    save_pretrained(model, folder)
    (tmp_path / "a.txt").write_text("w1 w2 good\n")
    words = ["analyze", str(folder), f"output={tmp_path}", f"texts={tmp_path}/a.txt"]
    assert moe_report(words) == 2
    assert f"{folder} has no tokenizer" in capsys.readouterr().err
    AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    assert moe_report(words) == 0
    (layer,) = rows(tmp_path / "analysis" / "model" / "model-layers.csv")
    assert (layer["selected"], layer["changed"]) == ("1 of 4", "n/a")
    assert "unknown to the tokenizer" not in capsys.readouterr().out
    assert moe_report(words[:3]) == 2
    assert "add texts=" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("strange words\n")
    assert moe_report(words) == 0
    assert "50% of the tokens are unknown to the tokenizer" in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"short")
    assert moe_report(words) == 2
    assert f"{folder} cannot be loaded" in capsys.readouterr().err


def test_what_cannot_be_analysed_is_a_line(kept, make_settings, only_run, tmp_path, capsys):
    settings = make_settings("bert", EMoE(num_experts=4, top_k=2), epochs=1)
    output = Path(settings.paths.output)
    run = only_run(settings)
    execute(run, settings, Store(output))
    dense, _ = kept(method=Dense(), epochs=1)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for words, message in (
        ([], "needs a run id"),
        ([run.id], f"analyze {run.id} was not kept; run its command again with keep_model=best"),
        ([dense.id], "method=dense has no experts"),
        (["zzzz"], "is not a run in"),
        (["emoe_glue_ful"], "did you mean the study emoe_glue_full?"),
        (["emoe_glue_full"], "were kept; run moe-run study=emoe_glue_full profile=mini keep_model"),
        ([str(tmp_path)], "is a folder without moe_runner.json"),
        ([run.id, "text=a"], "did you mean texts?"),
        ([run.id, "limit=0"], "limit=0 is not valid; use a whole number from 1 on"),
        ([run.id, "texts=nowhere.txt"], "texts=nowhere.txt: No such file or directory"),
        ([run.id, f"texts={tmp_path}/empty.txt"], "holds no text"),
        ([run.id, f"texts={tmp_path}/latin.txt"], "is not UTF-8"),
        ([run.id, f"to={tmp_path}/empty.txt"], "is a file; use a folder"),
        ([run.id, "device=gpu"], "device=gpu"),
    ):
        assert moe_report(["analyze", *words, f"output={output}"]) == 2, words
        told = capsys.readouterr()
        assert message in told.err, words
        assert len(told.err.splitlines()) == 1, told.err
