"""Which parameters of a converted model train, and how fast."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set

from transformers import PreTrainedModel

from moe_runner.backbones.families import name_of_type
from moe_runner.backbones.finder import find_sites, without_numbers
from moe_runner.backbones.lora import add_lora, set_trainable
from moe_runner.backbones.sites import FFNSite
from moe_runner.conversion.convert import choose_sites
from moe_runner.conversion.record import Conversion
from moe_runner.methods.reference_code import protocol_of_family
from moe_runner.options.method import Method
from moe_runner.options.protocol import Protocol
from moe_runner.options.training import Tuning

log = logging.getLogger(__name__)


def apply_tuning(
    model: PreTrainedModel,
    options: Tuning,
    targets: tuple[str, ...],
    *,
    head: Set[str],
    conversion: Conversion,
    protocol: Protocol,
    method: Method | None = None,
) -> dict[str, float]:
    """Add what the tuning needs and let exactly its parameters train.

    `full`: everything. `lora`: LoRA on the attention projections, the head, and what the conversion
    added. `lora_block`: also the transformer blocks that are converted, be it after tuning (dense:
    `options.blocks`).

    Args:
        model: with a head, converted already.
        options: the tuning.
        targets: last parts of the names of the attention projections.
        head: parameters that the pretrained weights do not have.
        conversion: what was added where.
        protocol: what the reference code trains beside that.
        method: of the run, which may convert only after tuning; None: that of the conversion.

    Returns:
        What the learning rate is multiplied by, for every parameter that trains.

    Raises:
        ValueError: if no module that LoRA can adapt has the name of a target.

    Source: EMoE, arXiv:2310.10908; the tenth for new modules and the whole blocks: its code.
    """
    protocol = protocol_of_family(protocol, name_of_type(model.config.model_type))
    protocol = conversion.method.tuned_under(protocol)
    method = method or conversion.method
    new = conversion.new_parameters(model)
    if options.name == "full":
        scales = {name: 1.0 for name, _ in model.named_parameters()}
        rest: set[str] = set()
    else:
        blocks = whole_blocks(model, options, conversion, protocol, method)
        passing = networks(model, conversion) if method.converted_at != "both" else set()
        if adapted := sorted(name for name in passing if name.rpartition(".")[2] in targets):
            log.warning(
                "  LoRA leaves out %d modules that model.lora_targets names, such as %s: with "
                "method.convert_at=%s the feed-forward networks change their form after tuning",
                len(adapted),
                adapted[0],
                method.converted_at,
            )
        add_lora(model, options, targets, owners(head) | passing)
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


def owners(parameters: Set[str]) -> set[str]:
    """Name the modules that parameters are in."""
    return {name.rpartition(".")[0] for name in parameters}


def networks(model: PreTrainedModel, conversion: Conversion) -> set[str]:
    """Name the projections of all feed-forward networks, as far as they are not experts now.

    Where the form changes after tuning, the networks are looked for once more, and LoRA hides them.
    """
    sites = conversion.sites or find_sites(model)
    like = {
        without_numbers(name)
        for site in sites
        if isinstance(site, FFNSite)
        for name in (site.key, site.value, site.up)
        if name is not None
    }
    return {name for name, _ in model.named_modules() if without_numbers(name) in like}


def whole_blocks(
    model: PreTrainedModel,
    options: Tuning,
    conversion: Conversion,
    protocol: Protocol,
    method: Method,
) -> list[str]:
    """Name the transformer blocks that train whole beside LoRA.

    Raises:
        ConfigError: if the rule for the layers does not fit the model.
    """
    if options.name == "lora_block":
        if conversion.layers:
            return conversion.converted_blocks()
        rule = method.layer_rule if method.converts else options.blocks
        assert rule is not None  # checked with the config
        return list(dict.fromkeys(site.block for site in choose_sites(find_sites(model), rule)))
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
