"""Records of what layers did in the model's last forward pass."""

# T tokens, E experts, K selected experts

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from moe_runner.moe.routing import count_choices


@dataclass
class Routing:
    """What a layer did in one call.

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


@dataclass
class Records:
    """What a layer did in the model's last forward pass, which may call it often or never.

    Args:
        last: of the last call.
        earlier: of those before.
        traced: whether the last call was compiled and has left no record.
        within_pass: whether a forward pass of the model is going on. Calls outside of one, as of
            activation checkpointing in the backward pass, do not add to it.
    """

    last: Routing | None = None
    earlier: list[Routing] = field(default_factory=list)
    traced: bool = False
    within_pass: bool = False

    def begin_pass(self) -> None:
        """Forget what was before a forward pass of the model."""
        self.last, self.earlier, self.traced, self.within_pass = None, [], False, True

    def end_pass(self) -> None:
        """Let later calls not add to the pass."""
        self.within_pass = False

    def keep(self, routing: Routing) -> None:
        """Add a call; outside of a pass it takes the place of all."""
        self.earlier = self.of_all_calls() if self.within_pass else []
        self.last, self.traced = routing, False

    def of_all_calls(self) -> list[Routing]:
        """List them in their order."""
        return self.earlier if self.last is None else [*self.earlier, self.last]
