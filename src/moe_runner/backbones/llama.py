"""Llama: `mlp` is a gated FFN (SwiGLU); keys are the rows of the gate projection."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the FFN sites of a LlamaModel, names relative to it."""
    return [
        FFNSite(
            family="llama",
            stack="decoder",
            layer=index,
            block=f"layers.{index}",
            key=f"layers.{index}.mlp.gate_proj",
            up=f"layers.{index}.mlp.up_proj",
            value=f"layers.{index}.mlp.down_proj",
            slot=f"layers.{index}.mlp",
            activation=layer.mlp.act_fn,
        )
        for index, layer in enumerate(base.layers)
    ]
