"""Two gloo processes under DDP equal one process: every method on every family, one start."""

from __future__ import annotations

import pytest
import torch

from moe_runner import Dense, convert, merge
from moe_runner.conversion.record import conversion_of
from moe_runner.registry import METHODS
from tests.methods.distributed_worker import two_steps, work
from tests.methods.test_methods import converted

FAMILIES = ["bert", "gpt2", "llama", "t5", "vit", "switch"]


def four_rows(batch: dict) -> dict:
    return {key: torch.cat([value, value[:1]]) for key, value in batch.items()}


@pytest.fixture(scope="module")
def two_and_one(tiny_model, tiny_batch, tmp_path_factory):
    """Two processes' findings and one process's, by "method family"."""
    folder = tmp_path_factory.mktemp("gloo")
    cases, expected = {}, {}
    for family in FAMILIES:
        batch = four_rows(tiny_batch(family))
        for name in METHODS:
            model = converted(name, family, tiny_model)
            case = {
                "architecture": type(model).__name__,
                "config": model.config,
                "method": conversion_of(model).method,
                "state": {k: v.clone() for k, v in model.state_dict().items()},
                "batch": batch,
            }
            key = f"{name} {family}"
            expected[key] = two_steps(model, model, batch)
            trained = expected[key]["gradients"]
            case["frozen"] = [n for n, _ in model.named_parameters() if n not in trained]
            assert all(n.startswith("vit.pooler") for n in case["frozen"])  # nothing reads it
            cases[key] = case
    torch.save(cases, folder / "cases.pt")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return ranks, expected


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name, family, two_and_one):
    ranks, expected = two_and_one
    first, second = (rank[f"{name} {family}"] for rank in ranks)
    wanted = expected[f"{name} {family}"]
    for step, (loss, extra) in enumerate(wanted["losses"]):
        mean = (first["losses"][step][0] + second["losses"][step][0]) / 2
        assert mean == pytest.approx(loss, rel=1e-4)
        for rank in (first, second):  # over the tokens of both
            assert rank["losses"][step][1] == pytest.approx(extra, rel=1e-3, abs=1e-7)
    assert first["gradients"].keys() == wanted["gradients"].keys()
    assert len(wanted["gradients"]) > 20
    for parameter, gradient in wanted["gradients"].items():
        for rank in (first, second):
            torch.testing.assert_close(
                rank["gradients"][parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter
            )


def test_idle_experts_of_the_library_have_a_gradient_of_zero_until_merged(tiny_model, tiny_batch):
    model, batch = tiny_model("switch"), tiny_batch("switch")

    def step() -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        parameters = [p for n, p in model.named_parameters() if ".mlp.experts." in n]
        return output.logits.detach(), [p.grad for p in parameters]

    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "classifier"):  # a router: everyone avoids expert 0
                module.classifier.weight[0] = -100 * module.classifier.weight[1:].sum(0)
    logits, before = step()
    assert any(grad is None for grad in before)
    convert(model, Dense())
    same, gradients = step()
    assert torch.equal(same, logits)
    for grad, old in zip(gradients, before, strict=True):
        assert torch.equal(grad, torch.zeros_like(grad) if old is None else old)
    merge(model)
    again, after = step()
    assert torch.equal(again, logits)
    assert [grad is None for grad in after] == [grad is None for grad in before]
