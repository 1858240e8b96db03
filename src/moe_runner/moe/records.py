"""Records of what the layers did, of the model's last forward pass."""

# T tokens, E experts, K selected experts

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moe_runner.moe.routing import count_choices


@dataclass
class Routing:
    """What a layer did in its last forward pass.

    Args:
        index: selected experts of all positions, int64 (T, K), padding included.
        mask: bool (T,), False for padding; None when the model was given no mask.
        losses: unscaled auxiliary losses by name, scalars with a gradient.
        differentiable: False if the pass ran in training mode and without gradients.
        norms: see `output_norms`; None if nothing stands beside the experts.
        joint: where layers share their losses: scores, float (B, L, E) with a gradient, and first
            choices, int64 (B, L), of `stack_losses`.
    """

    index: Tensor
    mask: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    differentiable: bool = True
    norms: Tensor | None = None
    joint: tuple[Tensor, Tensor] | None = None

    def load(self, num_experts: int) -> Tensor:
        """Count the tokens of each expert, padding left out, int64 (E,)."""
        index = self.index if self.mask is None else self.index[self.mask]
        return count_choices(index, num_experts)


def begin_pass(layer: Any) -> None:
    """Forget what a layer did, before a forward pass of the model, which may skip it.

    Args:
        layer: a `MoEFeedForward`, or a router of the library that is to leave records as it does.
    """
    layer.routing, layer.earlier, layer.traced, layer.within_pass = None, [], False, True


def end_pass(layer: Any) -> None:
    """Let later calls, as of activation checkpointing in the backward pass, not add to the pass."""
    layer.within_pass = False


def keep_record(layer: Any, routing: Routing) -> None:
    """Keep what a layer did; what it did in the same forward pass of the model stays beside it."""
    again = layer.within_pass and layer.routing is not None
    layer.earlier = [*layer.earlier, layer.routing] if again else []
    layer.routing, layer.traced = routing, False
