"""Find the FFN sites of any transformers model, by pattern, from the modules of its blocks.

A network is two projections (gated: three, or two of which the first holds gate and up projection)
with an elementwise function between them; `reading` says what the code does with them. Its place:

- the whole module, where the module is the network and nothing else (ViT, Llama, T5, Phi-3);
- `intermediate`, where `output.dense` is the second projection (BERT);
- the first projection, while activation and second projection are the identity, where dropout, a
  residual or a whole block is around them (GPT-2, OPT, BART).

Model types that are in the table of families are verified by the tests; any other one proves itself
on a random batch (`proof`). What looks like an FFN and is none of these is refused with the cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_runner.backbones.families import family_of_type, is_verified, name_of_type
from moe_runner.backbones.interpreter import PROJECTIONS
from moe_runner.backbones.proof import prove
from moe_runner.backbones.reading import (
    Reading,
    count_uses,
    projects_its_argument,
    read_code,
    reads_through,
)
from moe_runner.backbones.sites import FFNSite, NativeExperts, SparseSite, projection
from moe_runner.moe.layer import MoEFeedForward

LISTS = (nn.ModuleList, nn.Sequential)  # what blocks are children of


@dataclass
class Found:
    """The sites of a bare backbone, names relative to it, and why others cannot be converted."""

    sites: list[FFNSite] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)  # block -> causes
    claimed: list[str] = field(default_factory=list)  # modules whose inside is no site


def find_sites(model: PreTrainedModel) -> list[FFNSite]:
    """Find every FFN of a Hugging Face model.

    Args:
        model: a bare backbone or one with a head.

    Returns:
        The sites, stack by stack, in the order of the layers; none if every layer is a mixture of
        experts already.

    Raises:
        ValueError: if there is no FFN, if one cannot be converted or shares its weights, or if a
            model type that is not verified computes something else; names the cause. The model is
            unchanged.
    """
    kind, base, prefix = model.config.model_type, model.base_model, base_prefix(model)
    found = scan(base)
    converted = {site.block for site in found.sites}
    refused = {block: why for block, why in found.refused.items() if block not in converted}
    if refused:
        block, why = next(iter(refused.items()))
        raise ValueError(
            f"model type {kind!r} cannot be converted: {prefix}{block} {'; it '.join(why)}"
        )
    if not found.sites and not (find_native_experts(model) or find_sparse_sites(model)):
        raise ValueError(
            f"model type {kind!r} has no known FFN sites: its blocks have no two Linear or Conv1D "
            "with an activation function between them; convert before LoRA or quantisation"
        )
    names = ("block", "key", "value", "up", "slot")
    sites = [
        replace(
            site,
            bypass=tuple(prefix + name for name in site.bypass),
            settings=tuple((prefix + name, value) for name, value in site.settings),
            **{name: prefix + getattr(site, name) for name in names if getattr(site, name)},
        )
        for site in with_places(base, model, found.sites)
    ]
    check_own_weights(model, sites)
    if not is_verified(kind):
        prove(model, sites)
    return sites


def check_own_weights(model: PreTrainedModel, sites: list[FFNSite]) -> None:
    """Check that no layers share a network, or some of its weights.

    Each site gets a layer of its own: what is shared would be replaced in one place only. ALBERT,
    whose layers call one module that has one name, is a single site.

    Raises:
        ValueError: if a weight of a site has another name, too.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for site in sites:
        for module in filter(None, (site.key, site.value, site.up)):
            for parameter in model.get_submodule(module).parameters(recurse=False):
                if len(own := names[id(parameter)]) > 1:
                    raise ValueError(
                        f"model type {model.config.model_type!r} cannot be converted: "
                        f"{' and '.join(own[:2])} are one parameter, and every FFN needs its own; "
                        "untie them first (copy.deepcopy of the module)"
                    )


def scan(base: nn.Module) -> Found:
    """Go through all modules of a backbone; stacks and layer numbers are left open."""
    found = Found(claimed=[name for name, _ in expert_containers(base)])
    for name, owner in base.named_modules():
        if any(name == inside or name.startswith(f"{inside}.") for inside in found.claimed):
            continue
        if hasattr(owner, "intermediate") and hasattr(owner, "output"):
            split(base, name, owner, found)
        children = [c for c in owner.children() if isinstance(c, PROJECTIONS)]
        if len(children) < 2:
            continue
        for read in read_code(owner):
            if isinstance(read, Reading):
                add(base, name, owner, read, found)
            elif len(children) <= 3 and not is_mixer(owner):
                block = block_of(base, name, (name,))
                if block is not None:
                    found.refused.setdefault(block, []).append(f"{read.reason} ({name})")
    return found


def split(base: nn.Module, name: str, owner: nn.Module, found: Found) -> None:
    """Add a network whose projections are in `intermediate` and `output` (BERT)."""
    block = block_of(base, name, (f"{name}.intermediate", f"{name}.output.dense"))
    one, other = owner.intermediate, owner.output
    if block is None or not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
        return
    first, second = reads_through(one), projects_its_argument(other)
    if first is None or second is None:
        parts = (*one.modules(), *other.modules())
        kinds = dict.fromkeys(describe(part) for part in parts if has_parameters(part))
        found.refused.setdefault(block, []).append(f"splits its FFN into {', '.join(kinds)}")
        return
    key, value = f"{name}.intermediate.{first[0]}", f"{name}.output.{second}"
    if not fits(base, key, value, fused=False):
        return
    found.claimed.append(f"{name}.output")  # X-MOD has adapters there
    found.sites.append(
        FFNSite(
            family="",
            stack="",
            layer=0,
            block=block,
            key=key,
            value=value,
            slot=f"{name}.intermediate",
            bypass=(value,),
            activation=first[1].function,
        )
    )


def add(base: nn.Module, name: str, owner: nn.Module, read: Reading, found: Found) -> None:
    """Add a network whose projections are children of one module."""
    key, value = f"{name}.{read.key}", f"{name}.{read.value}"
    up = None if read.up is None else f"{name}.{read.up}"
    block = block_of(base, name, tuple(filter(None, (key, value, up))))
    if block is None or not fits(base, key, value, fused=read.fused):
        return
    site = FFNSite(
        family="",
        stack="",
        layer=0,
        block=block,
        key=key,
        value=value,
        up=up,
        fused=read.fused,
        slot=name if read.whole else key,
        activation=read.activation,
        dropout=0.0 if read.drop is None else read.drop.probability,
    )
    if not read.whole:
        try:
            site = inline(site, name, owner, read)
        except ValueError as error:
            found.refused.setdefault(block, []).append(f"{error} ({name})")
            return
    found.sites.append(site)


def inline(site: FFNSite, name: str, owner: nn.Module, read: Reading) -> FFNSite:
    """Say what has to be the identity while the first projection's place holds the layer.

    Raises:
        ValueError: if something would be applied that should not, or the other way round.
    """
    if read.up is not None or read.fused:
        raise ValueError("does more in the module of its gated FFN than the FFN")
    if read.touched:
        raise ValueError("reads the weights of its projections")
    bypass: list[str] = []
    settings: list[tuple[str, Any]] = []
    uses = count_uses(owner)
    if not read.act:
        raise ValueError("names its activation function in the code, where it cannot be taken out")
    if uses[read.act] > 1:
        raise ValueError(f"uses {read.act} for something else, too")
    if isinstance(getattr(owner, read.act), nn.Module):
        bypass.append(f"{name}.{read.act}")
    else:
        settings.append((f"{name}.{read.act}", same))
    output_dropout = 0.0
    if read.drop is not None and read.drop.module:
        if uses[read.drop.name] > 1 + read.dropped_again:
            raise ValueError(f"uses {read.drop.name} for something else, too")
        bypass.append(f"{name}.{read.drop.name}")
        output_dropout = read.drop.probability if read.dropped_again else 0.0
    elif read.drop is not None and read.drop.probability > 0:
        if not read.drop.name or uses[read.drop.name] > 1:
            raise ValueError("drops its neurons with the probability of another dropout")
        settings.append((f"{name}.{read.drop.name}", 0.0))
    return replace(
        site,
        bypass=(*bypass, site.value),
        settings=tuple(settings),
        output_dropout=output_dropout,
    )


def same(x: Tensor) -> Tensor:
    """Return the argument: what a functional activation is meanwhile."""
    return x


def fits(base: nn.Module, key: str, value: str, *, fused: bool) -> bool:
    """Tell whether the projections lead from one width to the same one."""
    first, _ = projection(base.get_submodule(key))
    second, _ = projection(base.get_submodule(value))
    width = first.shape[0] // (2 if fused else 1)
    return first.shape[1] == second.shape[0] and second.shape[1] == width


def describe(module: nn.Module) -> str:
    """Name a module's class, with the groups of a convolution."""
    groups = getattr(module, "groups", 1)
    return type(module).__name__ + (f" of {groups} groups" if groups != 1 else "")


def has_parameters(module: nn.Module) -> bool:
    """Tell whether a module has parameters of its own, those of its children apart."""
    return any(True for _ in module.parameters(recurse=False))


def is_mixer(owner: nn.Module) -> bool:
    """Tell whether a module mixes positions: a state space or a convolution is no FFN."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(isinstance(c, convolutions) for c in owner.children()) or has_parameters(owner)


def block_of(base: nn.Module, name: str, own: tuple[str, ...]) -> str | None:
    """Find the transformer block that a network is in.

    Args:
        base: the backbone.
        name: of the module that holds the network.
        own: names of the network's modules.

    Returns:
        The innermost item of a list that has weights beside the network's; the outermost item if
        all its weights are the network's; None if it is in no list (a head, a projector) or a part
        of an attention (SwinV2's position bias).
    """
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    if any("Attention" in type(base.get_submodule(module)).__name__ for module in above):
        return None
    items = [m for m in above if isinstance(base.get_submodule(m.rpartition(".")[0]), LISTS)]
    for item in items:
        for weight, parameter in base.get_submodule(item).named_parameters():
            inside = any(f"{item}.{weight}".startswith(f"{module}.") for module in own)
            if parameter.ndim > 1 and not inside:
                return item
    return items[-1] if items else None


def with_places(base: nn.Module, model: PreTrainedModel, sites: list[FFNSite]) -> list[FFNSite]:
    """Fill in family, stack and layer number, and how many layers share a network."""
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    for name, _ in base.named_modules():
        pattern = without_numbers(name)
        numbers[name] = counts[pattern] = counts.get(pattern, -1) + 1
    family = family_of_type(model.config.model_type)
    stacks = stack_names(model, [site.block for site in sites])
    shared = 1
    if family is not None and family.shares_layers:
        shared = model.config.num_hidden_layers // model.config.num_hidden_groups
    return [
        replace(
            site,
            family=name_of_type(model.config.model_type),
            stack=stacks[site.block],
            layer=numbers[site.block],
            shared=shared,
        )
        for site in sites
    ]


def without_numbers(name: str) -> str:
    """Replace the indices in a module's name."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "N", name)


def stack_names(model: PreTrainedModel, blocks: list[str]) -> dict[str, str]:
    """Name the stack of each block: encoder, decoder, or with several towers the tower."""
    roots = {block: without_numbers(block).partition("N")[0].rstrip(".") for block in blocks}
    towers = list(dict.fromkeys(roots.values()))
    causal = model.config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names: dict[str, str] = {}
    for root in towers:
        if len(towers) > 1 and not model.config.is_encoder_decoder:
            names[root] = root.partition(".")[0]
            continue
        parts = [part for part in root.split(".") if part in ("encoder", "decoder")]
        if model.config.is_encoder_decoder:
            parts = parts[:1]  # the outermost: a decoder that is a BERT has an `encoder` inside
        names[root] = parts[-1] if parts else ("decoder" if causal else "encoder")
    return {block: names[root] for block, root in roots.items()}


def find_sparse_sites(model: PreTrainedModel) -> list[SparseSite]:
    """Find the layers that are mixtures of experts already and can be read: those of a Switch."""
    base, prefix = model.base_model, base_prefix(model)
    family = family_of_type(model.config.model_type)
    if family is None or not family.reads_experts:
        return []
    found = []
    for name, module in expert_containers(base):
        slot = name.rpartition(".")[0]
        block = block_of(base, slot, (slot,))
        assert block is not None
        expert: Any = next(iter(module.children()))
        found.append(
            SparseSite(
                family=family.name,
                stack=name.partition(".")[0],
                layer=int(block.rpartition(".")[2]),
                block=prefix + block,
                slot=prefix + slot,
                activation=expert.act,
                dropout=expert.dropout.p,
            )
        )
    return found


def expert_containers(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Go through the modules that hold the library's experts of a mixture: names and modules."""
    inside: str | None = None
    for name, module in base.named_modules():
        if inside is not None and name.startswith(f"{inside}."):
            continue
        if isinstance(module, MoEFeedForward):
            inside = name
            continue
        children = dict(module.named_children())
        parts = [part for child, part in children.items() if child != "experts"]
        stacked = any(p.ndim == 3 for part in parts for p in part.parameters(False))
        if name.rpartition(".")[2] == "experts" or (stacked and "router" in children):  # JetMoE
            inside = name
            yield name, module


def find_native_experts(model: nn.Module) -> list[NativeExperts]:
    """Find the layers that are mixtures of experts already and are the library's.

    Args:
        model: a bare backbone or one with a head; of a converted model what is left.

    Returns:
        The layers in order: of Mixtral, Qwen-MoE, OLMoE and their like, and of a Switch.

    Raises:
        ValueError: if nothing says how many experts a token passes.
    """
    config: Any = getattr(model, "config", None)
    family = None if config is None else family_of_type(config.model_type)
    found = []
    for name, module in expert_containers(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        listed = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        near = [module, *module.children(), parent, *parent.children()]
        num_experts = whole_number(near, "num_experts") or (
            len(list(module.children())) if listed else None
        )
        top_k = whole_number(near, "top_k") or (None if family is None else family.top_k)
        if num_experts is None or top_k is None:
            raise ValueError(f"{name} does not say how many experts a token passes")
        own = [
            parameter
            for within, parameter in module.named_parameters()
            if "router" not in within and (listed or parameter.ndim > 1)
        ]
        matrices = 3 if any(parameter.ndim == 3 for parameter in own) else 2
        routers = {
            parameter
            for part in near
            if not isinstance(part, nn.Linear)  # counted as any other Linear
            for parameter in part.parameters(recurse=False)
            if parameter.shape[:1] == (num_experts,) and parameter.ndim == 2
        }
        routers |= {p for within, p in module.named_parameters() if "router" in within}
        found.append(
            NativeExperts(
                slot=name,
                num_experts=num_experts,
                top_k=top_k,
                parameters=sum(p.numel() for p in own),
                weights=sum(p.numel() for p in own if p.ndim == matrices),
                router_weights=sum(p.numel() for p in routers - set(own) if p.ndim == 2),
            )
        )
    return found


def whole_number(modules: list[nn.Module], name: str) -> int | None:
    """Read an attribute from the first module that has it as a whole number."""
    found = [getattr(module, name, None) for module in modules]
    return next((value for value in found if isinstance(value, int)), None)


def base_prefix(model: PreTrainedModel) -> str:
    """Name the bare backbone within a model, with a dot behind; "" if it is the model itself."""
    base = model.base_model
    root = next(name for name, module in model.named_modules() if module is base)
    return f"{root}." if root else ""
