"""The bundled tiny backbones: small, safe, loadable offline, really pretrained."""

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from k_means_constrained import KMeansConstrained
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from moe_runner.tasks.mini.corpus import documents

ASSETS = Path(__file__).resolve().parents[1] / "src/moe_runner/assets"
LANGUAGE_MODEL = {
    "bert_tiny": AutoModelForMaskedLM,
    "gpt2_tiny": AutoModelForCausalLM,
    "llama_tiny": AutoModelForCausalLM,
    "switch_tiny": AutoModelForSeq2SeqLM,
}
SECOND_LAYER_KEYS = {
    "bert_tiny": lambda model: model.bert.encoder.layer[1].intermediate.dense.weight,
    "gpt2_tiny": lambda model: model.transformer.h[1].mlp.c_fc.weight.T,
    "llama_tiny": lambda model: model.model.layers[1].mlp.gate_proj.weight,
    "switch_tiny": lambda model: model.encoder.block[2].layer[1].mlp.wi.weight,  # 1 is sparse
}
NEW_IN_A_CLASSIFIER = {
    "bert_tiny": {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    },
    "gpt2_tiny": {"score.weight"},
    "llama_tiny": {"score.weight"},
}
SENTENCES = ["The farmer fed the horse in the barn.", "Did Mary sell the car?"]

pytestmark = pytest.mark.parametrize("name", LANGUAGE_MODEL)


def _load(automatic, name):
    return automatic.from_pretrained(ASSETS / name, dtype=torch.float32, output_loading_info=True)


def test_folder_is_at_most_3_mb_and_holds_no_pickle(name):
    files = [path for path in (ASSETS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("purpose", ["language model", "classifier"])
def test_loads_offline_with_only_a_classifier_head_missing(name, purpose):
    is_classifier = purpose == "classifier"
    if is_classifier and name == "switch_tiny":
        pytest.skip("Switch Transformers have no classifier: they answer by a text")
    automatic = AutoModelForSequenceClassification if is_classifier else LANGUAGE_MODEL[name]
    model, info = _load(automatic, name)
    assert set(info["missing_keys"]) == (NEW_IN_A_CLASSIFIER[name] if is_classifier else set())
    assert not info["mismatched_keys"]
    if not is_classifier:
        assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    if name == "switch_tiny":
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_tokenizer_round_trip(name):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    for text in SENTENCES:
        ids = tokenizer(text)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=True)
        if name == "bert_tiny":
            assert re.sub(r" ([.?])", r"\1", back) == text.lower()
        else:
            assert back == text
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.pad_token_id not in tokenizer(SENTENCES[0])["input_ids"]
    assert len(tokenizer) == 2000


def test_bert_tokenizer_marks_the_second_segment(name):
    if name != "bert_tiny":
        pytest.skip("decoders have no token types")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    batch = tokenizer("The horse", "a dog")
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"])
    assert tokens == ["[CLS]", "the", "horse", "[SEP]", "a", "dog", "[SEP]"]
    assert batch["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_card_has_the_command_and_a_loss_that_fell(name):
    card = (ASSETS / name / "README.md").read_text(encoding="utf-8")
    assert f"`python scripts/pretrain_tiny.py {name}" in card
    section = card.split("## Loss")[1].split("\n## ")[0]
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| [\d.]+ \|\n", section)
    assert len(rows) == 2
    assert all(float(before) > float(after) for before, after in rows)


def test_fresh_documents_are_predicted_far_better_than_by_random_weights(name):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    tokenizer.padding_side = "right"
    texts = [" ".join(sentences) for sentences in documents(count=48, seed=777_777)]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if name == "bert_tiny":
        chosen = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.15
        chosen &= ~torch.isin(labels, torch.tensor(tokenizer.all_special_ids))
        labels = labels.masked_fill(~chosen, -100)
        batch["input_ids"] = batch["input_ids"].masked_fill(chosen, tokenizer.mask_token_id)
    if name == "switch_tiny":  # of every document tokens 4 to 6 are missing
        sentinel = torch.full((len(texts), 1), tokenizer.convert_tokens_to_ids("<extra_id_0>"))
        labels = torch.cat([sentinel, labels[:, 4:7]], 1)
        batch["input_ids"][:, 4:5] = sentinel
        for field in ("input_ids", "attention_mask"):
            batch[field] = torch.cat([batch[field][:, :5], batch[field][:, 7:]], 1)
    pretrained, _ = _load(LANGUAGE_MODEL[name], name)
    torch.manual_seed(0)
    fresh = LANGUAGE_MODEL[name].from_config(pretrained.config, dtype=torch.float32)
    with torch.no_grad():
        loss, random_loss = (m.eval()(**batch, labels=labels).loss for m in (pretrained, fresh))
    assert loss < random_loss - 3.0


def test_sentinels_are_the_last_tokens(name):
    if name != "switch_tiny":
        pytest.skip("only an encoder-decoder has sentinels")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    assert tokenizer.tokenize("a <extra_id_3> b") == ["\u2581a", "<extra_id_3>", "\u2581b"]
    ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(32)])
    assert ids == list(range(1999, 1967, -1))
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0


def test_the_experts_of_a_switch_share_the_tokens(name):
    if name != "switch_tiny":
        pytest.skip("only a Switch Transformer has experts")
    model, _ = _load(LANGUAGE_MODEL[name], name)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    texts = [" ".join(sentences) for sentences in documents(count=48, seed=777_777)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    counts, real = [], batch["attention_mask"].bool()  # all padding goes to one expert
    for router in (m for n, m in model.named_modules() if n.endswith("mlp.router")):
        router.register_forward_hook(lambda m, a, out: counts.append(out[0][real].sum(0)))
    with torch.no_grad():
        model.eval()(**batch, decoder_input_ids=batch["input_ids"])
    assert [len(count) for count in counts] == [8, 8]
    for count in counts:
        assert (count > 0).sum() >= 6
        assert count.max() < 0.5 * count.sum()


def inertia(keys_FD: np.ndarray) -> float:
    """Measure how unlike the neurons of 16 equal clusters are."""
    keys_FD = keys_FD / np.linalg.norm(keys_FD, axis=1, keepdims=True)
    size = len(keys_FD) // 16
    clusters = KMeansConstrained(16, size_min=size, size_max=size, n_init=1, random_state=0)
    return clusters.fit(keys_FD).inertia_


def test_neurons_are_more_alike_than_shuffled_ones(name):
    model, _ = _load(LANGUAGE_MODEL[name], name)
    keys_FD = SECOND_LAYER_KEYS[name](model).detach().double().numpy()
    shuffled_FD = np.random.default_rng(0).permuted(keys_FD, axis=0)
    assert inertia(keys_FD) < 0.95 * inertia(shuffled_FD)
