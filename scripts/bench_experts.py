"""Measure the expert computation of one MoE layer against its dense FFN, by back end.

`python scripts/bench_experts.py`                 every case; about twenty minutes
`python scripts/bench_experts.py --quick`         two cases, within a minute
`python scripts/bench_experts.py --write-table`   every case, then the table that backend=auto uses

`split`: the experts are groups of the FFN's neurons (EMoE); `copies`: each is the whole FFN (GMoE,
sparse upcycling). The selection is given: what is timed is the experts' computation. `auto`
includes the choice of the back end; `kernel` is measured where it is built. `index_add_loop` is the
loop of transformers' MoE models: for each expert the rows of its tokens, two products, one
index_add.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench import Row, median_seconds, parser, peak_extra_mib, save, set_threads, show
from moe_runner.moe import kernel_experts
from moe_runner.moe.backends import BACKENDS, IN_TORCH, TABLE, choose_backend
from moe_runner.moe.experts import FFN, Experts, Stack


@dataclass(frozen=True)
class Case:
    """Sizes of one layer."""

    name: str
    d_model: int
    d_ff: int
    gated: bool
    tokens: int
    num_experts: int
    top_k: int
    copies: bool = False
    dtype: str = "float32"  # or bfloat16, under autocast
    trains: bool = True  # else forward only

    @property
    def size(self) -> int:
        """Neurons of an expert."""
        return self.d_ff if self.copies else self.d_ff // self.num_experts

    def __str__(self) -> str:
        """Show the sizes in one line."""
        kind = "copies" if self.copies else "split"
        half = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.name} T={self.tokens} {kind} N={self.num_experts} k={self.top_k}{half}"

    def entry(self, rows: Sequence[Row], phase: str) -> dict[str, object]:
        """Make the line of the table: which back end was the fastest."""
        times = {row.variant: row.seconds for row in rows if row.phase == phase}
        return {
            "phase": phase,
            "sizes": [self.tokens, self.d_model, self.size, self.num_experts, self.top_k],
            "gated": self.gated,
            "dtype": self.dtype,
            "fastest": min(IN_TORCH, key=lambda name: times[name]),
        }


MODELS = {
    "bert 768/3072": (768, 3072, False),
    "minilm 384/1536": (384, 1536, False),
    "bert_tiny 128/512": (128, 512, False),
    "llama 576/1536": (576, 1536, True),
}


def main() -> None:
    """Measure, print and write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--write-table", action="store_true", help="of backend=auto")
    options = arguments.parse_args()
    set_threads(options.threads)
    rows: list[Row] = []
    entries = []
    chosen = cases(options.quick)
    for number, case in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {case}", file=sys.stderr)
        found = measure(case, 3)
        rows += found
        entries += [case.entry(found, phase) for phase in dict.fromkeys(row.phase for row in found)]
    show("experts against the dense FFN", rows)
    save("experts", rows)
    if options.write_table:
        write_table(entries)
    for phase in dict.fromkeys(row.phase for row in rows):
        auto = [row for row in rows if row.variant == "auto" and row.phase == phase]
        worst = max(auto, key=lambda row: row.extra["of best"])
        times = f"auto takes at most {worst.extra['of best']:.2f} of the best time"
        print(f"{times}, {phase}: {worst.case}")


def write_table(entries: list[dict[str, object]]) -> None:
    """Write what backend=auto looks up, an entry a line."""
    head = {
        "command": "python scripts/bench_experts.py --write-table",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "sizes": ["tokens", "d_model", "neurons of an expert", "experts", "top_k"],
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    cases = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    TABLE.write_text("\n".join(["{", *lines, ' "cases": [', cases, " ]", "}"]) + "\n")
    print(f"written: {TABLE}")


def cases(quick: bool) -> list[Case]:
    """List the sizes to measure."""
    bert = MODELS["bert 768/3072"]
    if quick:
        return [Case("bert 768/3072", *bert, 1024, 64, k) for k in (16, 32)]
    split = [
        Case(name, *sizes, tokens, num_experts, num_experts // part)
        for name, sizes in MODELS.items()
        for tokens in (512, 4096)
        for num_experts in (16, 64)
        for part in (8, 4, 2)
    ]
    split.append(Case("bert 768/3072", *bert, 8192, 64, 16))
    copies = [
        Case(name, *sizes, tokens, 8, top_k, copies=True)
        for name, sizes in MODELS.items()
        for tokens in (512, 4096)
        for top_k in (1, 2)
    ]
    half = [
        Case(name, *MODELS[name], tokens, 64, 16, dtype="bfloat16")
        for name in ("bert 768/3072", "bert_tiny 128/512")
        for tokens in (512, 4096)
    ]
    few = [  # of a model in use: fewer tokens, and more experts
        Case(name, *sizes, tokens, num_experts, num_experts // part, trains=False)
        for name, sizes in MODELS.items()
        for tokens, counts in ((8, (16, 64, 128)), (32, (16, 64, 128)), (128, (16, 64, 128)),
                               (512, (128,)), (4096, (128,)))
        for num_experts in counts
        for part in (8, 4, 2)
    ]  # fmt: skip
    return split + copies + half + few


def measure(case: Case, repeats: int) -> list[Row]:
    """Time all variants of one case, forward and forward + backward."""
    torch.manual_seed(0)
    ffn, dense = random_ffn(case)
    if case.copies:
        made = Experts.stack([ffn] * case.num_experts)
    else:
        made = Experts.split(ffn, torch.randperm(case.d_ff) % case.num_experts)
    experts = made.tensors()
    x = torch.randn(case.tokens, case.d_model, requires_grad=True)
    index = torch.rand(case.tokens, case.num_experts).topk(case.top_k).indices
    upstream = torch.randn_like(x)
    variants: dict[str, Callable[[], Tensor]] = {"dense": lambda: dense(x)}
    with_kernel = case.dtype == "float32" and kernel_experts.load()
    for name in BACKENDS if with_kernel else IN_TORCH:
        variants[name] = lambda call=BACKENDS[name]: call(x, index, None, experts)
    variants["index_add_loop"] = lambda: index_add_loop(x, index, experts)
    parameters = [x, *(p for p in (ffn.keys, ffn.values, ffn.key_bias, ffn.ups) if p is not None)]
    parameters += made.parameters()
    half = torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16")

    def both(function: Callable[[], Tensor]) -> None:
        with half:
            output = function()
        output.backward(upstream.to(output.dtype))
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def forward(function: Callable[[], Tensor]) -> None:
        with half:
            function()

    rows = []
    for phase, runner in (("forward", forward), ("forward+backward", both))[: 1 + case.trains]:
        functions = {
            name: lambda function=function, runner=runner: runner(function)
            for name, function in variants.items()
        }
        infers = phase == "forward"

        def auto(infers: bool = infers) -> Tensor:
            chosen = choose_backend(len(x), case.top_k, experts, infers=infers)
            return IN_TORCH[chosen](x, index, None, experts)

        functions["auto"] = lambda auto=auto, runner=runner: runner(auto)
        seconds = median_seconds(functions, repeats if case.tokens > 512 else 5 * repeats)
        best = min(seconds[name] for name in IN_TORCH)
        for name, value in seconds.items():
            memory = peak_extra_mib(functions[name]) if case.tokens == 4096 else None
            row = Row(str(case), name, phase, value, seconds["dense"] / value, memory)
            if name == "auto":
                row.extra["of best"] = round(value / best, 3)
            rows.append(row)
    return rows


def random_ffn(case: Case) -> tuple[FFN, Callable[[Tensor], Tensor]]:
    """Make an FFN, and the dense computation with its weights laid out as the library does."""

    def weights(*shape: int) -> Tensor:
        return (torch.randn(shape) * 0.02).requires_grad_()

    shape = (case.d_ff, case.d_model)
    ffn = FFN(
        keys=weights(*shape),
        values=weights(*shape),
        activation=functional.silu if case.gated else functional.gelu,
        key_bias=None if case.gated else weights(case.d_ff),
        ups=weights(*shape) if case.gated else None,
    )
    second = ffn.values.detach().T.contiguous().requires_grad_()

    def dense(x: Tensor) -> Tensor:
        hidden = ffn.activation(functional.linear(x, ffn.keys, ffn.key_bias))
        if ffn.ups is not None:
            hidden = hidden * functional.linear(x, ffn.ups)
        second.grad = None
        return functional.linear(hidden, second)

    return ffn, dense


def index_add_loop(x: Tensor, index: Tensor, experts: Stack) -> Tensor:
    """Go through the experts: find their tokens, compute, add."""
    output = torch.zeros_like(x)
    for e in range(experts.num_experts):
        token, _ = torch.where(index == e)
        rows = x[token]
        bias = None if experts.key_bias is None else experts.key_bias[e]
        hidden = experts.activation(functional.linear(rows, experts.keys[e], bias))
        if experts.ups is not None:
            hidden = hidden * functional.linear(rows, experts.ups[e])
        rows = hidden @ experts.values[e]
        output = output.index_add(0, token, rows.to(output.dtype))
    return output


if __name__ == "__main__":
    main()
