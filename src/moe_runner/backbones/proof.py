"""Let the sites of an unknown model type prove that they read as what the backbone computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_runner.backbones.sites import FFNSite
from moe_runner.moe.experts import FFN

TOLERANCE = 1e-4  # of the outputs' largest number
LENGTH = 8  # tokens of a random text


class Dense(nn.Module):
    """A network from its tensors."""

    def __init__(self, ffn: FFN) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """Compute it on tokens (..., D)."""
        return self.ffn(x)


def prove(model: PreTrainedModel, sites: Sequence[FFNSite]) -> None:
    """Compare a model with one whose networks are computed from what the sites read.

    Args:
        model: with its own modules; afterwards it is the same, with the same parameters, mode and
            state of the random numbers.
        sites: all of its sites.

    Raises:
        ValueError: if the outputs differ, a network is called more than once or never, or the model
            does not run on a random batch; names the site.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()
            batch = random_batch(model)
            calls, before = called(model, sites, batch)
            for key, count in calls.items():
                if count != 1:
                    raise ValueError(f"{key} is called {count} times in a forward pass, not once")
            for site in sites:
                with site.standing_in(model, Dense(site.read(model)).eval()):
                    compare(before, outputs(model, batch), site)
    except ValueError as error:
        kind = model.config.model_type
        raise ValueError(f"model type {kind!r} is not verified, and {error}") from None
    finally:
        for module, mode in modes.items():
            module.training = mode


def compare(before: list[Tensor], after: list[Tensor], site: FFNSite) -> None:
    """Check that outputs agree.

    Raises:
        ValueError: if they do not.
    """
    for expected, found in zip(before, after, strict=True):
        scale = max(float(expected.abs().max()), 1.0)
        difference = float((expected - found).abs().max())
        if not difference <= TOLERANCE * scale:
            raise ValueError(
                f"{site.slot} does not compute its FFN's equation: on a random batch the outputs "
                f"differ by {difference:.2g}"
            )


def called(
    model: PreTrainedModel, sites: Sequence[FFNSite], batch: Mapping[str, Tensor]
) -> tuple[dict[str, int], list[Tensor]]:
    """Run a model and count the calls of each first projection, by name."""
    calls = dict.fromkeys((site.key for site in sites), 0)

    def counter(key: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            calls[key] += 1

        return count

    with ExitStack() as stack:
        for key in calls:
            handle = model.get_submodule(key).register_forward_hook(counter(key))
            stack.callback(handle.remove)
        found = outputs(model, batch)
    return calls, found


def outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a model and list the tensors of numbers that it returns.

    Raises:
        ValueError: if it does not run.
    """
    try:
        found = list(tensors(model(**batch)))
    except Exception as error:
        raise ValueError(
            f"it does not run on a random batch of {', '.join(batch)}: {type(error).__name__}: "
            f"{error}"
        ) from None
    return [tensor for tensor in found if tensor.is_floating_point()]


def tensors(value: Any) -> Iterator[Tensor]:
    """Go through the tensors of an output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def random_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Make an input from the names of the model's arguments: tokens, images.

    Raises:
        ValueError: if the model takes neither.
    """
    config: Any = model.config
    text: Any = config.get_text_config()
    names = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {}
    for name in ("input_ids", "decoder_input_ids"):
        if name in names and (name == "input_ids" or config.is_encoder_decoder):
            batch[name] = torch.randint(0, text.vocab_size, (2, LENGTH), generator=generator)
    if "pixel_values" in names and "input_ids" not in names:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (2, getattr(config, "num_channels", 3), height, width)
        batch["pixel_values"] = torch.randn(shape, generator=generator)
    if not batch:
        raise ValueError("it takes neither tokens nor images, so that nothing can be checked")
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
