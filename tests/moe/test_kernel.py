"""The C++ kernel against the definition: make test-kernel; a few of them are in make test-long too.

It is compiled once: half a minute.
"""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2FN

from moe_runner import EMoE, HyperMoE, MoE, convert, for_inference
from moe_runner.kernels import building
from moe_runner.moe import kernel_experts
from moe_runner.moe.backends import masked
from moe_runner.moe.experts import FFN, Experts, Stack
from moe_runner.moe.layer import MoEFeedForward
from moe_runner.moe.routing import (
    AverageKeyRouter,
    LinearRouter,
    NoisyTopKRouter,
    expert_weights,
    select_experts,
)

pytestmark = pytest.mark.kernel
ACTIVATIONS = [
    "relu", "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu",
]  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> None:
    """Build the kernel, once for all workers of pytest-xdist, and load it into this process."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler ({compiler})")
    workers = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if workers else base) / "kernels"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, FileLock(folder / "lock"):
        patch.setattr(building, "cache_folder", lambda: folder)
        file = building.library() or building.build()
        assert building.library() == file
        torch.ops.load_library(str(file))


@pytest.fixture(autouse=True)
def _use_it(library, monkeypatch):
    monkeypatch.setattr(kernel_experts, "load", lambda: True)


def draw(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def stack(num_experts, size, d_model, *, gated, biased, activation) -> Stack:
    normal = draw()
    scale = d_model**-0.5
    return Stack(
        keys=normal(num_experts, size, d_model) * scale,
        values=normal(num_experts, size, d_model),
        activation=activation,
        key_bias=normal(num_experts, size) if biased else None,
        ups=normal(num_experts, size, d_model) * scale if gated else None,
        up_bias=normal(num_experts, size) if gated and biased else None,
    )


def wide(experts: Stack) -> Stack:
    tensors = {
        name: None if (t := getattr(experts, name)) is None else t.double()
        for name in ("keys", "values", "key_bias", "ups", "up_bias")
    }
    return Stack(activation=experts.activation, **tensors)


def check(x, index, weights, experts, **tolerance) -> torch.Tensor:
    """Compare with the definition in float64; what differs is rounding in fp32."""
    found = kernel_experts.kernel(x, index, weights, experts)
    expected = masked(
        x.double(), index, None if weights is None else weights.double(), wide(experts)
    )
    largest = expected.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(
        found.double() / largest, expected / largest, rtol=0, atol=tolerance.get("atol", 3e-6)
    )
    return found


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3, 32, 512, 700])
@pytest.mark.parametrize("share", ["one", "quarter", "all"])
@pytest.mark.parametrize("num_experts", [16, 64, 128])
@pytest.mark.parametrize(("gated", "biased"), [(True, False), (True, True), (False, True)])
def test_it_is_the_definition(gated, biased, num_experts, share, tokens):
    d_ff, d_model = 384, 72
    top_k = {"one": 1, "quarter": num_experts // 4, "all": num_experts}[share]
    activation = functional.silu if gated else functional.gelu
    experts = stack(
        num_experts, d_ff // num_experts, d_model, gated=gated, biased=biased, activation=activation
    )
    normal = draw(1)
    x, scores = normal(tokens, d_model), normal(tokens, num_experts)
    index = scores.topk(top_k).indices
    for weights in (None, scores.gather(1, index)):
        check(x, index, weights, experts)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("d_model", [1, 7, 16, 50, 129])
@pytest.mark.parametrize("size", [1, 5, 12, 25, 50])
def test_no_size_is_special(size, d_model, tokens):
    experts = stack(3, size, d_model, gated=True, biased=True, activation=functional.silu)
    normal = draw(2)
    index = normal(tokens, 3).topk(2).indices
    check(normal(tokens, d_model), index, normal(tokens, 2), experts)


@torch.no_grad()
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    # one neuron per value, one token: the output row is the activation itself
    values = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-200.0, -88.0, 88.0, 200.0])])
    size = len(values)
    keys = torch.zeros(1, size, size)
    experts = Stack(
        keys=keys, values=torch.eye(size)[None], activation=ACT2FN[name], key_bias=values[None]
    )
    index = torch.zeros(1, 1, dtype=torch.long)
    found = kernel_experts.kernel(torch.zeros(1, size), index, None, experts)[0]
    expected = ACT2FN[name](values.double())
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=1e-6)


@pytest.mark.long
@torch.no_grad()
def test_experts_without_a_token_and_one_that_has_all():
    experts = stack(8, 24, 64, gated=True, biased=True, activation=functional.silu)
    for tensor in (experts.keys, experts.values, experts.ups, experts.key_bias, experts.up_bias):
        tensor[3:] = torch.nan  # of experts that nobody chose, nothing may be read
    normal = draw(3)
    for tokens in (1, 20, 600):
        index = torch.tensor([[1, 2]]).expand(tokens, -1)
        found = kernel_experts.kernel(normal(tokens, 64), index, None, experts)
        assert found.isfinite().all()
    assert kernel_experts.kernel(normal(0, 64), index[:0], None, experts).shape == (0, 64)


@torch.no_grad()
def test_inputs_need_not_be_contiguous():
    experts = stack(4, 24, 64, gated=False, biased=True, activation=functional.gelu)
    normal = draw(4)
    x, index = normal(64, 40).T, normal(4, 40).T.argsort(1)[:, :2]
    weights = normal(2, 40).T
    found = kernel_experts.kernel(x, index, weights, experts)
    expected = kernel_experts.kernel(
        x.contiguous(), index.contiguous(), weights.contiguous(), experts
    )
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_the_bits_do_not_depend_on_threads(tokens):
    experts = stack(16, 40, 200, gated=True, biased=True, activation=functional.silu)
    normal = draw(5)
    x, index = normal(tokens, 200), normal(tokens, 16).topk(4).indices
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(kernel_experts.kernel(x, index, None, experts))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


@torch.no_grad()
@pytest.mark.parametrize("select", ["top", "bottom", "not_top"])
@pytest.mark.parametrize("weighting", ["ones", "softmax", "probability"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(6, 1), (6, 2), (64, 16), (100, 7)])
def test_selection_and_weights_are_those_of_routing(num_experts, top_k, weighting, select):
    experts = stack(num_experts, 2, 8, gated=False, biased=False, activation=functional.relu)
    normal = draw(6)
    scores, x = 3 * normal(50, num_experts), normal(50, 8)
    index = select_experts(scores, top_k, select)
    weights = expert_weights(scores, index, weighting)
    output, found, found_weights = kernel_experts.kernel_layer(
        x, scores, experts, None, scored=True, top_k=top_k, select=select, weighting=weighting,
        scale=1.5,
    )  # fmt: skip
    assert torch.equal(found, index)
    if weights is None:
        assert found_weights is None
    else:
        torch.testing.assert_close(found_weights, 1.5 * weights, rtol=1e-5, atol=1e-6)
        weights = 1.5 * weights
    torch.testing.assert_close(output, masked(x, index, weights, experts), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equal_scores_select_each_expert_once():
    experts = stack(8, 2, 8, gated=False, biased=False, activation=functional.relu)
    scores = torch.zeros(3, 8)
    scores[1, 5:] = 1.0
    scores[2] = torch.tensor([0.0, -0.0] * 4)
    for select in ("top", "bottom", "not_top"):
        _, index, _ = kernel_experts.kernel_layer(
            torch.zeros(3, 8), scores, experts, None, scored=True, top_k=4, select=select,
            weighting="ones", scale=1.0,
        )  # fmt: skip
        assert all(len(set(row)) == 4 and set(row) <= set(range(8)) for row in index.tolist())
    assert set(index[1].tolist()) & {5, 6, 7} == set()


def layer(router: nn.Module, *, gated: bool = True, weighting="ones", top_k=2) -> MoEFeedForward:
    normal = draw(7)
    ffn = FFN(
        keys=normal(48, 32), values=normal(48, 32), activation=functional.silu,
        ups=normal(48, 32) if gated else None, key_bias=normal(48), output_bias=normal(32),
        up_bias=normal(48) if gated else None,
    )  # fmt: skip
    return MoEFeedForward(
        Experts.split(ffn, torch.arange(48) % 8), router, top_k=top_k, weighting=weighting
    )


ROUTERS = {
    "average key": lambda: AverageKeyRouter(),
    "cosine to average keys": lambda: AverageKeyRouter(normalize=True, normalize_token=True),
    "average absolute up": lambda: AverageKeyRouter("up_abs"),
    "linear": lambda: LinearRouter(draw(8)(8, 32)),
    "noisy": lambda: with_gate(NoisyTopKRouter(32, 8)),
}


def with_gate(router: NoisyTopKRouter) -> NoisyTopKRouter:
    router.gate.data.copy_(draw(9)(8, 32))
    return router


@pytest.mark.parametrize("weighting", ["ones", "softmax"])
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_a_layer_gives_what_it_gave(router, weighting, monkeypatch):
    plain = layer(router(), weighting=weighting).eval()
    fast = for_inference(copy.deepcopy(plain))
    calls = count_calls(monkeypatch)
    x = draw(10)(2, 5, 32)
    with torch.no_grad():
        for tokens in (x, x[:1, :1]):
            torch.testing.assert_close(fast(tokens), plain(tokens), rtol=1e-4, atol=1e-4)
            assert torch.equal(
                fast.routing.index.sort(1).values, plain.routing.index.sort(1).values
            )
    assert calls == ["layer", "layer"]


@pytest.mark.long
def test_one_token_again_and_again_changes_neither_output_nor_parameters():
    plain = layer(ROUTERS["linear"](), weighting="softmax").eval()
    fast = for_inference(copy.deepcopy(plain))
    assert fast.experts.output_bias is not None
    before = copy.deepcopy(fast.state_dict())
    x = draw(12)(1, 1, 32)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)
    for name, tensor in fast.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.long
def test_hooks_of_the_router_are_called():
    fast = for_inference(layer(ROUTERS["linear"](), weighting="ones").eval())
    seen = []
    fast.router.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        fast(draw(13)(1, 1, 32))
    assert seen == [1]


@pytest.mark.long
def test_nan_stays_nan_under_relu():
    experts = stack(4, 8, 16, gated=False, biased=False, activation=nn.ReLU())
    x = torch.full((3, 16), torch.nan)
    index = torch.tensor([[0, 1]] * 3)
    assert kernel_experts.kernel(x, index, None, experts).isnan().all()


def count_calls(monkeypatch) -> list[str]:
    """Note every call of the kernel: `layer` for one with routing, `experts` for one without."""
    calls: list[str] = []

    def noting(name, call):
        return lambda *args, **kwargs: calls.append(name) or call(*args, **kwargs)

    monkeypatch.setattr(
        "moe_runner.moe.inference.kernel_layer", noting("layer", kernel_experts.kernel_layer)
    )
    for module in ("kernel_experts", "inference"):
        monkeypatch.setattr(
            f"moe_runner.moe.{module}.kernel", noting("experts", kernel_experts.kernel)
        )
    return calls


@pytest.mark.long
def test_it_is_not_used_where_it_is_not_right(monkeypatch):
    calls = count_calls(monkeypatch)
    x = draw(10)(5, 32)
    made = layer(AverageKeyRouter())
    with torch.no_grad():
        made.eval()(x)  # as runs evaluate
        for_inference(made)
        made.train()(x)
        made.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made(x)
        made.double()(x.double())
        made.bfloat16()(x.bfloat16())
    made.float()
    made(x)  # a gradient is wanted
    assert made(x.requires_grad_()).requires_grad
    with torch.no_grad():
        made.experts.activation = torch.tanh
        made(x.detach())
    assert calls == []
    with torch.no_grad():
        made.experts.activation = functional.silu
        made(x.detach())
    assert calls == ["layer"]


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 6])
def test_all_experts_are_the_dense_network(tokens):
    made = for_inference(layer(AverageKeyRouter(), top_k=8))
    x = draw(11)(tokens, 32)
    torch.testing.assert_close(made(x), made.experts.dense(8)(x), rtol=1e-4, atol=1e-4)
    assert made.routing.load(8).tolist() == [tokens] * 8


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


METHODS = [
    EMoE(num_experts=8, top_k=2, layers="all"),
    MoE(num_experts=4, top_k=2, layers="all"),
    HyperMoE(num_experts=4, top_k=1, layers="all"),
]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_training_between_two_inferences_is_followed(method, monkeypatch):
    model = llama()
    convert(model, method)
    ids = torch.arange(12)[None] % 50
    calls = count_calls(monkeypatch)

    def compare() -> torch.Tensor:
        for_inference(model)
        with torch.no_grad():
            found = model(ids).logits
            for each in model.modules():
                if isinstance(each, MoEFeedForward):
                    each.for_inference = False
            torch.testing.assert_close(found, model(ids).logits, rtol=1e-3, atol=1e-4)
        return found

    first = compare()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.05)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    second = compare()
    assert len(calls) == 4  # two layers, twice; none in training
    assert (first - second).abs().max() > 0.01
    model.load_state_dict(llama_state(model))
    third = compare()
    assert (third - second).abs().max() > 0.01


def llama_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: 0.5 * t if t.is_floating_point() else t for name, t in model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_generated_tokens_are_those_of_the_plain_model(method):
    plain = llama()
    convert(plain, method)
    plain.eval()
    fast = for_inference(copy.deepcopy(plain))
    prompt = torch.arange(24).view(2, 12) % 50
    options = {"max_new_tokens": 15, "do_sample": False, "pad_token_id": 0}
    assert fast.generate(prompt, **options).tolist() == plain.generate(prompt, **options).tolist()
