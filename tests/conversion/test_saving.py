"""What a saved model must not lose: weights under LoRA, its dtype, how it generates."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from moe_runner import EMoE, GMoE, HyperMoE, MoE, convert, from_pretrained, save_pretrained
from moe_runner.backbones.lora import merge_lora
from moe_runner.options.errors import ConfigError

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
METHODS = {
    "emoe": EMoE(num_experts=4, top_k=2, layers="all"),
    "gmoe": GMoE(num_experts=4, top_k=2, layers="all"),
}
IDS = torch.tensor([[5, 9, 11, 3, 8]])


def llama(**settings):
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES | settings)).eval()


@pytest.mark.parametrize("name", METHODS)
def test_lora_has_to_be_merged_before_saving(name, tmp_path):
    import peft

    model = llama()
    convert(model, METHODS[name])
    options = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, options)
    for one in (wrapped, model):
        with pytest.raises(ValueError, match=r"not merged.*merge_and_unload") as caught:
            save_pretrained(one, tmp_path / "model")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    merge_lora(model)
    save_pretrained(model, tmp_path / "model")
    assert torch.equal(from_pretrained(tmp_path / "model")(IDS).logits, model(IDS).logits)


def test_a_dense_folder_that_lacks_a_weight_is_refused(tmp_path):
    model = llama()
    convert(model, METHODS["emoe"])
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{name} missing, none of another shape; save the"):
        from_pretrained(tmp_path)
    weights[name] = whole[:4].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"none missing, {name} of another shape; save the"):
        from_pretrained(tmp_path)


def test_a_dense_folder_may_get_another_head_if_asked_to(tmp_path):
    config = hf.BertConfig(**SIZES, num_labels=2)
    model = hf.BertForSequenceClassification(config)
    convert(model, METHODS["emoe"])
    save_pretrained(model, tmp_path)
    with pytest.raises(ConfigError, match=r"classifier\.bias, classifier\.weight of another shape"):
        from_pretrained(tmp_path, num_labels=3)
    loaded = from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert loaded(IDS).logits.shape == (1, 3)


@pytest.mark.parametrize("name", METHODS)
def test_dtype_and_generation_are_those_of_the_saved_model(name, tmp_path):
    model = llama().to(torch.bfloat16)
    model.generation_config.eos_token_id = [2, 7]
    model.generation_config.repetition_penalty = 1.7
    convert(model, METHODS[name])
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.config.dtype == loaded.dtype == torch.bfloat16
    assert loaded.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
    assert loaded(IDS).logits.isfinite().all()
    assert from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_weights_that_stay_in_fp32_stay_so(tmp_path):
    """As transformers loads T5 in fp16: `wo` is kept in fp32."""
    config = hf.T5Config(
        d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32, vocab_size=60,
        decoder_start_token_id=0,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "dense")
    model = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "dense", dtype=torch.float16)
    convert(model, MoE(num_experts=4, layers="last:1"))
    save_pretrained(model, tmp_path / "moe")
    expected, found = model.state_dict(), from_pretrained(tmp_path / "moe").state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float16, torch.float32}
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def train(model, folder, steps: int, resume: bool = False):
    """Train by the Trainer of transformers itself."""
    rows = [{"input_ids": IDS[0].roll(shift), "labels": IDS[0].roll(shift)} for shift in range(4)]
    options = hf.TrainingArguments(
        folder, max_steps=steps, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
        learning_rate=1e-2, lr_scheduler_type="constant", per_device_train_batch_size=2,
    )  # fmt: skip
    hf.Trainer(model, options, train_dataset=rows).train(resume_from_checkpoint=resume)
    return model.state_dict()


def test_the_trainer_of_transformers_saves_and_resumes_a_hypernetwork(tmp_path):
    """Every layer has it as a submodule."""

    def made():
        model = llama()
        convert(model, HyperMoE(num_experts=4, width=3, layers="all"))
        return model

    before = {key: tensor.clone() for key, tensor in made().state_dict().items()}
    shared = {key for key in before if "hypernet" in key}
    whole = train(made(), tmp_path / "whole", 2)
    assert any(not torch.equal(whole[key], before[key]) for key in shared)
    train(made(), tmp_path / "parts", 1)
    names = load_file(tmp_path / "parts" / "checkpoint-1" / "model.safetensors").keys()
    assert len(names & shared) == len(shared) // 2  # of two layers
    resumed = train(made(), tmp_path / "parts", 2, resume=True)
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
