"""BERT: `intermediate` and `output.dense` are the FFN; residual, dropout and LayerNorm stay in `output`."""

from __future__ import annotations

from torch import nn

from moe_runner.backbones.sites import FFNSite


def sites(base: nn.Module) -> list[FFNSite]:
    """List the FFN sites of a BertModel, names relative to it."""
    return [
        FFNSite(
            family="bert",
            stack="encoder",
            layer=index,
            key=f"encoder.layer.{index}.intermediate.dense",
            value=f"encoder.layer.{index}.output.dense",
            slot=f"encoder.layer.{index}.intermediate",
            bypass=(f"encoder.layer.{index}.output.dense",),
            activation=layer.intermediate.intermediate_act_fn,
        )
        for index, layer in enumerate(base.encoder.layer)
    ]
