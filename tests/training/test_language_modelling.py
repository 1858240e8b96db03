"""Language modelling end to end: blocks, perplexity, out-of-domain text, the cache of a sweep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_runner.methods.dense.options import Dense
from moe_runner.methods.hypermoe.options import HyperMoE
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import LanguageModellingTask
from moe_runner.runs.store import Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.train import evaluate_stored
from moe_runner.training.execute import execute
from moe_runner.training.forms.language_modelling import LanguageModelling

WORDS = ["w1", "w2", "w3", "good", "bad", "w4", "w5", "w6", "w7"]


@pytest.fixture
def text(tmp_path) -> Path:
    for split, count in (("train", 60), ("validation", 20), ("ood", 20)):
        step = 2 if split == "ood" else 1
        lines = [" ".join(WORDS[(i + step * j) % 9] for j in range(5)) for i in range(count)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "ood.txt").rename(tmp_path / "other" / "other.txt")
    return tmp_path


@pytest.fixture
def settings(make_settings, text):
    def build(family: str = "gpt2", method=None, **trainer):
        made = make_settings(family, method, **{"epochs": 2, "batch_size": 4, **trainer})
        task = LanguageModellingTask(
            suite="language_modelling", members=("text",), data_dir=str(text), block_size=8,
            ood=("all",), ood_dir=str(text / "other"),
        )  # fmt: skip
        return replace(made, task=task, model=replace(made.model, max_positions=64))

    return build


def carried_out(settings) -> dict:
    (run,) = make_plan(settings).runs
    return execute(run, settings, Store(Path(settings.paths.output))).to_json()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_perplexity_is_that_of_the_text_and_falls(settings, text, family, backbone_folder):
    method = HyperMoE(num_experts=4, width=2, embedding_dim=4, layer_dim=2)
    chosen = replace(settings(family, method), keep_model="best", export="moe")
    result = carried_out(chosen)
    values = result["id_metrics"]["validation"]
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert values["examples"] == 100 // 8  # 20 lines of 5 tokens
    assert result["id_metrics"]["test"] is None  # there is no test.txt
    first, last = (line["primary"] for line in result["learning_curve"])
    assert last < first < 50  # 34 words, random weights
    assert result["primary"] == last
    assert result["ood_metrics"]["other"]["perplexity"] > last
    again = evaluate_stored(replace(chosen, evaluate=result["id"]))
    assert again == result["primary"]
    stored = json.loads(next(Path(chosen.paths.output).glob("runs/*/ood.json")).read_text())
    assert stored["other"]["perplexity"] == result["ood_metrics"]["other"]["perplexity"]


def test_the_first_evaluation_equals_the_model_by_itself(settings, text, backbone_folder):
    """exp of the mean negative log-likelihood of every token of a block but its first."""
    from moe_runner.methods.dense.options import Dense

    result = carried_out(settings(method=Dense(), learning_rate=1e-12, epochs=1))
    folder = backbone_folder("gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder)((text / "validation.txt").read_text())
    ids = torch.tensor(tokens["input_ids"])[: 12 * 8].view(12, 8)
    with torch.no_grad():
        logs = model(ids).logits.log_softmax(-1)
    taken = logs[:, :-1].gather(-1, ids[:, 1:, None])
    assert result["primary"] == pytest.approx(math.exp(-taken.mean()), rel=1e-5)


def test_blocks_are_the_tokens_in_order_across_batches(settings, tmp_path, monkeypatch):
    """A batch of rows hands what does not fill a block to the next one."""
    (run,) = make_plan(settings("llama")).runs
    form = LanguageModelling.__new__(LanguageModelling)
    form.block_size = 7
    assets = Path(__file__).parents[2] / "src" / "moe_runner" / "assets"
    tokenizer = AutoTokenizer.from_pretrained(assets / "llama_tiny")
    form.backbone = type("Backbone", (), {"processor": tokenizer})()
    rows = [f"line {i} has some words\n" if i % 3 else "" for i in range(2500)]
    packed = form.encode(Dataset.from_dict({"text": rows}), ("text",), tmp_path)
    expected = [
        token for row in rows for token in tokenizer(row, add_special_tokens=False)["input_ids"]
    ]
    flat = [token for block in packed["input_ids"] for token in block]
    assert flat == expected[: len(expected) // 7 * 7]
    assert tokenizer.bos_token_id not in flat
    batch = form.collator([packed[0], packed[1]])
    assert batch["input_ids"].dtype == torch.int64
    assert batch["labels"].equal(batch["input_ids"])
    form.block_size = 100_000
    with pytest.raises(ValueError, match="fewer tokens than task.block_size=100000"):
        form.encode(Dataset.from_dict({"text": rows}), ("text",), tmp_path)


def test_the_second_run_of_a_sweep_neither_reads_nor_tokenises(settings, monkeypatch):
    chosen = settings(epochs=1)
    carried_out(chosen)

    def refuse(*_: object) -> None:
        raise AssertionError("made anew")

    written = {file: file.stat().st_mtime_ns for file in Path(chosen.paths.cache).rglob("*.arrow")}
    assert len(written) == 6  # three texts, read and encoded
    monkeypatch.setattr(Dataset, "map", refuse)
    carried_out(replace(chosen, seed=1))
    assert written == {
        file: file.stat().st_mtime_ns for file in Path(chosen.paths.cache).rglob("*.arrow")
    }


def test_the_block_follows_the_model_and_is_in_the_id(settings):
    chosen = settings()
    free = replace(chosen, task=replace(chosen.task, block_size=None))
    (run,) = make_plan(free).runs
    assert run.task.block_size == 64
    assert "block_size: 64" in run.to_yaml()
    given = replace(chosen, task=replace(chosen.task, block_size=64))
    assert [run.id] == [other.id for other in make_plan(given).runs]
    assert [run.id] != [other.id for other in make_plan(chosen).runs]
    long = replace(free, model=replace(free.model, max_positions=4096))
    assert make_plan(long).runs[0].task.block_size == 1024
    unknown = replace(free, model=replace(free.model, max_positions=None))
    assert make_plan(unknown).runs[0].task.block_size == 1024


def test_hypermoes_recipe(settings):
    chosen = settings()
    own = replace(
        chosen.trainer, learning_rate=None, epochs=None, batch_size=None, eval_batch_size=None
    )
    (run,) = make_plan(replace(chosen, trainer=own)).runs
    trainer = run.trainer
    assert (trainer.learning_rate, trainer.epochs, trainer.patience) == (1e-5, 20, 0)
    assert (trainer.batch_size, trainer.eval_batch_size, trainer.weight_decay) == (4, 4, 0.0)


def test_a_line_that_is_not_utf_8_fails_the_run_with_one_line(settings, text):
    (text / "validation.txt").write_bytes(b"w1\n\xff\n")
    with pytest.raises(ValueError, match=r"validation.txt:2 is not UTF-8") as error:
        carried_out(settings())
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_padding_and_end_token_is_an_error(settings, tmp_path, backbone_folder):
    import shutil

    folder = shutil.copytree(backbone_folder("gpt2"), tmp_path / "model")
    file = folder / "tokenizer_config.json"
    options = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in options.items() if k != "eos_token"}))
    chosen = settings()
    chosen = replace(chosen, model=replace(chosen.model, path=str(folder)))
    with pytest.raises(ConfigError) as error:
        carried_out(chosen)
    assert str(error.value) == (
        "the tokenizer of model=gpt2_test has neither a padding token nor an end token; "
        "add pad_token to its tokenizer_config.json"
    )


def test_a_run_that_diverges_before_its_loss_is_logged_says_so(settings):
    chosen = settings("gpt2", Dense(), epochs=1, batch_size=8, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"nan at update \d; use a smaller trainer.learn"):
        carried_out(chosen)
