"""The sparse layers of a Switch Transformer that a method keeps: capacity, and what is active."""

from __future__ import annotations

import pytest
import torch

from moe_runner import EMoE, convert, merge
from moe_runner.conversion.counts import active_parameters, count_parameters
from moe_runner.methods.dense.options import Dense
from moe_runner.methods.noisy_tuning.options import NoisyTuning
from moe_runner.options.protocol import Protocol
from tests.methods.test_protocol import long_batch

KEEPING = [Dense(), NoisyTuning(noise=0.0), EMoE(num_experts=8, top_k=8, layers="all")]
SPARSE_LAYERS, EXPERTS = 4, 4  # of the tiny Switch: two in each stack; of a layer
EXPERT = 2 * 16 * 32  # weights of one: d_model 16, d_ff 32, no bias


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**long_batch()).logits


def with_capacity(model, capacity: int):
    """Limit the experts of the library's own layers, by its own attribute."""
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = capacity
    model.config.expert_capacity = capacity
    return model


@pytest.mark.parametrize("method", KEEPING, ids=lambda method: method.name)
def test_kept_layers_drop_tokens_over_the_protocol_s_capacity_only(method, tiny_model):
    full, narrow = logits(tiny_model("switch")), logits(with_capacity(tiny_model("switch"), 2))
    assert not torch.allclose(full, narrow, rtol=1e-3, atol=1e-3)
    near = {"rtol": 1e-4, "atol": 1e-5}
    model = tiny_model("switch")
    convert(model, method, protocol=Protocol(sequence_capacity=2))
    torch.testing.assert_close(logits(model), narrow, **near)
    merge(model)  # the configuration's 64 again: more than a sequence has
    torch.testing.assert_close(logits(model), full, **near)
    model = with_capacity(tiny_model("switch"), 2)
    convert(model, method)  # without the protocol there is none
    torch.testing.assert_close(logits(model), full, **near)
    merge(model)
    torch.testing.assert_close(logits(model), narrow, **near)


@pytest.mark.parametrize("method", KEEPING[:2], ids=lambda method: method.name)
def test_one_expert_of_each_kept_layer_is_active(method, tiny_model):
    model = tiny_model("switch")
    conversion = convert(model, method)
    idle = SPARSE_LAYERS * (EXPERTS - 1) * EXPERT
    assert conversion.parameters == conversion.dense_parameters == count_parameters(model)
    assert conversion.active_parameters == active_parameters(model) == conversion.parameters - idle


def test_idle_neurons_of_dense_ffns_and_idle_experts_of_kept_layers_add_up(tiny_model):
    model = tiny_model("switch")
    conversion = convert(model, EMoE(num_experts=8, top_k=2, layers="all"))
    split = 4 * EXPERT * 6 // 8  # the four FFNs that are not sparse layers
    kept = SPARSE_LAYERS * (EXPERTS - 1) * EXPERT
    assert len(conversion.layers) == 4
    assert conversion.active_parameters == conversion.parameters - split - kept


def test_the_flops_of_a_kept_layer_are_those_of_one_expert_and_its_router(tiny_model):
    model = tiny_model("switch")
    conversion = convert(model, Dense())
    ffns = 4 * 2 * EXPERT + SPARSE_LAYERS * 2 * (EXPERT + EXPERTS * 16)
    attention = 4 * 2 * 4 * 16 * 16 + 4 * 2 * 4 * 16 * 16 * 2  # the decoder has two of them
    head = 2 * 16 * model.config.vocab_size
    assert conversion.flops == conversion.dense_flops == ffns + attention + head


def test_kept_routers_sum_over_processes_with_gradients_only(tiny_model, monkeypatch):
    summed = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr(
        "torch.distributed.nn.functional.all_reduce", lambda x: summed.append(x) or 2 * x
    )
    model = tiny_model("switch")
    convert(model, Dense())
    logits(model)
    assert summed == []
    model(**long_batch())
    assert len(summed) == SPARSE_LAYERS * 5
