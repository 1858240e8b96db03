"""Choosing the device, without one here."""

from __future__ import annotations

import os

import pytest
import torch

from moe_runner.options.errors import ConfigError
from moe_runner.options.training import Trainer
from moe_runner.training import device as module
from moe_runner.training.device import check_precision, choose_device, peak_memory, prepare


@pytest.fixture(autouse=True)
def no_memory_of_earlier_choices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "kept")  # put back at the end
    module.show_one_gpu.cache_clear()
    yield
    module.show_one_gpu.cache_clear()


@pytest.mark.parametrize(
    ("visible", "name", "shown"),
    [
        (None, "auto", "0"),
        (None, "cuda:2", "2"),
        ("4,7", "cuda:1", "7"),
        ("4,7", "cuda", "4"),
        ("4,7", "cuda:5", ""),
        ("", "auto", ""),
    ],
)
def test_the_process_sees_one_gpu(visible, name, shown, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for _ in range(2):  # the second run of a process changes nothing
        assert choose_device(name).type == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == shown


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_here_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device={name} is not on this machine"):
        choose_device(name)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("launched", [None, "no", "bf16", "fp16"])
def test_the_precision_of_accelerate_launch_is_that_of_the_run(precision, launched, monkeypatch):
    monkeypatch.delenv(module.LAUNCHED, raising=False)
    if launched is not None:
        monkeypatch.setenv(module.LAUNCHED, launched)
    options = Trainer(precision=precision)
    if launched in (None, {"fp32": "no"}.get(precision, precision)):
        check_precision(options, torch.device("cpu"))
    else:
        with pytest.raises(ConfigError, match=f"precision={precision} and .*precision: {launched}"):
            check_precision(options, torch.device("cpu"))


def test_the_peak_of_the_memory_starts_anew_with_every_run():
    prepare(0, None)
    block = torch.ones(60_000_000)  # 240 MB
    high = peak_memory(torch.device("cpu"))
    del block
    prepare(0, None)
    assert high - peak_memory(torch.device("cpu")) > 200e6
