"""Check every back end on a GPU, then time it against dense: one command, under eight minutes.

`make bench-cuda`, or `python scripts/bench_cuda.py` where nothing but torch, transformers, numpy
and safetensors is installed. Writes outputs/bench/cuda.json.

Parity: outputs and gradients of each back end, in fp32 and bf16, beside `masked` in fp64 on the
CPU; exit code 1 if one is off. Speed: experts forward and with backward, HyperMoE's layer, prefill
and decoding of a Llama of SmolLM2's sizes. Every speed is a ratio within this run: variants take
turns.
`--device cpu --quick` tries the script itself on a machine without a GPU.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from bench import OUTPUT, Row, median_seconds, parser
from moe_runner import EMoE, HyperMoE, MoE, convert, for_inference
from moe_runner.moe.backends import IN_TORCH
from moe_runner.moe.experts import Stack

ALLOWED = {"float32": 2e-3, "bfloat16": 4e-2}  # of the largest value; fp32 products may be TF32
REPEATS = 15


@dataclass(frozen=True)
class Sizes:
    """One layer: tokens, width, neurons of all experts, experts, selected ones."""

    tokens: int
    d_model: int
    d_ff: int
    num_experts: int
    top_k: int
    gated: bool = False

    def __str__(self) -> str:
        """Show the sizes in one line."""
        kind = "gated" if self.gated else "plain"
        return (
            f"{kind} {self.d_model}/{self.d_ff} T={self.tokens} N={self.num_experts} k={self.top_k}"
        )


PARITY = [Sizes(257, 256, 1024, 16, 4), Sizes(257, 256, 1024, 16, 4, gated=True)]
SPEED = [
    Sizes(4096, 768, 3072, 64, 16), Sizes(4096, 768, 3072, 64, 32), Sizes(4096, 768, 3072, 16, 4),
    Sizes(4096, 576, 1536, 64, 16, gated=True), Sizes(8192, 4096, 11264, 64, 16, gated=True),
]  # fmt: skip
TRYING = [Sizes(64, 32, 128, 8, 2), Sizes(64, 32, 128, 8, 2, gated=True)]


def main() -> None:
    """Check, time, print and write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu, to try it")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use; --device cpu --quick tries the script alone")
    small = options.quick
    started = time.perf_counter()
    checks = [c for sizes in (TRYING if small else PARITY) for c in parity(sizes, device)]
    for check in checks:
        print(f"{'ok ' if check['ok'] else 'OFF'} {check['what']}: {check['worst']:.1e}")
    rows = [r for sizes in (TRYING if small else SPEED) for r in experts(sizes, device)]
    rows += layers(device, small) + models(device, small)
    for row in rows:
        print(
            f"{row.case:40} {row.variant:14} {row.phase:18} {row.seconds * 1e3:9.3f} ms "
            f"{row.ratio:6.2f} x dense"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found = {
        "device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "seconds": round(time.perf_counter() - started, 1),
        "parity": checks, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    OUTPUT.mkdir(parents=True, exist_ok=True)
    file = OUTPUT / ("cuda.json" if device.type == "cuda" else "cuda_tried_on_cpu.json")
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {found['seconds']} s; written: {file}")
    if not all(check["ok"] for check in checks):
        sys.exit(1)


def parity(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Compare outputs and gradients of every back end with `masked` in fp64 on the CPU."""
    torch.manual_seed(0)
    exact = tensors(sizes, torch.float64)
    index, upstream = selection(sizes), torch.randn(sizes.tokens, sizes.d_model).double()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = {name: tensor.to(device, dtype) for name, tensor in exact.items()}
        rounded = {name: tensor.to(dtype).double() for name, tensor in exact.items()}
        expected = run("masked", rounded, index, upstream.to(dtype).double())
        for backend in IN_TORCH:
            got = run(backend, given, index.to(device), upstream.to(device, dtype))
            for name, want in expected.items():
                worst = float((got[name].cpu().double() - want).abs().max() / want.abs().max())
                short = str(dtype).removeprefix("torch.")
                found.append(
                    {
                        "what": f"{backend} {short} {sizes} {name}",
                        "worst": worst,
                        "ok": worst <= ALLOWED[short],
                    }
                )
    return found


def run(
    backend: str, given: dict[str, Tensor], index: Tensor, upstream: Tensor
) -> dict[str, Tensor]:
    """Go forward and backward through a back end: its output, and the gradient of each tensor."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    output = IN_TORCH[backend](leaves["x"], index, leaves["weights"], stack(leaves))
    grads = torch.autograd.grad(output, list(leaves.values()), upstream.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


def tensors(
    sizes: Sizes, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Draw the tokens and the experts of a layer."""
    neurons = sizes.d_ff // sizes.num_experts
    shape = (sizes.num_experts, neurons, sizes.d_model)
    like = {"dtype": dtype, "device": device}
    made = {
        "x": torch.randn(sizes.tokens, sizes.d_model, **like),
        "weights": torch.rand(sizes.tokens, sizes.top_k, **like),
        "keys": torch.randn(shape, **like) / sizes.d_model**0.5,
        "values": torch.randn(shape, **like) / sizes.d_ff**0.5,
    }
    if sizes.gated:
        made["ups"] = torch.randn(shape, **like) / sizes.d_model**0.5
    else:
        made["key_bias"] = 0.1 * torch.randn(shape[:2], **like)
    return made


def stack(given: dict[str, Tensor]) -> Stack:
    """Build the experts of a layer from its tensors."""
    return Stack(
        keys=given["keys"], values=given["values"], key_bias=given.get("key_bias"),
        ups=given.get("ups"), up_bias=None,
        activation=functional.silu if "ups" in given else functional.gelu,
    )  # fmt: skip


def selection(sizes: Sizes, device: str | torch.device = "cpu") -> Tensor:
    """Draw k experts of each token, int64 (T, K)."""
    return torch.rand(sizes.tokens, sizes.num_experts, device=device).topk(sizes.top_k).indices


def experts(sizes: Sizes, device: torch.device) -> list[Row]:
    """Time the experts of a layer against the dense FFN of the same neurons, in bf16 (CUDA)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    given = tensors(sizes, dtype, device)
    index = selection(sizes, device)
    dense = dense_ffn(given)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    calls: dict[str, Callable[[], Tensor]] = {"dense": lambda: dense(leaves["x"])}
    for backend in IN_TORCH:
        calls[backend] = lambda call=IN_TORCH[backend]: call(
            leaves["x"], index, leaves["weights"], stack(leaves)
        )

    def both(call: Callable[[], Tensor]) -> Callable[[], object]:
        def forward_and_backward() -> None:
            call().sum().backward()

        return forward_and_backward

    forward = timed({name: no_grad(call) for name, call in calls.items()}, device)
    training = timed({name: both(call) for name, call in calls.items()}, device)
    return rows_of(str(sizes), "forward", forward) + rows_of(
        str(sizes), "forward+backward", training
    )


def dense_ffn(given: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Build the FFN whose neurons the experts are."""
    flat = {
        name: nn.Parameter(given[name].flatten(0, 1))
        for name in ("keys", "values", "ups")
        if name in given
    }
    bias = nn.Parameter(given["key_bias"].flatten()) if "key_bias" in given else None

    def forward(x: Tensor) -> Tensor:
        pre = functional.linear(x, flat["keys"], bias)
        if "ups" in flat:
            return (functional.silu(pre) * functional.linear(x, flat["ups"])) @ flat["values"]
        return functional.gelu(pre) @ flat["values"]

    return forward


def layers(device: torch.device, small: bool) -> list[Row]:
    """Time a model's pass with HyperExperts against experts that are copies, and dense."""
    rows = []
    for top_k in (1, 2):
        made = {"dense": llama(small, layers=1)}
        for name, method in (
            ("moe", MoE(num_experts=8, top_k=top_k)),
            ("hypermoe", HyperMoE(num_experts=8, top_k=top_k)),
        ):
            made[name] = copy.deepcopy(made["dense"])
            convert(made[name], method)
        prepared = {name: ready(model, device).train() for name, model in made.items()}
        ids = torch.randint(100, (2, 32) if small else (8, 512), device=device)

        def training(model: nn.Module, ids: Tensor = ids) -> Callable[[], object]:
            def step() -> None:
                model(input_ids=ids).logits.float().sum().backward()

            return step

        seconds = timed({name: training(model) for name, model in prepared.items()}, device)
        rows += rows_of(f"one layer, 8 experts, top {top_k}", "forward+backward", seconds)
    return rows


def models(device: torch.device, small: bool) -> list[Row]:
    """Time prefill and decoding of a Llama, dense and converted."""
    dense = llama(small, layers=2 if small else 30)
    converted = copy.deepcopy(dense)
    sizes = {"num_experts": 8, "top_k": 2} if small else {"num_experts": 64, "top_k": 16}
    convert(converted, EMoE(layers="all", clustering="random", **sizes))
    made = {"dense": ready(dense, device).eval(), "emoe": for_inference(ready(converted, device))}
    case = "llama 576/1536 N=64 k=16" if not small else "a tiny llama N=8 k=2"
    ids = torch.randint(100, (1, 32 if small else 512), device=device)
    prefill = {name: no_grad(lambda m=model: m(input_ids=ids)) for name, model in made.items()}
    rows = rows_of(case, "prefill", timed(prefill, device))
    steps = {name: decoding(model, ids) for name, model in made.items()}
    return rows + rows_of(case, "decoding", timed(steps, device))


def llama(small: bool, layers: int) -> LlamaForCausalLM:
    """Make a Llama of SmolLM2-135M's sizes, or a tiny one."""
    torch.manual_seed(0)
    width, inner = (32, 128) if small else (576, 1536)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=1 if small else 9, num_key_value_heads=1 if small else 3,
        vocab_size=128 if small else 49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def ready(model: nn.Module, device: torch.device) -> Any:
    """Put a model on the device, in bf16 where that is a GPU."""
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def decoding(model: Any, prompt: Tensor) -> Callable[[], object]:
    """Give a step of decoding: one token after a prompt, whose cache is cut back each time."""
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True).past_key_values

    def step() -> None:
        with torch.no_grad():
            model(input_ids=prompt[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def no_grad(call: Callable[[], object]) -> Callable[[], object]:
    """Call without gradients."""

    def without() -> None:
        with torch.no_grad():
            call()

    return without


def timed(functions: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Time functions in turns, the device waited for around each call: median seconds by name."""

    def alone(function: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            wait(device)
            function()
            wait(device)

        return call

    calls = {name: alone(function) for name, function in functions.items()}
    for call in calls.values():  # kernels are chosen and compiled at first
        call()
    return median_seconds(calls, REPEATS)


def wait(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows_of(case: str, phase: str, seconds: dict[str, float]) -> list[Row]:
    """Make rows of times, each beside `dense`."""
    return [Row(case, name, phase, s, seconds["dense"] / s) for name, s in seconds.items()]


if __name__ == "__main__":
    main()
