"""FFN sites: read, replace and restore the feed-forward networks of a backbone.

Nothing rewrites a block's `forward`. Where the FFN is one module it is replaced; in other blocks
the first projection's module becomes the MoE layer and the rest the identity, so that residual,
dropout and LayerNorm stay the library's. What drops neurons moves into the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from moe_runner.moe.experts import FFN


@dataclass(frozen=True)
class FFNSite:
    """One feed-forward network of a backbone, by the names of its modules.

    Args:
        family: name of the family.
        stack: `encoder` or `decoder`; with several towers, the tower's name.
        layer: 0-based index of the block within the stack.
        block: name of the transformer block that it is in.
        key: name of the first (gated: the gate) projection, a Linear or Conv1D.
        value: name of the second projection.
        slot: name of the module whose place the MoE layer takes.
        activation: elementwise function between the projections.
        up: name of the up projection of a gated FFN.
        bypass: names of the modules that are the identity meanwhile.
        dropout: probability of the dropout between activation and second projection.
        fused: the first projection holds the gate's rows, then the up projection's.
        output_dropout: of what stands in for the second projection: one module drops both neurons
            and output, and the neurons' has moved into the layer.
        settings: attributes of modules that have another value meanwhile: a functional dropout 0, a
            functional activation the identity.
        shared: how many layers of the stack call this one network; 1 but in ALBERT.
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
    fused: bool = False
    output_dropout: float = 0.0
    settings: tuple[tuple[str, Any], ...] = ()
    shared: int = 1
    shells: dict[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    held: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

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
        elif self.fused:
            keys, ups = keys.chunk(2)
            if key_bias is not None:
                key_bias, up_bias = key_bias.chunk(2)
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
        self.put(model, layer)
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
        for shell in self.shells.values():
            shell.train(training)
        self.put_back(model)
        for name, tensor in self.dense_tensors(model, ffn).items():
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
            setattr(model.get_submodule(owner), attribute, parameter)

    def put(self, model: nn.Module, layer: nn.Module) -> None:
        """Put a layer in the network's place and remember what was there."""
        for name in (self.slot, *self.bypass):
            self.shells[name] = model.get_submodule(name)
        model.set_submodule(self.slot, layer)
        for name in self.bypass:
            drops = name == self.value and self.output_dropout > 0
            meanwhile = nn.Dropout(self.output_dropout) if drops else nn.Identity()
            model.set_submodule(name, meanwhile.train(layer.training))
        for name, value in self.settings:
            owner, _, attribute = name.rpartition(".")
            self.held[name] = getattr(model.get_submodule(owner), attribute)
            setattr(model.get_submodule(owner), attribute, value)

    def put_back(self, model: nn.Module) -> None:
        """Undo `put`: the same modules and values as before."""
        for name in (self.slot, *self.bypass):
            model.set_submodule(name, self.shells.pop(name))
        for name, _ in self.settings:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, self.held.pop(name))

    @contextmanager
    def standing_in(self, model: nn.Module, layer: nn.Module) -> Iterator[None]:
        """Put a layer in the network's place for the length of a `with`."""
        self.put(model, layer)
        try:
            yield
        finally:
            self.put_back(model)

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
        elif self.fused and ffn.ups is not None:
            rows[self.key] = torch.cat([ffn.keys, ffn.ups])
            if ffn.key_bias is not None and ffn.up_bias is not None:
                biases[self.key] = torch.cat([ffn.key_bias, ffn.up_bias])
        modules = {name: self.module(model, name) for name in rows}
        dtypes = {name: projection(module)[0].dtype for name, module in modules.items()}
        mixed = len(set(dtypes.values())) > 1
        tensors: dict[str, Tensor] = {}
        for name, weight in rows.items():
            transposed = isinstance(modules[name], Conv1D)
            own = {"weight": weight.T if transposed else weight, "bias": biases[name]}
            for kind, tensor in own.items():
                if tensor is not None:  # each of its own dtype again, see `FFN.of_one_dtype`
                    tensor = tensor.to(dtypes[name]) if mixed else tensor
                    tensors[f"{name}.{kind}"] = tensor.contiguous()
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


@dataclass(frozen=True)
class NativeExperts:
    """A layer that was a mixture of experts when it was pretrained, and stays the library's.

    Args:
        slot: name of the module that holds the experts.
        num_experts: how many there are.
        top_k: experts that a token passes.
        parameters: of all experts.
        weights: entries of the experts' matrices, all experts.
        router_weights: entries of the router's matrix, unless a Linear holds it.
    """

    slot: str
    num_experts: int
    top_k: int
    parameters: int
    weights: int
    router_weights: int

    def idle_parameters(self) -> int:
        """Count the parameters that one token does not use: those of unselected experts."""
        return self.parameters - self.parameters * self.top_k // self.num_experts

    def flops_per_token(self) -> int:
        """Count 2 per weight of the products of one token: selected experts and router."""
        return 2 * (self.weights * self.top_k // self.num_experts + self.router_weights)


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
