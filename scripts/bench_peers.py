"""Measure one layer in inference against other people's ways of computing it.

`python scripts/bench_peers.py`           the gated and the plain size, tokens 1, 32, 512; minutes
`python scripts/bench_peers.py --quick`   one size

All compute the same selected experts of the same weights; equality is checked before the timing.
`authors`: EMoE's formulation, a block mask over all neurons. `loop`: over the experts, gathering
and adding rows. `mixtral`: transformers' MixtralExperts with copies of the weights, by each of its
implementations (gated sizes only: it has no other; `batched_mm`, which copies the weights for every
token, up to 32 tokens). `plain`, `torch` and `kernel`: this project's
layer as runs evaluate it, and `for_inference` without and with the C++ kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from bench import Row, median_seconds, parser, peak_extra_mib, save, set_threads, show
from moe_runner import for_inference
from moe_runner.moe import kernel_experts
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import AverageKeyRouter

# d_model, d_ff, gated, experts, selected
CASES = [(576, 1536, True, 64, 16), (768, 3072, False, 64, 16), (576, 1536, True, 16, 4)]
TOKENS = (512, 32, 1)


@torch.no_grad()
def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    set_threads(options.threads)
    rows: list[Row] = []
    for d_model, d_ff, gated, num_experts, top_k in CASES[: 1 if options.quick else None]:
        for tokens in TOKENS:
            case = f"{d_model}/{d_ff} N={num_experts} k={top_k} {tokens} tokens"
            functions = peers(d_model, d_ff, gated, num_experts, top_k, tokens)
            repeats = 5 if options.quick else 25
            seconds = median_seconds(functions, repeats)
            rows += [
                Row(case, name, "forward", seconds[name], seconds["dense"] / seconds[name],
                    peak_extra_mib(function))
                for name, function in functions.items()
            ]  # fmt: skip
    show("one layer, inference", rows)
    save("peers", rows)


def peers(
    d_model: int, d_ff: int, gated: bool, num_experts: int, top_k: int, tokens: int
) -> dict[str, Callable[[], Tensor]]:
    """Give a layer in all formulations, after a check that they agree, and the dense FFN."""
    torch.manual_seed(0)
    scale = d_model**-0.5
    ffn = FFN(
        keys=torch.randn(d_ff, d_model) * scale,
        values=torch.randn(d_ff, d_model) * d_ff**-0.5,
        activation=functional.silu if gated else functional.gelu,
        ups=torch.randn(d_ff, d_model) * scale if gated else None,
        key_bias=None if gated else torch.randn(d_ff),
    )
    down = ffn.values.T.contiguous()  # as a dense model stores it
    experts = Experts.split(ffn, torch.arange(d_ff) % num_experts)
    layer = for_inference(MoEFeedForward(experts, AverageKeyRouter(), top_k=top_k))
    x = torch.randn(tokens, d_model)
    gates = experts.keys.mean(1)
    stack = experts.tensors()
    has_kernel = kernel_experts.load()

    def ours(infers: bool, kernel: bool) -> Tensor:
        layer.for_inference = infers
        kernel_experts.load = lambda: kernel
        return layer(x)

    def dense() -> Tensor:
        pre = functional.linear(x, ffn.keys, ffn.key_bias)
        hidden = ffn.activation(pre)
        hidden = hidden if ffn.ups is None else hidden * functional.linear(x, ffn.ups)
        return functional.linear(hidden, down)

    def authors() -> Tensor:
        index = (x @ gates.T).topk(top_k).indices
        mask = torch.zeros(tokens, num_experts).scatter(1, index, 1.0)
        hidden = stack.activations(x).flatten(1)
        hidden = hidden * mask.repeat_interleave(d_ff // num_experts, dim=1)
        return hidden @ experts.values.flatten(0, 1)

    def loop() -> Tensor:
        index = (x @ gates.T).topk(top_k).indices
        out = torch.zeros_like(x)
        for e in range(num_experts):
            rows = (index == e).any(1).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            own = x[rows]
            bias = None if experts.key_bias is None else experts.key_bias[e]
            hidden = ffn.activation(functional.linear(own, experts.keys[e], bias))
            if experts.ups is not None:
                hidden = hidden * functional.linear(own, experts.ups[e])
            out.index_add_(0, rows, hidden @ experts.values[e])
        return out

    found: dict[str, Callable[[], Tensor]] = {"authors": authors, "loop": loop}
    if gated:
        found |= mixtral(experts, gates, top_k, x)
    found |= {"plain": lambda: ours(False, False), "torch": lambda: ours(True, False)}
    if has_kernel:
        found["kernel"] = lambda: ours(True, True)
    expected = authors()
    for name, function in found.items():
        torch.testing.assert_close(function(), expected, rtol=1e-4, atol=1e-4, msg=name)
    kernel_experts.load = lambda: has_kernel
    return {"dense": dense, **found}


def mixtral(
    experts: Experts, gates: Tensor, top_k: int, x: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Give transformers' experts with copies of the weights, by implementation."""
    num_experts, size, d_model = experts.keys.shape
    config = MixtralConfig(
        hidden_size=d_model, intermediate_size=size, num_local_experts=num_experts,
        num_experts_per_tok=top_k,
    )  # fmt: skip
    module = MixtralExperts(config).eval()
    assert experts.ups is not None
    module.gate_up_proj.copy_(torch.cat([experts.keys, experts.ups], 1))
    module.down_proj.copy_(experts.values.transpose(1, 2))

    def call(implementation: str) -> Tensor:
        config._experts_implementation = implementation
        index = (x @ gates.T).topk(top_k).indices
        return module(x, index, torch.ones(index.shape))

    names = ["eager", "grouped_mm", *(["batched_mm"] if len(x) <= 32 else [])]
    return {f"mixtral {name}": functools.partial(call, name) for name in names}


if __name__ == "__main__":
    main()
