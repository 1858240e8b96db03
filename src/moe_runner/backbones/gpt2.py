"""GPT-2: the two Conv1D of `mlp` are the FFN; its residual dropout stays."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the FFN sites of a GPT2Model, names relative to it."""
    return [
        FFNSite(
            family="gpt2",
            stack="decoder",
            layer=index,
            block=f"h.{index}",
            key=f"h.{index}.mlp.c_fc",
            value=f"h.{index}.mlp.c_proj",
            slot=f"h.{index}.mlp.c_fc",
            bypass=(f"h.{index}.mlp.act", f"h.{index}.mlp.c_proj"),
            activation=block.mlp.act,
        )
        for index, block in enumerate(base.h)
    ]
