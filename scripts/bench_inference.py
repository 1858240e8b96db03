"""Measure a converted model in use against its dense model: prefill, decoding, peak memory.

`python scripts/bench_inference.py`           SmolLM2's and BERT's sizes; about half an hour
`python scripts/bench_inference.py --quick`   one case of each, a few layers

Weights are random: time depends on sizes and selection only, and random weights spread the tokens
over the experts. Prefill is one forward pass over a prompt, decoding one token (of each of some
sequences) after it with the cache of the attention. `masked`, `sorted`, `grouped_mm` are the back
ends; `plain` takes the one of the table, as runs evaluate. `torch` is the same model after
`moe_runner.for_inference` without the C++ kernel, `kernel` with it (left out where
`python -m moe_runner.kernels build` has not built it). `limit` is what would be reached if the
unselected neurons were all the FFN's time that is saved, at the dense FFN's speed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench import Row, median_seconds, parser, peak_extra_mib, save, set_threads, show
from moe_runner import EMoE, convert, for_inference
from moe_runner.moe import kernel_experts
from moe_runner.moe.backends import IN_TORCH
from moe_runner.moe.layer import MoEFeedForward


@dataclass(frozen=True)
class Case:
    """A model and what is done with it.

    Args:
        model: a name of `MODELS`.
        num_experts: N.
        top_k: k.
        batch: sequences.
        tokens: of a prompt.
        decodes: sequences that generate, for each measurement of decoding.
    """

    model: str
    num_experts: int
    top_k: int
    batch: int = 1
    tokens: int = 512
    decodes: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Show the sizes in one line."""
        return f"{self.model} N={self.num_experts} k={self.top_k} {self.batch} x {self.tokens}"


def llama(layers: int) -> PreTrainedModel:
    """Make a Llama of SmolLM2-135M's sizes."""
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bert(d_model: int, layers: int) -> PreTrainedModel:
    """Make a BERT whose FFN is four times as wide."""
    config = BertConfig(
        hidden_size=d_model, intermediate_size=4 * d_model, num_hidden_layers=layers,
        num_attention_heads=d_model // 64,
    )  # fmt: skip
    return BertModel(config)


MODELS: dict[str, Callable[[bool], PreTrainedModel]] = {
    "llama 576/1536": lambda quick: llama(4 if quick else 30),
    "bert 384/1536": lambda quick: bert(384, 2 if quick else 6),
    "bert 768/3072": lambda quick: bert(768, 2 if quick else 12),
}
LLAMA = "llama 576/1536"
CASES = [
    Case(LLAMA, 64, 16, decodes=(1, 8, 32)),
    *(Case(LLAMA, n, n // 4, decodes=(1,)) for n in (16, 128)),
    *(Case(LLAMA, n, n, decodes=(1,)) for n in (16, 64, 128)),
    *(Case(f"bert {size}", 64, 16, batch, 128) for size in ("384/1536", "768/3072")
      for batch in (1, 8, 32)),
    *(Case(f"bert {size}", n, k, 8, 128) for size in ("384/1536", "768/3072")
      for n, k in ((16, 4), (128, 32), (16, 16), (64, 64), (128, 128))),
]  # fmt: skip
QUICK = [Case(LLAMA, 64, 16, decodes=(1, 8)), Case("bert 384/1536", 64, 16, 8, 128)]


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    set_threads(options.threads)
    rows: list[Row] = []
    for case in QUICK if options.quick else CASES:
        measured = measure(case, options.quick)
        show("a converted model against its dense model", measured)
        rows += measured
    save("inference", rows)


@torch.no_grad()
def measure(case: Case, quick: bool) -> list[Row]:
    """Time a dense model and its conversions in turns."""
    torch.manual_seed(0)
    dense = MODELS[case.model](quick).eval()
    converted = copy.deepcopy(dense)
    method = EMoE(num_experts=case.num_experts, top_k=case.top_k, layers="all", clustering="random")
    convert(converted, method)
    for_inference(converted)
    models = {"dense": dense, "converted": converted}
    ids = torch.randint(1000, (case.batch, case.tokens))
    prefill = {"dense": lambda: dense(input_ids=ids)}
    prefill |= variants(converted, lambda: converted(input_ids=ids))
    rows = timed(case, f"prefill {case.batch}", prefill, 3 if quick else 7, models)
    for sequences in case.decodes:
        prompt = ids[:1, :64].expand(sequences, -1)
        steps = {"dense": decoding(dense, prompt)}
        steps |= variants(converted, decoding(converted, prompt))
        rows += timed(case, f"decoding {sequences}", steps, 7 if quick else 25, models)
    return rows


def variants(
    model: PreTrainedModel, function: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    """Give a function of a converted model in every way of computing its experts."""
    layers = [module for module in model.modules() if isinstance(module, MoEFeedForward)]
    has_kernel = kernel_experts.load()

    def switched(backend: str, infers: bool, kernel: bool) -> Callable[[], object]:
        def call() -> object:
            for layer in layers:
                layer.backend, layer.for_inference = backend, infers
            kernel_experts.load = lambda: kernel
            return function()

        return call

    found = {name: switched(name, False, False) for name in IN_TORCH}
    found |= {"plain": switched("auto", False, False), "torch": switched("auto", True, False)}
    if has_kernel:
        found["kernel"] = switched("auto", True, True)
    kernel_experts.load = lambda: has_kernel
    return found


def timed(
    case: Case,
    phase: str,
    functions: dict[str, Callable[[], object]],
    repeats: int,
    models: dict[str, PreTrainedModel],
) -> list[Row]:
    """Time functions in turns, the dense model first, and say what could be reached."""
    seconds = median_seconds(functions, repeats)
    rows = [
        Row(
            str(case), name, phase, seconds[name], seconds["dense"] / seconds[name],
            peak_extra_mib(function), extra={"threads": torch.get_num_threads()},
        )
        for name, function in functions.items()
    ]  # fmt: skip
    ffn = ffn_seconds(models["dense"], models["converted"], functions["dense"])
    rest = seconds["dense"] - ffn
    limit = rest + ffn * case.top_k / case.num_experts
    rows.append(Row(str(case), "limit", phase, limit, seconds["dense"] / limit))
    return rows


def ffn_seconds(
    dense: PreTrainedModel, plain: PreTrainedModel, function: Callable[[], object]
) -> float:
    """Measure how long the dense model is in its FFNs, by hooks on what the conversion replaces."""
    import time

    names = [name for name, module in plain.named_modules() if isinstance(module, MoEFeedForward)]
    parts: list[nn.Module] = []
    for name in names:
        module = dense.get_submodule(name)
        parts.append(module)
        if name.endswith("intermediate"):  # BERT: the second projection is elsewhere
            parts.append(dense.get_submodule(name.replace("intermediate", "output.dense")))
    total, started = 0.0, 0.0

    def begin(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(*_: object) -> None:
        nonlocal total
        total += time.perf_counter() - started

    handles = [m.register_forward_pre_hook(begin) for m in parts]
    handles += [m.register_forward_hook(end) for m in parts]
    found = []
    for _ in range(3):
        total = 0.0
        function()
        found.append(total)
    for handle in handles:
        handle.remove()
    return sorted(found)[1]


def decoding(model: PreTrainedModel, prompt: torch.Tensor) -> Callable[[], object]:
    """Give a step of decoding: one token after a prompt, whose cache is cut back each time."""
    cache = model(input_ids=prompt, use_cache=True).past_key_values
    token = prompt[:, -1:]

    def step() -> object:
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return out

    return step


if __name__ == "__main__":
    main()
