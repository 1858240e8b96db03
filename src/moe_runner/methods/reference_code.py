"""What EMoE's reference code does beside the equations, as settings of a layer.

The options are those of `Protocol`; with `protocol=paper` all of this does nothing.

Source: the authors' repository (qiuzh20/EMoE); its Llama code has none of these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moe_runner.moe.experts import FFN
from moe_runner.moe.layer import Capacity
from moe_runner.options.protocol import Protocol
from moe_runner.registry import FAMILIES


def protocol_of_family(protocol: Protocol, family: str) -> Protocol:
    """Leave out of a protocol what EMoE's code does not do in a family: routing and tuning.

    Args:
        protocol: of the run.
        family: of the backbone.

    Returns:
        The protocol; for Llama and its like only the random grouping is left of it.
    """
    row = FAMILIES.get(family)
    if row is None or row.reference_extras:
        return protocol
    return Protocol(contiguous_random=protocol.contiguous_random)


def with_reference_dropout(ffn: FFN, family: str, protocol: Protocol) -> FFN:
    """Add the dropout that sits inside the reference code's experts.

    Args:
        ffn: the dense network.
        family: vision has it after the activation function, language before.
        protocol: its `expert_dropout` is used.

    Returns:
        The network with the dropout; as it was if that is 0.
    """
    if protocol.expert_dropout == 0:
        return ffn
    row = FAMILIES.get(family)
    if row is not None and row.dropout_after_activation:
        return replace(ffn, dropout=protocol.expert_dropout)
    return replace(ffn, pre_dropout=protocol.expert_dropout)


def capacity_of(protocol: Protocol) -> Capacity:
    """Limit the experts as EMoE's code does: what is over is lost."""
    return Capacity(factor=protocol.capacity_factor)


def with_whole_bias(protocol: Protocol, family: str) -> Protocol:
    """Leave the output bias of copies whole where EMoE's vision code does.

    Args:
        protocol: its `whole_vision_bias` is used.
        family: of the backbone.

    Returns:
        The protocol, with `split_output_bias` off if the copies keep their biases.
    """
    row = FAMILIES.get(family)
    vision = row is not None and row.dropout_after_activation
    if vision and protocol.whole_vision_bias:
        return replace(protocol, split_output_bias=False)
    return protocol


def load_of(protocol: Protocol) -> Literal["published", "emoe"]:
    """Choose the load half of the balance loss: the equation's, or that of EMoE's code."""
    mixed = protocol.load_threshold == "probabilities" and protocol.load_threshold_on == "all"
    return "emoe" if mixed else "published"


def algorithm_of(clustering: str, protocol: Protocol) -> str:
    """Name the algorithm that groups the neurons: the code's random groups are in neuron order."""
    return "contiguous" if clustering == "random" and protocol.contiguous_random else clustering
