"""The base of every method's options: what the rest of the runner asks of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from moe_runner.options.model import Model
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES

Backend = Literal["auto", "masked", "sorted", "grouped_mm", "kernel"]
Phase = Literal["train", "eval", "both"]


@dataclass(frozen=True)
class Expansion:
    """What a converted FFN is made of, in units of the dense one.

    Args:
        copies: how often its weights are there.
        active: how much of it a token uses.
    """

    copies: float = 1.0
    active: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the FFN sites of a backbone are converted.

    A method is a package `methods/<name>` (or one that an entry point of the group
    `moe_runner.methods` names) with two modules: `options`, a subclass of this without torch, and
    beside it `layers`, which builds the MoE layers: see `methods.building`. What is true of one
    method stands there; what follows is true of copies of an FFN behind a learned router.
    """

    name: str

    converts: ClassVar[bool] = True  # False: the model keeps its FFNs
    perturbs: ClassVar[bool] = False  # changes the pretrained weights before tuning
    takes_sparse: ClassVar[bool] = False  # takes a Switch Transformer's sparse layers, if any
    pretrained_parts: ClassVar[frozenset[str]] = frozenset()  # of a layer made of an FFN: "experts"
    tunes_outside_layers: ClassVar[bool] = False  # with protocol.train_outside_layers
    # What its layers have and no mixture of transformers has; None: nothing, see options/mixtures
    not_standard: ClassVar[str | None] = "layers that nobody compared with one"

    @property
    def layer_rule(self) -> str | tuple[int, ...]:
        """Which layers are converted: the option `layers` of every method that converts."""
        rule: str | tuple[int, ...] = self.layers  # type: ignore[attr-defined]
        return rule

    @property
    def converted_at(self) -> Phase:
        """When the model is in its converted form."""
        return "both"

    @property
    def not_mergeable(self) -> str | None:
        """Why there is no dense form of the tuned model; None: there is one."""
        return f"method={self.name} cannot be merged: its experts are different FFNs after tuning"

    def seeded(self, seed: int) -> Self:
        """Fill in what an option leaves to the seed of the run.

        Args:
            seed: of the run.
        """
        return self

    def problems(self, model: Model) -> list[str]:
        """Check the options against the sizes of a backbone.

        Args:
            model: the backbone's options.

        Returns:
            One line per problem: what was given, what is allowed.
        """
        return []

    def expert_size(self, model: Model) -> int:
        """Count the neurons of an expert: of a copy, all of them."""
        return model.d_ff

    def later_protocol(self, model: Model) -> frozenset[str]:
        """Name those options of `Protocol.LATER` that can change a number.

        Args:
            model: the backbone's options.
        """
        family = FAMILIES[model.family]
        found = {"switch_losses", "jitter_in_evaluation"} if family.reads_experts else set()
        if self.converts and family.residual_dropout is not None:
            found.add("residual_dropout")
        return frozenset(found)

    def protocol_problems(self, protocol: Protocol) -> list[str]:
        """Check values of the protocol that the method cannot follow; see `problems`."""
        return []

    def export_problems(self, export: str) -> list[str]:
        """Check that the tuned model has the form that is to be written: none, dense, moe or hf."""
        if export in ("moe", "hf") and not self.converts:
            return [f"export={export} and method={self.name} exclude each other; use export=dense"]
        if export == "hf" and self.not_standard is not None:
            return [
                f"export=hf: method={self.name} is no mixture of transformers: it has "
                f"{self.not_standard}; use export=moe"
            ]
        if export == "dense" and self.not_mergeable is not None:
            return [f"export=dense: {self.not_mergeable}; use export=moe"]
        return []

    def expansion(self) -> Expansion:
        """Estimate what becomes of an FFN, for a plan."""
        return Expansion()

    def added_parameters(self, model: Model, layers: int) -> int:
        """Estimate the parameters that come beside copies of FFNs, for a plan; routers left out.

        Args:
            model: its sizes are read.
            layers: that are converted.
        """
        return 0

    def tuned_under(self, protocol: Protocol) -> Protocol:
        """Say which protocol decides what trains beside LoRA."""
        return protocol

    def trains_whole_blocks(self, protocol: Protocol) -> bool:
        """Tell whether LoRA goes with full training of the converted blocks."""
        return False
