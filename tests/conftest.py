"""Tiny real-architecture models with random weights, one per family."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: nothing may retry

from collections.abc import Callable
from pathlib import Path

import pytest

FAMILIES = ["bert", "gpt2", "llama", "llama_biased", "t5", "t5_gated", "vit"]
SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _no_kernel_of_the_user(tmp_path_factory):
    """Let no test depend on whether this machine's user has built the C++ kernel."""
    from moe_runner.kernels import building

    empty = tmp_path_factory.mktemp("no-kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "cache_folder", lambda: empty)
        yield


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("no folder of real data copies beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model() -> Callable:
    """Build a model of a family with a classification head: seeded random weights, eval mode."""
    import torch
    import transformers as hf

    def build(family: str, seed: int = 0, dropout: float = 0.0):
        torch.manual_seed(seed)
        small = {"vocab_size": 60, "pad_token_id": 0, "num_labels": 3}
        if family == "bert":
            config = hf.BertConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
                hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **small,
            )  # fmt: skip
            model = hf.BertForSequenceClassification(config)
        elif family == "gpt2":
            config = hf.GPT2Config(
                n_embd=16, n_layer=4, n_head=2, n_positions=64, resid_pdrop=dropout,
                embd_pdrop=dropout, attn_pdrop=dropout, **small,
            )  # fmt: skip
            model = hf.GPT2ForSequenceClassification(config)
        elif family.startswith("llama"):
            config = hf.LlamaConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=64, mlp_bias=family == "llama_biased", **small,
            )  # fmt: skip
            model = hf.LlamaForSequenceClassification(config)
        elif family.startswith("t5"):
            config = hf.T5Config(
                d_model=16, num_layers=4, num_heads=2, d_kv=8, d_ff=32, dropout_rate=dropout,
                feed_forward_proj="gated-gelu" if family == "t5_gated" else "relu",
                eos_token_id=1, decoder_start_token_id=0, **small,
            )  # fmt: skip
            model = hf.T5ForSequenceClassification(config)
        elif family == "switch":
            config = hf.SwitchTransformersConfig(
                d_model=16, num_layers=4, num_decoder_layers=4, num_heads=2, d_kv=8, d_ff=32,
                dropout_rate=dropout, num_experts=4, num_sparse_encoder_layers=2,
                num_sparse_decoder_layers=2, decoder_start_token_id=0, **small,
            )  # fmt: skip
            model = hf.SwitchTransformersForConditionalGeneration(config)
        else:
            config = hf.ViTConfig(
                hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
                image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=dropout,
            )  # fmt: skip
            model = hf.ViTForImageClassification(config)
        with torch.no_grad():  # the initial biases are zero: a test could not tell them apart
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_batch() -> Callable:
    """Build a batch for a family: ragged texts with padding, or images."""
    import torch

    def build(family: str, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.tensor([0, 1, 2])
        if family == "vit":
            return {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator), "labels": labels}
        ids = torch.randint(2, 60, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        for row, length in enumerate((9, 6, 4)):
            ids[row, length - 1] = 1  # T5 pools at the end-of-sequence token
            ids[row, length:] = 0
            mask[row, length:] = 0
        if family == "switch":
            decoder_ids = torch.randint(2, 60, (3, 4), generator=generator)
            inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
            return {**inputs, "labels": decoder_ids.roll(-1, 1)}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return build
