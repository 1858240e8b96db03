"""Switch Transformers: `mlp` is a dense FFN in some layers and a mixture of experts in others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite, SparseSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the dense FFN sites of a SwitchTransformersModel: the encoder's, then the decoder's."""
    return [
        FFNSite(
            family="switch",
            stack=stack,
            layer=index,
            block=block,
            key=f"{name}.wi",
            value=f"{name}.wo",
            slot=name,
            activation=mlp.act,
            dropout=mlp.dropout.p,
        )
        for stack, index, block, name, mlp in feed_forwards(base)
        if not hasattr(mlp, "experts")
    ]


def sparse_sites(base: PreTrainedModel) -> list[SparseSite]:
    """List the layers that are mixtures of experts: the encoder's, then the decoder's."""
    return [
        SparseSite(
            family="switch",
            stack=stack,
            layer=index,
            block=block,
            slot=name,
            activation=mlp.experts["expert_0"].act,
            dropout=mlp.experts["expert_0"].dropout.p,
        )
        for stack, index, block, name, mlp in feed_forwards(base)
        if hasattr(mlp, "experts")
    ]


def feed_forwards(base: PreTrainedModel) -> Iterator[tuple[str, int, str, str, Any]]:
    """Go through the blocks: stack, index, name of the block, name of its `mlp`, the `mlp`."""
    for stack in ("encoder", "decoder"):
        for index, block in enumerate(getattr(getattr(base, stack, None), "block", [])):
            name = f"{stack}.block.{index}"
            last = len(block.layer) - 1
            yield stack, index, name, f"{name}.layer.{last}.mlp", block.layer[last].mlp
