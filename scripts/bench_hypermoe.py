"""Measure HyperMoE's HyperExpert, one per distinct selection, against one generated per token.

`python scripts/bench_hypermoe.py`           every case; about ten minutes on two cores
`python scripts/bench_hypermoe.py --quick`   1024 tokens, within a minute

GPT-2 small sizes: d_model 768, d_ff 3072, width 64, 8 experts. First what HyperMoE adds to a layer,
from the selection to the HyperExpert's output; the baseline is the formulation of the paper: every
token generates its own adapter. Then the whole layer, router and 8 copied experts included; the
baseline is `moe`, the layer without the HyperExpert. forward+backward computes the gradients of the
input and of all parameters; the optimiser is left out, and so are the routers' losses.

Memory is what rises during a call. forward+backward ends with the parameters' gradients, 49 MiB of
the shared hypernetwork, whatever the formulation: `memory 1/` compares what is beyond them.

Before a case is timed, both formulations are compared in float64: output and all gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Row, median_seconds, parser, peak_extra_mib, save, set_threads, show
from moe_runner.moe.experts import FFN, Experts
from moe_runner.moe.hypernet import HyperExpert, HyperNetwork
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import NoisyTopKRouter

# T tokens, D d_model, E experts, K top-k, P selection embedding, L layer embedding, Z hidden

D_MODEL, D_FF, NUM_EXPERTS, NUM_LAYERS = 768, 3072, 8, 12
PIECE = 256  # tokens at once in the comparison: the per-token weights of all would be gigabytes


class PerToken(nn.Module):
    """Generate an adapter for each token, whatever the others have chosen.

    Args:
        hyper: gives the parameters.
    """

    def __init__(self, hyper: HyperExpert) -> None:
        super().__init__()
        self.hyper = hyper

    def forward(self, x_TD: Tensor, index_TK: Tensor, masked: bool = False) -> Tensor:
        """Compute as `HyperExpert.forward` does, float (T, D)."""
        hyper, net = self.hyper, self.hyper.hypernet
        unselected_TE = torch.ones(len(x_TD), NUM_EXPERTS, dtype=x_TD.dtype)
        unselected_TE = unselected_TE.scatter(1, index_TK, 0.0)
        summed_TP = unselected_TE @ hyper.embeddings.weight
        selection_TP = hyper.second(torch.relu(hyper.first(summed_TP)))
        layer_TL = net.layers.weight[hyper.layer].expand(len(x_TD), -1)
        z_TZ = torch.relu(net.hidden(torch.cat([selection_TP, layer_TL], 1)))
        down_TRD = net.down(z_TZ).unflatten(1, (net.width, net.d_model))
        up_TRD = net.up(z_TZ).unflatten(1, (net.width, net.d_model))
        pre_TR1 = torch.bmm(down_TRD, x_TD[:, :, None]) + net.down_bias(z_TZ)[:, :, None]
        output_T1D = torch.bmm(torch.relu(pre_TR1).transpose(1, 2), up_TRD)
        return output_T1D.squeeze(1) + net.up_bias(z_TZ)


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    set_threads(options.threads)
    repeats = 3 if options.quick else 5
    cases = [(tokens, k) for tokens in (256, 1024, 4096) for k in (1, 2)]
    added = [
        row
        for tokens, top_k in (cases[2:4] if options.quick else cases)
        for row in measure_added(tokens, top_k, repeats)
    ]
    whole = [
        row
        for tokens, top_k in (cases[2:3] if options.quick else cases)
        for row in measure_whole(tokens, top_k, repeats)
    ]
    show("What HyperMoE adds: a HyperExpert per selection against one per token", added)
    show("The whole layer against moe, the layer without the HyperExpert", whole)
    save("hypermoe", added + whole)


def measure_added(tokens: int, top_k: int, repeats: int) -> list[Row]:
    """Time the HyperExpert alone."""
    torch.manual_seed(0)
    hyper = HyperExpert(HyperNetwork(D_MODEL, NUM_LAYERS), 3, NUM_EXPERTS)
    x = torch.randn(tokens, D_MODEL)
    index = torch.rand(tokens, NUM_EXPERTS).topk(top_k).indices
    compare(hyper, x, index)
    variants: dict[str, nn.Module] = {"per token": PerToken(hyper), "per selection": hyper}
    calls = {
        name: lambda x, module=module: module(x, index)  # type: ignore[misc]
        for name, module in variants.items()
    }
    rows = measure(f"HyperExpert T={tokens} k={top_k}", calls, hyper, x, repeats)
    gradients = sum(p.numel() * p.element_size() for p in hyper.parameters()) / 2**20
    for per_token, own in zip(rows[::2], rows[1::2], strict=True):
        held = 0.0 if own.phase == "forward" else gradients
        assert per_token.peak_extra_mib is not None
        assert own.peak_extra_mib is not None
        parts = (per_token.peak_extra_mib - held) / max(own.peak_extra_mib - held, 1)
        own.extra["memory 1/"] = round(parts, 1)
    return rows


def measure_whole(tokens: int, top_k: int, repeats: int) -> list[Row]:
    """Time the layer: without a HyperExpert, with one per selection, with one per token."""
    torch.manual_seed(0)
    ffn = FFN(
        keys=(torch.randn(D_FF, D_MODEL) * 0.02).requires_grad_(),
        values=(torch.randn(D_FF, D_MODEL) * 0.02).requires_grad_(),
        activation=functional.gelu,
        key_bias=torch.zeros(D_FF, requires_grad=True),
        output_bias=torch.zeros(D_MODEL, requires_grad=True),
    )
    router = NoisyTopKRouter(D_MODEL, NUM_EXPERTS)
    nn.init.normal_(router.gate, std=0.02)  # it starts as zero, where all selections are alike
    layer = MoEFeedForward(
        Experts.stack([ffn] * NUM_EXPERTS), router, top_k=top_k, weighting="softmax"
    ).eval()  # no noise: the variants get the same selections
    hyper = HyperExpert(HyperNetwork(D_MODEL, NUM_LAYERS), 3, NUM_EXPERTS)
    beside = {"moe": None, "hypermoe": hyper, "hypermoe per token": PerToken(hyper)}

    def call(x: Tensor, kind: Any) -> Tensor:
        layer.beside = kind
        return layer(x)

    calls = {
        name: lambda x, kind=kind: call(x, kind)  # type: ignore[misc]
        for name, kind in beside.items()
    }
    x = torch.randn(tokens, D_MODEL)
    holder = nn.ModuleList([layer, hyper])
    rows = measure(f"layer T={tokens} k={top_k}", calls, holder, x, repeats)
    for row in rows:
        if row.variant != "moe":
            row.extra["more time than moe, %"] = round(100 * (1 / row.ratio - 1), 1)
    return rows


def measure(
    case: str,
    calls: dict[str, Callable[[Tensor], Tensor]],
    module: nn.Module,
    x: Tensor,
    repeats: int,
) -> list[Row]:
    """Time functions of the input, forward and forward+backward; the first is the baseline."""
    x = x.clone().requires_grad_()
    upstream = torch.randn_like(x)

    @torch.no_grad()
    def forward(call: Callable[[Tensor], Tensor]) -> None:
        call(x)

    def both(call: Callable[[Tensor], Tensor]) -> None:
        call(x).backward(upstream)
        x.grad = None
        module.zero_grad()

    rows = []
    for phase, runner in (("forward", forward), ("forward+backward", both)):
        functions = {
            name: lambda call=call, runner=runner: runner(call)  # type: ignore[misc]
            for name, call in calls.items()
        }
        seconds = median_seconds(functions, repeats)
        baseline = seconds[next(iter(calls))]
        for name, value in seconds.items():
            memory = peak_extra_mib(functions[name])
            rows.append(Row(case, name, phase, value, baseline / value, memory))
    return rows


def compare(hyper: HyperExpert, x: Tensor, index: Tensor) -> None:
    """Assert that both formulations give the same output and gradients, in float64.

    Args:
        hyper: float32; it is left as it was.
        x: tokens, float (T, D).
        index: selected experts, int64 (T, K).
    """
    hyper.double()
    upstream = torch.randn_like(x).double()
    found = []
    for module, size in ((hyper, len(x)), (PerToken(hyper), PIECE)):
        own_x = x.double().requires_grad_()
        outputs = []
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            output = module(own_x[part], index[part])
            output.backward(upstream[part])
            outputs.append(output.detach())
        grads = {name: p.grad for name, p in hyper.named_parameters()}
        found.append({**grads, "output": torch.cat(outputs), "x": own_x.grad})
        hyper.zero_grad()
    hyper.float()
    for name, value in found[1].items():
        atol = 1e-10 * float(value.abs().max())
        torch.testing.assert_close(found[0][name], value, rtol=1e-8, atol=atol, msg=name)


if __name__ == "__main__":
    main()
