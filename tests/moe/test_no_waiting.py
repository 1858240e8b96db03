"""On CUDA no layer may wait for the device: nothing that depends on the data is asked for.

Fake tensors have shapes and no values: whatever needs one (`item`, `tolist`, `bincount`, `nonzero`)
raises. The machine needs no GPU; the back end is the one that CUDA gets.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call
from transformers import BertConfig, BertModel

from moe_runner import EMoE, EMoELearn, GMoE, HyperMoE, MoE, MoEAdapter, convert
from moe_runner.moe import layer
from moe_runner.moe.routing import count_choices

LAYERS = 2
FAST = {"backend": "grouped_mm"}
METHODS = {
    "emoe": EMoE(num_experts=8, top_k=2, clustering="random", **FAST),
    "emoe_learn": EMoELearn(num_experts=8, top_k=2, clustering="random", **FAST),
    "gmoe": GMoE(num_experts=4, top_k=2, **FAST),
    "moe": MoE(num_experts=4, top_k=2, **FAST),
    "moe_adapter": MoEAdapter(num_experts=4, top_k=2, **FAST),
}


ASKING = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


def counted(name: str, asked: list[str]):
    """Wrap a method of tensors that reads values, so that its calls are listed."""
    plain = getattr(torch.Tensor, name)

    def counting(self, *args):
        asked.append(name)
        return plain(self, *args)

    return counting


@pytest.fixture
def as_on_cuda(monkeypatch):
    monkeypatch.setattr(layer, "fast_backend", lambda *_: "grouped_mm")


def converted(method) -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = BertConfig(num_hidden_layers=LAYERS, vocab_size=100, **sizes)
    model = BertModel(config)
    convert(model, method)
    return model.to(torch.bfloat16)  # what the rules for shapes of grouped products know


def pass_through(model: BertModel, *, training: bool) -> None:
    """Go forward, and backward in training, with fake tensors."""
    with FakeTensorMode() as mode, torch.set_grad_enabled(training):
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fake = {
            name: mode.from_tensor(tensor)
            .detach()
            .requires_grad_(training and tensor.is_floating_point())
            for name, tensor in state.items()
        }
        model.train(training)
        ids = torch.ones(2, 5, dtype=torch.long)
        output = functional_call(model, fake, (ids,)).last_hidden_state
        if training:
            output.float().sum().backward()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_no_layer_asks_for_values(name, training, as_on_cuda):
    pass_through(converted(METHODS[name]), training=training)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_the_check_sees_a_layer_that_does():
    with pytest.raises(DynamicOutputShapeException, match="bincount"):  # of the CPU's back end
        pass_through(converted(METHODS["moe_adapter"]), training=False)


def test_sorted_asks_once_whatever_the_number_of_experts(monkeypatch):
    asked = []
    for name in ASKING:
        monkeypatch.setattr(torch.Tensor, name, counted(name, asked))
    for num_experts in (4, 16):
        model = converted(
            EMoE(
                num_experts=num_experts,
                top_k=2,
                layers="all",
                clustering="random",
                backend="sorted",
            )
        )
        asked.clear()
        model(torch.arange(10).reshape(2, 5)).last_hidden_state.float().sum().backward()
        assert [name for name in asked if name != "__bool__"] == ["tolist"] * LAYERS


@pytest.mark.parametrize("num_experts", [4, 8])
def test_a_hyperexpert_asks_once_a_layer_whatever_the_number_of_experts(num_experts, monkeypatch):
    model = converted(HyperMoE(num_experts=num_experts, top_k=2, **FAST)).eval()
    asked = []
    for name in ASKING:
        monkeypatch.setattr(torch.Tensor, name, counted(name, asked))
    with torch.no_grad():
        model(torch.arange(10).reshape(2, 5))
    assert [name for name in asked if name != "__bool__"] == ["tolist"] * LAYERS


def test_choices_are_counted_as_bincount_does():
    index = torch.tensor([[3, 0], [3, 1], [0, 3]])
    assert count_choices(index, 6).tolist() == torch.bincount(index.flatten(), minlength=6).tolist()
    assert count_choices(index[:0], 3).tolist() == [0, 0, 0]
