"""Instruction tuning end to end on a tiny Llama: loss, perplexity, memory options, the harness."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_runner.backbones.loading import load_tokenizer
from moe_runner.backbones.weights import find_weights
from moe_runner.conversion.convert import convert
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.emoe.options import EMoE
from moe_runner.methods.gmoe.options import GMoE
from moe_runner.moe.layer import auxiliary_loss
from moe_runner.options.errors import ConfigError
from moe_runner.options.method import Method
from moe_runner.options.settings import Settings
from moe_runner.options.task import InstructTask
from moe_runner.runs.run import Run
from moe_runner.runs.store import RunFolder, Store
from moe_runner.sweeps.plan import make_plan
from moe_runner.tasks.instructions import prompt
from moe_runner.tasks.mini.instruct import questions
from moe_runner.tasks.mmlu import to_dataset
from moe_runner.training import callbacks
from moe_runner.training.callbacks import ShowProgress
from moe_runner.training.execute import execute, find_resources
from moe_runner.training.fit import build, make_trainer
from moe_runner.training.forms.instruct import IGNORED, encode_record, response_losses

SMALL = {"num_experts": 4, "top_k": 2, "layers": (2,)}


@pytest.fixture(scope="session")
def instructions(tmp_path_factory) -> Path:
    """24 records whose responses have 1 to 12 words."""
    rows = [
        {"instruction": f"w{i} w{i + 1}", "input": f"w{i + 2}" if i % 2 else "",
         "output": " ".join(f"w{(i + j) % 30}" for j in range(1 + i % 12))}
        for i in range(24)
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("instruct") / "train.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def instruct_settings(make_settings, instructions):
    def build(method: Method | None = None, tuning: str = "full", **trainer) -> Settings:
        settings = make_settings("llama", method or Dense(), tuning, **{"epochs": 1, **trainer})
        task = InstructTask(
            suite="instruct", members=("alpaca",), data_dir=str(instructions), max_length=24,
            template="plain", validation_size=8,
        )  # fmt: skip
        return dataclasses.replace(settings, task=task, keep_model="best")

    return build


def only(settings: Settings) -> Run:
    (run,) = make_plan(settings).runs
    return run


def trained(settings: Settings) -> tuple[dict, dict[str, torch.Tensor]]:
    """Carry out a run anew: its result and weights."""
    settings = dataclasses.replace(settings, rerun=True)
    store = Store(Path(settings.paths.output))
    run = only(settings)
    result = execute(run, settings, store).to_json()
    return result, load_file(RunFolder(store.folder(run.id)).best / "trained.safetensors")


def prepared(settings: Settings, folder: Path):
    """A Trainer before its first update, and the encoded training records."""
    run, resources = only(settings), find_resources(settings)
    ready = build(run, resources)
    train = ready.form.encode(ready.data.train, ready.data.spec.columns)
    progress = ShowProgress(run.label, ready.data.spec.metrics)
    (folder / "run").mkdir()
    trainer = make_trainer(run, RunFolder(folder / "run"), resources, ready, train, train, progress)
    return ready, trainer, train


def test_what_the_paper_says_is_the_default(instruct_settings):
    settings = instruct_settings()
    trainer = dataclasses.replace(
        settings.trainer, learning_rate=None, epochs=None, batch_size=None
    )
    run = only(dataclasses.replace(settings, trainer=trainer))
    assert run.form == "instruct"
    found = run.trainer
    assert (found.epochs, found.learning_rate, found.batch_size) == (3, 2e-5, 128)
    assert (found.schedule, found.warmup_ratio) == ("cosine", 0.03)


@pytest.mark.parametrize("method", [Dense(), GMoE(**SMALL)], ids=["dense", "gmoe"])
def test_micro_batches_of_uneven_responses_give_the_gradient_of_one_batch(
    method, instruct_settings, tmp_path
):
    settings = instruct_settings(method, batch_size=16, accumulate=4)
    ready, trainer, train = prepared(settings, tmp_path)
    rows = [train[i] for i in range(16)]
    batches = [ready.form.collator(rows[i : i + 4]) for i in range(0, 16, 4)]
    counts = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches]
    assert len(set(counts)) > 1  # else a mean of means would do
    model = ready.backbone.model.train()

    whole = ready.form.collator(rows)
    logits = model(**{k: v for k, v in whole.items() if k != "labels"}).logits
    expected = response_losses(logits, whole["labels"])[0].sum() / sum(counts)
    for batch in batches:  # the routers' losses are means over a micro-batch
        model(**batch)
        if (extra := auxiliary_loss(model)) is not None:
            expected = expected + extra / 4
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    trainer.current_gradient_accumulation_steps = 4
    for batch in batches:
        trainer.training_step(model, batch, torch.tensor(sum(counts)))
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6, msg=name
        )


def test_perplexity_is_that_of_all_response_tokens_in_uneven_batches(instruct_settings, tmp_path):
    ready, trainer, train = prepared(instruct_settings(EMoE(**SMALL), eval_batch_size=3), tmp_path)
    found = trainer.evaluate()
    model = ready.backbone.model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in train:  # one at a time: no padding, no batch
            ids = torch.tensor([row["input_ids"]])
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
            for position, label in enumerate(row["labels"]):
                if label != IGNORED:
                    total -= float(logs[position - 1, label])
                    tokens += 1
    assert tokens > 80
    assert found["eval_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert found["eval_loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_the_loss_is_on_the_response_and_its_end_alone(backbone_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("llama"))
    row = {"instruction": "w1 w2", "input": "w3", "output": "w4 w5"}
    encoded = encode_record(row, tokenizer, "plain", 24)
    before = tokenizer(prompt("plain", "w1 w2", "w3"))["input_ids"]
    response = tokenizer("w4 w5", add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"] == [*before, *response, tokenizer.eos_token_id]
    assert encoded["labels"] == [IGNORED] * len(before) + [*response, tokenizer.eos_token_id]
    cut = encode_record(row, tokenizer, "plain", len(before) + 1)
    assert cut["labels"] == [IGNORED] * len(before) + response[:1]


@pytest.mark.parametrize("method", [EMoE(**SMALL), GMoE(**SMALL)], ids=["emoe", "gmoe"])
def test_gradient_checkpointing_with_lora_changes_no_number(method, instruct_settings):
    plain = instruct_settings(method, tuning="lora")
    less = dataclasses.replace(
        plain, trainer=dataclasses.replace(plain.trainer, gradient_checkpointing=True)
    )
    assert only(plain).id == only(less).id
    result, weights = trained(plain)
    again, same = trained(less)
    assert again["primary"] == result["primary"]
    assert any("lora_B" in name and weight.any() for name, weight in weights.items())
    for name, weight in weights.items():
        assert torch.equal(same[name], weight), name


def test_bf16_trains_and_is_another_run(instruct_settings):
    plain = instruct_settings(EMoE(**SMALL), tuning="lora")
    low = dataclasses.replace(plain, trainer=dataclasses.replace(plain.trainer, precision="bf16"))
    assert only(plain).id != only(low).id
    result, weights = trained(low)
    assert result["primary"] == pytest.approx(trained(plain)[0]["primary"], rel=0.05)
    assert {weight.dtype for weight in weights.values()} <= {torch.float32, torch.int64}


# ------------------------------------------------------------------------------- bad input


def test_a_tokenizer_without_padding_and_end_token_is_one_line(instruct_settings, tmp_path):
    import shutil

    settings = instruct_settings()
    folder = tmp_path / "no_tokens"
    shutil.copytree(settings.model.path, folder)
    file = folder / "tokenizer_config.json"
    options = json.loads(file.read_text())
    options.pop("eos_token")
    file.write_text(json.dumps(options))
    model = dataclasses.replace(settings.model, path=str(folder))
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(model, find_weights(model))
    assert caught.value.problems == (
        "the tokenizer of model=llama_test has neither a padding token nor an end token; "
        "add pad_token to its tokenizer_config.json",
    )
    file.write_text(json.dumps({**options, "pad_token": "<unk>"}))
    settings = dataclasses.replace(settings, model=model)
    with pytest.raises(ConfigError, match="has no end token, so that no response would end"):
        build(only(settings), find_resources(settings))


def test_prompts_that_leave_no_room_are_left_out_and_told(instruct_settings, tmp_path, caplog):
    settings = instruct_settings()
    short = dataclasses.replace(settings, task=dataclasses.replace(settings.task, max_length=3))
    ready = build(only(short), find_resources(short))
    columns = ready.data.spec.columns
    with caplog.at_level("WARNING"):
        kept = ready.form.encode(ready.data.train, columns)
    assert 0 < len(kept) < len(ready.data.train)
    assert all(row["labels"][-1] != IGNORED for row in kept)
    assert "records are left out: their prompt fills task.max_length=3" in caplog.text
    only_long = [i for i, text in enumerate(ready.data.train["input"]) if text]
    with pytest.raises(ValueError, match="the prompts of all .* fill task.max_length=3; use a"):
        ready.form.encode(ready.data.train.select(only_long), columns)


# ------------------------------------------------------------------------------- the harness


def plain_loop(model, tokenizer, rows: list[dict], shots: int) -> tuple[list[int], list[float]]:
    """Answer questions one by one by the most likely letter; give the right one's loss too."""

    def asked(row: dict) -> str:
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
        return "\n".join([row["question"].strip(), *lines, "Answer:"])

    given, losses = [], []
    for row in (row for row in rows if row["split"] == "test"):
        solved = [r for r in rows if r["split"] == "dev" and r["subject"] == row["subject"]]
        text = f"The following are multiple choice questions (with answers) about {row['subject']}."
        for example in solved[:shots]:
            text += f"\n\n{asked(example)} {'ABCD'[example['answer']]}"
        text += f"\n\n{asked(row)}"
        scores = []
        for letter in "ABCD":
            before = len(tokenizer(text)["input_ids"])
            ids = tokenizer(f"{text} {letter}")["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(logs[i - 1, ids[i]]) for i in range(before, len(ids))))
        given.append(scores.index(max(scores)))
        losses.append(-scores[row["answer"]])
    return given, losses


def test_the_harness_gives_the_numbers_of_a_plain_loop(caplog):
    pytest.importorskip("lm_eval", reason="pip install -e '.[llm]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moe_runner.backbones.weights import ASSETS
    from moe_runner.training.harness import evaluate

    folder = ASSETS / "llama_tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    convert(model, EMoE(num_experts=16, top_k=4))
    rows = [row for row in questions() if row["subject"] in ("agents", "reviews")]
    chosen = [row for row in rows if row["split"] == "dev"] + rows[5:11] + rows[-6:]
    told: list[tuple[int, bool]] = []
    terminal = sys.stderr

    def tell(batches: int) -> None:
        told.append((batches, sys.stderr is terminal))  # though the harness may not write to it

    found = evaluate(
        model, tokenizer, to_dataset(chosen, None), shots=1, batch_size=5, after_batch=tell
    )
    given, losses = plain_loop(model, tokenizer, chosen, shots=1)
    tested = [row for row in chosen if row["split"] == "test"]
    right = [answer == row["answer"] for answer, row in zip(given, tested, strict=True)]
    assert found["examples"] == len(tested) == 12
    assert found["accuracy"] == found["primary"] == pytest.approx(sum(right) / 12)
    assert found["accuracy/agents"] == pytest.approx(sum(right[:6]) / 6)
    assert found["loss"] == pytest.approx(sum(losses) / 12, rel=1e-4)
    # 12 questions, 5 at once: the letters are read off one prediction
    assert told == [(3, True)] * 3
    assert "are cut at their start" not in caplog.text

    with caplog.at_level("WARNING"):
        evaluate(model, tokenizer, to_dataset(chosen, 2), shots=5, batch_size=2)
    assert "of 2 prompts of 5 shots are longer than the 256 positions" in caplog.text


def test_questions_show_how_far_they_are(instruct_settings, tmp_path, monkeypatch, caplog):
    pytest.importorskip("lm_eval", reason="pip install -e '.[llm]'")
    monkeypatch.setattr(callbacks, "EVALUATION_SECONDS", 0.0)
    _, trainer, _ = prepared(instruct_settings(eval_batch_size=4), tmp_path)
    chosen = [
        {"subject": "words", "split": "dev" if i < 5 else "test", "question": f"w{i} w{i + 1}",
         "choices": ["w1", "w2", "w3", "w4"], "answer": i % 4}
        for i in range(14)
    ]  # fmt: skip
    with caplog.at_level("INFO"):
        found = trainer.predict(to_dataset(chosen, None), metric_key_prefix="ood")
    assert found.metrics["ood_examples"] == 9
    lines = [line for line in caplog.messages if "evaluating" in line]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert lines[1].endswith(" left")
