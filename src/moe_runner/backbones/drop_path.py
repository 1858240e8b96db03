"""Stochastic depth: in training, a block's output is left out for some examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class DropPath(nn.Module):
    """Set the output of a residual branch to zero for a share of the examples, and scale the rest.

    Args:
        rate: share of the examples.

    Source: Deep networks with stochastic depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        """Take a branch's output, (B, ...); the same in evaluation."""
        if not self.training or self.rate == 0:
            return hidden
        keep = 1 - self.rate
        shape = (len(hidden),) + (1,) * (hidden.ndim - 1)
        return hidden * torch.empty(shape, device=hidden.device).bernoulli_(keep).div_(keep)


def add_drop_path(model: PreTrainedModel, rate: float) -> None:
    """Give both branches of every block of an encoder for images stochastic depth, in place.

    Args:
        model: a ViT or DeiT, whose block passes both branches through its one `dropout`; or one
            whose blocks have a `drop_path` (BEiT, DINOv2), in whose place ours comes.
        rate: of the last block; it grows linearly from 0 in the first.

    Source: DeiT, arXiv:2012.12877, trains with 0.1; EMoE's vision experiments (PROTOCOL.md I.4).
    """
    base: Any = model.base_model
    layers = base.layers if hasattr(base, "layers") else base.encoder.layer
    for number, layer in enumerate(layers):
        share = rate * number / max(len(layers) - 1, 1)
        if hasattr(layer, "drop_path"):
            layer.drop_path = DropPath(share).train(layer.training)
        elif rate:
            layer.dropout = nn.Sequential(layer.dropout, DropPath(share)).train(layer.training)
