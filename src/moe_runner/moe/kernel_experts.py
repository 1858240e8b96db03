"""The C++ kernel of inference, where it is built and knows the layer; else PyTorch goes on.

It computes in fp32 on a CPU, without a gradient. The parameters themselves are what it reads: no
copy of a weight is kept, so none can go stale.
"""

# T tokens, D d_model, E experts, K selected experts

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from moe_runner.kernels import building
from moe_runner.moe.experts import NEURON_TENSORS, Activation, Stack

log = logging.getLogger(__name__)

# The numbers that `kernels/experts.cpp` gives to these.
KINDS = {"relu": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "quick_gelu": 4}
SELECT = {"top": 0, "bottom": 1, "not_top": 2}
WEIGHTING = {"ones": 0, "softmax": 1, "probability": 2}

FUNCTIONS: dict[Activation, str] = {
    functional.relu: "relu", torch.relu: "relu", functional.silu: "silu", functional.gelu: "gelu",
}  # fmt: skip
CLASSES = {  # torch's and transformers' modules
    "ReLU": "relu", "SiLU": "silu", "SiLUActivation": "silu", "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh", "FastGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh", "QuickGELUActivation": "quick_gelu",
}  # fmt: skip


calls = 0  # of the kernel in this process: what tells whether it was used


@functools.cache
def load() -> bool:
    """Load the kernel once per process; where it is not there, say why, once.

    Returns:
        Whether the operators are there. A kernel that was built for another torch, source or
        processor is not loaded, and a warning says so.
    """
    file = building.library()
    if file is None:
        say = log.warning if building.has_others() else log.info
        say("%s", building.why_missing())
        return False
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        log.warning(
            "the C++ kernel cannot be loaded (%s); PyTorch computes the experts. Build it anew: %s",
            str(error).splitlines()[0], building.COMMAND,
        )  # fmt: skip
        return False
    log.info("inference on the CPU uses the C++ kernel %s", file)
    return True


def kind_of(activation: Activation) -> int | None:
    """Find the kernel's number of an activation function; None: it does not know it."""
    if isinstance(activation, torch.nn.GELU):
        return KINDS["gelu_tanh" if activation.approximate == "tanh" else "gelu"]
    try:
        name = FUNCTIONS.get(activation) or CLASSES.get(type(activation).__name__)
    except TypeError:  # not hashable
        return None
    return None if name is None else KINDS[name]


def fits(x_TD: Tensor, experts: Stack) -> bool:
    """Tell whether the kernel can compute some experts: loaded, fp32, on the CPU, no gradient."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x_TD.dtype == torch.float32
        and experts.keys.device.type == x_TD.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and experts.dropout == experts.pre_dropout == 0
        and kind_of(experts.activation) is not None
        and all(
            tensor is None or (tensor.is_contiguous() and tensor.dtype == torch.float32)
            for tensor in (getattr(experts, name) for name in NEURON_TENSORS)
        )
        and load()
    )


def kernel(x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor | None, experts: Stack) -> Tensor:
    """Compute the selected experts by the kernel; it must `fit`.

    Args:
        x_TD: tokens, float32 (T, D).
        index_TK: selected experts, int64 (T, K), no expert twice in a row.
        weights_TK: weight of each, float (T, K), or None: 1 each.
        experts: their tensors.

    Returns:
        As `masked`, equal up to the order of the sums.
    """
    global calls
    calls += 1
    found: Tensor = torch.ops.moe_runner.experts(
        x_TD.contiguous(), index_TK.contiguous(),
        None if weights_TK is None else weights_TK.float().contiguous(),
        experts.keys, experts.values, experts.key_bias, experts.ups, experts.up_bias, None,
        kind_of(experts.activation),
    )  # fmt: skip
    return found


def kernel_layer(
    x_TD: Tensor,
    router: Tensor,
    experts: Stack,
    output_bias: Tensor | None,
    *,
    scored: bool,
    top_k: int,
    select: str,
    weighting: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Score, select, weigh and compute experts by one call of the kernel; it must `fit`.

    Args:
        x_TD: tokens, float32 (T, D).
        router: gate vectors, float32 (E, D), or scores (T, E).
        experts: their tensors.
        output_bias: float32 (D,), added once, or None.
        scored: whether `router` are scores.
        top_k: see `routing.select_experts`.
        select: see there.
        weighting: see `routing.expert_weights`.
        scale: multiplies the weights.

    Returns:
        Output, float32 (T, D); selection, int64 (T, K), the most fitting first; its weights,
        float32 (T, K), None for `ones`.
    """
    global calls
    calls += 1
    output_TD, index_TK, weights_TK = torch.ops.moe_runner.layer(
        x_TD.contiguous(), router.contiguous(), scored, top_k, SELECT[select],
        WEIGHTING[weighting], scale, experts.keys, experts.values, experts.key_bias, experts.ups,
        experts.up_bias, output_bias, kind_of(experts.activation),
    )  # fmt: skip
    return output_TD, index_TK, None if weighting == "ones" else weights_TK
