"""What a method's `layers` module gets to build on.

A method that converts has `build` there, and one whose class says `perturbs` has `perturb`:

    def build(sites, method, protocol, neurons) -> list[MoEFeedForward]: ...   # a layer per site
    def perturb(model, method) -> None: ...                                    # in place

New weights come from torch's global generator, in the order of the sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from torch import Tensor, nn

from moe_runner.moe.experts import FFN
from moe_runner.options.errors import ConfigError
from moe_runner.options.method import Method

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class PretrainedMixture:
    """What a sparse layer of a Switch Transformer consists of.

    Args:
        experts: its FFNs.
        router_weight: float (E, d_model).
        losses: coefficients of the losses of its router, by name.
    """

    experts: list[FFN]
    router_weight: Tensor
    losses: Mapping[str, float]


@dataclass(frozen=True)
class OpenSite:
    """A site whose weights were read.

    Args:
        key: what names the site within the model.
        family: of the backbone.
        stack: `encoder` or `decoder`.
        ffn: the dense network; of a mixture its first expert.
        residual_dropout: of the FFN's output, where `protocol.residual_dropout` takes it out of the
            block, for the layer to apply where the authors' code does; else 0.
        mixture: set for a layer that is a mixture of experts already; only methods with
            `takes_sparse` meet one.
    """

    key: str
    family: str
    stack: str
    ffn: FFN
    residual_dropout: float = 0.0
    mixture: PretrainedMixture | None = None


def as_site(module: Module, site: OpenSite) -> Module:
    """Give a new module the device and dtype of the network whose place it takes.

    Args:
        module: made in fp32 on the CPU, so that its initial values are the same everywhere.
        site: where it goes.

    Returns:
        The module itself.
    """
    return module.to(site.ffn.keys)


def layers_module(method: Method) -> ModuleType:
    """Import the module `layers` beside a method's options."""
    package = type(method).__module__.rpartition(".")[0]
    return import_module(f"{package}.layers")


def check_top_k(top_k: int, num_experts: int) -> None:
    """Check the number of selected experts before anything is replaced.

    Raises:
        ConfigError: if it does not fit the number of experts.
    """
    if num_experts < 1 or not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k={top_k} does not fit num_experts={num_experts}")
