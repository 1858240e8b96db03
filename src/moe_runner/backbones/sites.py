"""FFN sites: find, read, replace and restore the feed-forward networks of a backbone.

Nothing rewrites a block's `forward`. Where the FFN is one module it is replaced; in other blocks
the first projection's module becomes the MoE layer and the rest the identity, so that residual,
dropout and LayerNorm stay the library's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_runner.moe.experts import FFN


@dataclass(frozen=True)
class FFNSite:
    """One feed-forward network of a backbone, by the names of its modules.

    Args:
        family: name of the family.
        stack: `encoder` or `decoder`.
        layer: 0-based index within the stack.
        block: name of the transformer block that it is in.
        key: name of the first (gated: the gate) projection, a Linear or Conv1D.
        value: name of the second projection.
        up: name of the up projection of a gated FFN.
        slot: name of the module whose place the MoE layer takes.
        bypass: names of the modules that are the identity meanwhile.
        activation: elementwise function between the projections.
        dropout: probability of the dropout between activation and second projection.
    """

    family: str
    stack: str
    layer: int
    block: str
    key: str
    value: str
    slot: str
    activation: Callable[[Tensor], Tensor]
    up: str | None = None
    bypass: tuple[str, ...] = ()
    dropout: float = 0.0
    shells: dict[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)

    def read(self, model: nn.Module) -> FFN:
        """Read the network as plain tensors; no copy where the layout allows it.

        Args:
            model: the backbone that the names belong to.

        Returns:
            The FFN; its keys and values have shape (d_ff, d_model).
        """
        keys, key_bias = projection(model.get_submodule(self.key))
        second, output_bias = projection(model.get_submodule(self.value))
        ups, up_bias = (None, None)
        if self.up is not None:
            ups, up_bias = projection(model.get_submodule(self.up))
        return FFN(
            keys=keys,
            values=second.T,
            activation=self.activation,
            key_bias=key_bias,
            ups=ups,
            up_bias=up_bias,
            output_bias=output_bias,
            dropout=self.dropout,
        )

    def replace(self, model: nn.Module, layer: nn.Module) -> None:
        """Put a layer in the network's place; the emptied modules are kept aside for `restore`.

        Args:
            model: the backbone.
            layer: maps (..., d_model) to (..., d_model), output bias included.
        """
        for name in (self.slot, *self.bypass):
            self.shells[name] = model.get_submodule(name)
        model.set_submodule(self.slot, layer)
        for name in self.bypass:
            model.set_submodule(name, nn.Identity())
        for shell in self.shells.values():
            shell.to("meta")  # frees the weights, keeps class, names and settings

    def restore(self, model: nn.Module, ffn: FFN) -> None:
        """Put the original modules back, in the mode of the layer, holding the given weights.

        Args:
            model: the backbone, after `replace`.
            ffn: the network in the original order of its neurons; a tensor that requires a
                gradient becomes a parameter that trains.
        """
        training = model.get_submodule(self.slot).training
        for name in (self.slot, *self.bypass):
            model.set_submodule(name, self.shells.pop(name).train(training))
        for name, tensor in self.dense_tensors(model, ffn).items():
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
            setattr(model.get_submodule(owner), attribute, parameter)

    def dense_tensors(self, model: nn.Module, ffn: FFN) -> dict[str, Tensor]:
        """Name the dense weights as the backbone's state dict does.

        Args:
            model: the backbone, replaced or not.
            ffn: the network in the original order of its neurons.

        Returns:
            Contiguous tensors in the layout of the original modules, by full parameter name.
        """
        rows = {self.key: ffn.keys, self.value: ffn.values.T}
        biases = {self.key: ffn.key_bias, self.value: ffn.output_bias}
        if self.up is not None and ffn.ups is not None:
            rows[self.up], biases[self.up] = ffn.ups, ffn.up_bias
        tensors: dict[str, Tensor] = {}
        for name, weight in rows.items():
            transposed = isinstance(self.module(model, name), Conv1D)
            tensors[f"{name}.weight"] = (weight.T if transposed else weight).contiguous()
            bias = biases[name]
            if bias is not None:
                tensors[f"{name}.bias"] = bias.contiguous()
        return tensors

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """Find an original module by name, in the model or among those put aside."""
        for root, shell in self.shells.items():
            if name == root or name.startswith(f"{root}."):
                return shell.get_submodule(name[len(root) + 1 :])
        return model.get_submodule(name)


@dataclass(frozen=True)
class SparseSite:
    """A layer that is a mixture of experts already: those of a Switch Transformer.

    Args:
        family: name of the family.
        stack: `encoder` or `decoder`.
        layer: 0-based index within the stack.
        block: name of the transformer block that it is in.
        slot: name of the module whose place the MoE layer takes; it has `router` and `experts`.
        activation: elementwise function between the projections.
        dropout: probability of the dropout between activation and second projection.
    """

    family: str
    stack: str
    layer: int
    block: str
    slot: str
    activation: Callable[[Tensor], Tensor]
    dropout: float = 0.0

    @property
    def key(self) -> str:
        """What names the site."""
        return self.slot

    def read(self, model: nn.Module) -> list[FFN]:
        """Read the experts as plain tensors."""
        ffns = []
        for expert in model.get_submodule(f"{self.slot}.experts").children():
            keys, key_bias = projection(expert.get_submodule("wi"))
            second, output_bias = projection(expert.get_submodule("wo"))
            ffns.append(
                FFN(
                    keys=keys,
                    values=second.T,
                    activation=self.activation,
                    key_bias=key_bias,
                    output_bias=output_bias,
                    dropout=self.dropout,
                )
            )
        return ffns

    def router_weight(self, model: nn.Module) -> Tensor:
        """Read the router's projection, float (E, d_model)."""
        return projection(model.get_submodule(f"{self.slot}.router.classifier"))[0]

    def replace(self, model: nn.Module, layer: nn.Module) -> None:
        """Put a layer in the place of the sparse layer."""
        model.set_submodule(self.slot, layer)


def projection(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Read a Linear or Conv1D as (out, in) rows and bias.

    Args:
        module: nn.Linear, or the Conv1D of GPT-2 (whose weight is (in, out)).

    Returns:
        Weight (out, in) and bias (out,) or None.

    Raises:
        TypeError: for any other module, for example a quantised or LoRA-wrapped one.
    """
    if isinstance(module, Conv1D):
        return module.weight.T, module.bias
    if isinstance(module, nn.Linear):
        return module.weight, module.bias
    raise TypeError(
        f"cannot read the weights of a {type(module).__name__}; convert before LoRA or quantisation"
    )


def find_sites(model: PreTrainedModel) -> list[FFNSite]:
    """Find every FFN of a Hugging Face model.

    Args:
        model: a bare backbone or one with a head, of a supported family.

    Returns:
        The sites, stack by stack, in the order of the layers.

    Raises:
        ValueError: if the family is not supported; names it and the supported ones.
    """
    base, prefix = model.base_model, base_prefix(model)
    names = ("block", "key", "value", "up", "slot")
    return [
        replace(
            site,
            bypass=tuple(prefix + name for name in site.bypass),
            **{name: prefix + getattr(site, name) for name in names if getattr(site, name)},
        )
        for site in family_of(model).sites(base)
    ]


def find_sparse_sites(model: PreTrainedModel) -> list[SparseSite]:
    """Find the layers of a model that are mixtures of experts already; none but in a Switch.

    Raises:
        ValueError: if the family is not supported; names it and the supported ones.
    """
    family, prefix = family_of(model), base_prefix(model)
    found = family.sparse_sites(model.base_model) if hasattr(family, "sparse_sites") else []
    return [replace(s, block=prefix + s.block, slot=prefix + s.slot) for s in found]


def base_prefix(model: PreTrainedModel) -> str:
    """Name the bare backbone within a model, with a dot behind; "" if it is the model itself."""
    base = model.base_model
    root = next(name for name, module in model.named_modules() if module is base)
    return f"{root}." if root else ""


def family_of(model: PreTrainedModel) -> ModuleType:
    """Look up the module of a model's family.

    Raises:
        ValueError: if the family is not supported; names it and the supported ones.
    """
    from moe_runner.backbones import bert, gpt2, llama, switch, t5, vit

    families = {
        "bert": bert,
        "gpt2": gpt2,
        "llama": llama,
        "switch_transformers": switch,
        "t5": t5,
        "vit": vit,
    }
    family = model.config.model_type
    if family not in families:
        raise ValueError(
            f"model type {family!r} has no known FFN sites; supported: {', '.join(families)}"
        )
    return families[family]
