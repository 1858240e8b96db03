"""A tiny configuration of every model type, as data: 122 of transformers 5.23.

A configuration is `SIZES`, as far as its class has such a whole number, with the type's own values
on top. Where the vision tower of a model would not take part in a batch of text, the batch has
images, too.
"""

from __future__ import annotations

from typing import Any

SIZES = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size"), 32
    ),
    **dict.fromkeys(
        (
            "intermediate_size", "d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
            "hidden_dim", "max_position_embeddings", "n_positions",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
            "decoder_layers", "num_decoder_layers", "num_key_value_heads", "num_experts_per_tok",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
            "decoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts",
            "moe_num_experts",
        ),
        4,
    ),
    **{"head_dim": 8, "d_kv": 8, "patch_size": 8, "image_size": 16, "moe_intermediate_size": 24},
    **{"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}  # 4 patches
TEXT = {**TOWER, "vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "pad_token_id": 0,
}
IMAGE = 59  # the token that stands for a patch
ROPE_3D = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
CONVOLUTIONS = {
    "conv_dim": [16, 16],
    "conv_kernel": [3, 3],
    "conv_stride": [2, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
DEEPSEEK = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
}
STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
# model type -> values beside those of SIZES; None leaves one of them out
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {},
    "audio-spectrogram-transformer": {
        "max_length": 24, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8,
    },
    "bart": {},
    "beit": {},
    "bert": {},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": {},
    "blip": {
        "vision_config": VISION, "text_config": {**TEXT, "encoder_hidden_size": 32},
        "projection_dim": 32, "image_text_hidden_size": 32,
    },
    "bloom": {},
    "camembert": {},
    "clip": {"vision_config": VISION, "text_config": TEXT, "projection_dim": 32},
    "codegen": {"rotary_dim": 4, "n_ctx": 64},
    "cohere": {},
    "cohere2": {},
    "convbert": {},
    "convnext": {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 2,
        "num_hidden_layers": None,
    },
    "ctrl": {"dff": 64},
    "data2vec-vision": {},
    "dbrx": {
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deberta": {},
    "deberta-v2": {},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "deit": {},
    "dinov2": {},
    "dinov3_vit": {},
    "distilbert": {},
    "electra": {},
    "ernie": {},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_shared_experts": 1, "moe_layer_start_index": 1, "moe_k": 2},
    "esm": {},
    "eurobert": {},
    "exaone4": {"sliding_window": 4},
    "falcon": {"ffn_hidden_size": 64, "num_kv_heads": 2, "head_dim": None},
    "funnel": {
        "architectures": ["FunnelModel"], "block_sizes": [1, 1], "block_repeats": [1, 1],
        "d_head": 8, "d_inner": 64, "num_hidden_layers": None,
    },
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
        "vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8,
        "intermediate_size": 64, "activation_sparsity_pattern": [0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": {},
    "helium": {},
    "hiera": {
        **STAGES, "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4],
        "num_query_pool": 1, "masked_unit_size": [4, 4], "query_stride": [2, 2],
    },
    "hubert": CONVOLUTIONS,
    "hunyuan_v1_dense": {},
    "idefics3": {
        "vision_config": VISION, "text_config": {**DECODER, "model_type": "llama"},
        "scale_factor": 2, "image_token_id": IMAGE,
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 8},
    "layoutlmv3": {
        "input_size": 16, "max_2d_position_embeddings": 64, "coordinate_size": 4, "shape_size": 8,
        "visual_embed": False,
    },
    "led": {
        "attention_window": 4, "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "llama": {},
    "llava": {
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "text_config": {**DECODER, "model_type": "llama"}, "image_token_index": IMAGE,
        "vision_feature_layer": -1,
    },
    "longformer": {"attention_window": 4},
    "longt5": {},
    "m2m_100": {},
    "marian": {},
    "mbart": {},
    "mistral": {},
    "mixtral": {},
    "mobilebert": {
        "true_hidden_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2,
    },
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    "mpnet": {},
    "mpt": {"expansion_ratio": 2, "max_seq_len": 64},
    "mt5": {},
    "nemotron": {},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 64},
    "nomic_bert": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": {},
    "opt": {"word_embed_proj_dim": 32},
    "paligemma": {
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "text_config": {**DECODER, "model_type": "gemma"}, "image_token_id": IMAGE,
        "projection_dim": 32,
    },
    "pegasus": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "pvt": {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [1, 2],
        "num_encoder_blocks": 2, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2],
        "strides": [4, 2], "mlp_ratios": [2, 2],
    },
    "qwen2": {},
    "qwen2_5_vl": {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4,
            "out_hidden_size": 32, "patch_size": 4, "fullatt_block_indexes": [1],
        },
        "text_config": {**DECODER, "rope_parameters": ROPE_3D}, "image_token_id": IMAGE,
        "vision_start_token_id": 58,
    },
    "qwen2_moe": {"shared_expert_intermediate_size": 48},
    "qwen2_vl": {
        "vision_config": {
            "hidden_size": 32, "embed_dim": 32, "mlp_ratio": 2, "depth": 2, "num_heads": 4,
            "patch_size": 4,
        },
        "text_config": {**DECODER, "rope_parameters": ROPE_3D}, "image_token_id": IMAGE,
        "vision_start_token_id": 58,
    },
    "qwen3": {},
    "qwen3_moe": {},
    "rembert": {},
    "roberta": {},
    "roformer": {},
    "segformer": {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
    },
    "siglip": {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 32}},
    "smollm3": {},
    "squeezebert": {},
    "stablelm": {},
    "starcoder2": {},
    "swin": {**STAGES, "window_size": 2, "patch_size": 2},
    "swinv2": {**STAGES, "window_size": 2, "patch_size": 2, "pretrained_window_sizes": [0, 0]},
    "switch_transformers": {},
    "t5": {},
    "t5gemma": {"encoder": DECODER, "decoder": DECODER},
    "umt5": {},
    "vilt": {},
    "vit": {},
    "vit_mae": {"mask_ratio": 0.5},
    "wav2vec2": CONVOLUTIONS,
    "wavlm": CONVOLUTIONS,
    "whisper": {
        "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 64,
        "decoder_start_token_id": 1,
    },
    "xglm": {},
    "xlm-roberta": {},
    "xlnet": {"d_inner": 64, "max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
ITS_OWN = ("text_config", "encoder", "ffn_config")  # sizes stand in a part of the configuration


def config_of(model_type: str, **changes: Any) -> Any:
    """Make the configuration of a model type.

    Args:
        model_type: a key of `CONFIGS`.
        **changes: values on top.
    """
    from transformers import CONFIG_MAPPING

    own = {**CONFIGS[model_type], **changes}
    made = CONFIG_MAPPING[model_type]
    composed = any(part in own for part in ITS_OWN)
    default = None if model_type == "dbrx" else made()
    sizes = {
        name: value
        for name, value in SIZES.items()
        if name not in own
        and isinstance(getattr(default, name, ""), int | None)
        and not (composed and not name.endswith("token_id"))
    }
    if model_type == "dbrx":  # cannot be made without values
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 60}
    return made(**sizes, **{name: value for name, value in own.items() if value is not None})


def build(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """Make a tiny model with random weights, biases included, in evaluation mode."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(seed)
    model = AutoModel.from_config(config_of(model_type, **changes)).eval()
    with torch.no_grad():  # the initial biases are zero: a test could not tell them apart
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch_of(model_type: str) -> dict[str, Any]:
    """Make an input that every stack of the model takes part in."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 58, (2, 8), generator=generator)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    with_images = torch.cat([torch.full((2, 4), IMAGE), ids], 1)
    if model_type in ("qwen2_vl", "qwen2_5_vl"):  # 4 x 4 patches of 4 pixels, 2 frames
        return {
            "input_ids": with_images,
            "pixel_values": torch.randn(32, 96, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
            "mm_token_type_ids": (with_images == IMAGE).long(),
        }
    if model_type == "idefics3":  # a patch of 2 x 2 is one token
        return {"input_ids": with_images[:, 3:], "pixel_values": pixels[:, None]}
    if model_type in ("llava", "paligemma"):
        return {"input_ids": with_images, "pixel_values": pixels}
    if model_type in ("clip", "blip", "siglip"):
        return {"input_ids": ids, "pixel_values": pixels}
    if model_type == "vilt":
        return {"input_ids": ids, "pixel_values": pixels, "pixel_mask": torch.ones(2, 16, 16)}
    if model_type == "vit_mae":
        return {"pixel_values": pixels, "noise": torch.rand(2, 4, generator=generator)}
    if model_type == "hiera":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if model_type == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(2, 24, 16, generator=generator)}
    if CONFIGS[model_type] is CONVOLUTIONS:
        return {"input_values": torch.randn(2, 80, generator=generator)}
    if model_type == "whisper":
        features = torch.randn(2, 8, 16, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    if model_type == "layoutlmv3":
        return {"input_ids": ids, "bbox": torch.zeros(2, 8, 4, dtype=torch.long)}
    config = config_of(model_type)
    if hasattr(config, "image_size"):
        return {"pixel_values": pixels}
    return {
        "input_ids": ids,
        **({"decoder_input_ids": ids.flip(1)} if config.is_encoder_decoder else {}),
    }
