"""BERT: `intermediate` and `output.dense` are the FFN; the rest of `output` stays."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the FFN sites of a BertModel, names relative to it."""
    return [
        FFNSite(
            family="bert",
            stack="encoder",
            layer=index,
            block=f"encoder.layer.{index}",
            key=f"encoder.layer.{index}.intermediate.dense",
            value=f"encoder.layer.{index}.output.dense",
            slot=f"encoder.layer.{index}.intermediate",
            bypass=(f"encoder.layer.{index}.output.dense",),
            activation=layer.intermediate.intermediate_act_fn,
        )
        for index, layer in enumerate(base.encoder.layer)
    ]
