"""NoisyTune: noise on the pretrained weights before tuning.

    w <- w + U(-noise / 2, noise / 2) * std(w), for each tensor w on its own

Source: NoisyTune, arXiv:2202.12024, eq. 1.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from moe_runner.methods.noisy_tuning.options import NoisyTuning


@torch.no_grad()
def perturb(model: PreTrainedModel, method: NoisyTuning) -> None:
    """Add the noise in place, drawn from torch's global generator; the new head is left alone.

    Args:
        model: a backbone with or without a head.
        method: the intensity.
    """
    for parameter in model.base_model.parameters():
        if not parameter.is_floating_point():
            continue
        spread = parameter.std(correction=0) * method.noise
        parameter.add_((torch.rand_like(parameter) - 0.5) * spread)
