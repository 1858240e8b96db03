"""T5: `DenseReluDense` is the FFN, plain (T5) or gated (T5 1.1), with a dropout inside."""

from __future__ import annotations

from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite


def sites(base: PreTrainedModel) -> list[FFNSite]:
    """List the FFN sites of a T5Model or T5EncoderModel: the encoder's, then the decoder's."""
    found = []
    for stack in ("encoder", "decoder"):
        for index, block in enumerate(getattr(getattr(base, stack, None), "block", [])):
            last = len(block.layer) - 1  # self-attention, cross-attention in the decoder, FFN
            name = f"{stack}.block.{index}.layer.{last}.DenseReluDense"
            ffn = block.layer[last].DenseReluDense
            gated = hasattr(ffn, "wi_0")
            found.append(
                FFNSite(
                    family="t5",
                    stack=stack,
                    layer=index,
                    block=f"{stack}.block.{index}",
                    key=f"{name}.wi_0" if gated else f"{name}.wi",
                    up=f"{name}.wi_1" if gated else None,
                    value=f"{name}.wo",
                    slot=name,
                    activation=ffn.act,
                    dropout=ffn.dropout.p,
                )
            )
    return found
