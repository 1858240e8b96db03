"""Which parameters of a converted model train, and how fast."""

from __future__ import annotations

from collections.abc import Sequence, Set

from transformers import PreTrainedModel

from moe_runner.backbones.families import name_of_type
from moe_runner.backbones.finder import find_sites
from moe_runner.backbones.lora import add_lora, set_trainable
from moe_runner.conversion.convert import choose_sites
from moe_runner.conversion.record import Conversion
from moe_runner.methods.reference_code import protocol_of_family
from moe_runner.options.protocol import Protocol
from moe_runner.options.training import Tuning


def apply_tuning(
    model: PreTrainedModel,
    options: Tuning,
    targets: tuple[str, ...],
    *,
    head: Set[str],
    conversion: Conversion,
    protocol: Protocol,
) -> dict[str, float]:
    """Add what the tuning needs and let exactly its parameters train.

    `full`: everything. `lora`: LoRA on the attention projections, the head, and what the conversion
    added. `lora_block`: also the transformer blocks that are converted (dense: `options.blocks`).

    Args:
        model: with a head, converted already.
        options: the tuning.
        targets: last parts of the names of the attention projections.
        head: parameters that the pretrained weights do not have.
        conversion: what was added where.
        protocol: what the reference code trains beside that.

    Returns:
        What the learning rate is multiplied by, for every parameter that trains.

    Raises:
        ValueError: if no module has the name of a LoRA target.

    Source: EMoE, arXiv:2310.10908; the tenth for new modules and the whole blocks: its code.
    """
    protocol = protocol_of_family(protocol, name_of_type(model.config.model_type))
    protocol = conversion.method.tuned_under(protocol)
    new = conversion.new_parameters(model)
    if options.name == "full":
        scales = {name: 1.0 for name, _ in model.named_parameters()}
        rest: set[str] = set()
    else:
        blocks = whole_blocks(model, options, conversion, protocol)
        add_lora(model, options, targets)
        names = [name for name, _ in model.named_parameters()]
        # LoRA wraps its targets, never the head or an expert: their names stay.
        rest = inside(names, blocks)
        if trains_outside_layers(options, conversion, protocol):
            rest |= outside_layers(names, conversion.blocks)
        lora = {name for name in names if ".lora_" in name}
        rest -= lora | head | new
        scales = dict.fromkeys(rest, protocol.rest_lr_scale)
        scales |= dict.fromkeys(lora | head, 1.0)
    scales |= dict.fromkeys(new, options.new_modules_lr_scale)
    for name, own in conversion.own_lr_scales(model).items():
        scales[name] *= own
    set_trainable(model, set(scales))
    return scales


def whole_blocks(
    model: PreTrainedModel, options: Tuning, conversion: Conversion, protocol: Protocol
) -> list[str]:
    """Name the transformer blocks that train whole beside LoRA.

    Raises:
        ConfigError: if the rule for a dense model does not fit its layers.
    """
    if options.name == "lora_block":
        if conversion.layers:
            return conversion.converted_blocks()
        assert options.blocks is not None  # checked with the config
        return [site.block for site in choose_sites(find_sites(model), options.blocks)]
    if conversion.method.trains_whole_blocks(protocol):
        return conversion.converted_blocks()
    return []


def trains_outside_layers(options: Tuning, conversion: Conversion, protocol: Protocol) -> bool:
    """Tell whether the reference code trains everything but layers and embeddings here."""
    compared = conversion.method.tunes_outside_layers
    return protocol.train_outside_layers and (compared or options.name == "lora_block")


def inside(names: Sequence[str], blocks: Sequence[str]) -> set[str]:
    """Choose the parameters of some blocks."""
    prefixes = tuple(f"{block}." for block in blocks)
    return {name for name in names if prefixes and name.startswith(prefixes)}


def outside_layers(names: Sequence[str], blocks: Sequence[str]) -> set[str]:
    """Choose the parameters that are neither in a transformer block nor in an embedding."""

    def embeds(name: str) -> bool:
        return any("embed" in part or part in ("wte", "wpe", "shared") for part in name.split("."))

    within = inside(names, blocks)
    return {name for name in names if name not in within and not embeds(name)}
