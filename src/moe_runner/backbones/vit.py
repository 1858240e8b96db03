"""ViT and DeiT: `mlp` is the FFN; the block's dropout stays."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the FFN sites of a ViTModel, names relative to it."""
    return [
        FFNSite(
            family="vit",
            stack="encoder",
            layer=index,
            block=f"layers.{index}",
            key=f"layers.{index}.mlp.fc1",
            value=f"layers.{index}.mlp.fc2",
            slot=f"layers.{index}.mlp",
            activation=layer.mlp.activation_fn,
        )
        for index, layer in enumerate(base.layers)
    ]
