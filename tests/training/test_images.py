"""Batches of images: sampling by domain, augmentations, stochastic depth, resized positions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from datasets import Dataset

from moe_runner.backbones.drop_path import DropPath, add_drop_path
from moe_runner.backbones.loading import resize_positions
from moe_runner.training import images as module
from moe_runner.training.images import (
    Collator,
    DomainSampler,
    ImageRows,
    augmented,
    brightness,
    contrast,
    cropped,
    hue,
    luminance,
    saturation,
)


@pytest.fixture
def pixels():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------- sampling


def test_every_batch_has_a_minibatch_of_each_domain():
    domain = np.array([3] * 10 + [0] * 50 + [7] * 4)
    sampler = DomainSampler(domain, batch_size=6, seed=0)
    rows = [row for row, _ in sampler]
    assert len(rows) == len(sampler) == 6 * 2  # the smallest domain fills two batches
    for batch in (rows[:6], rows[6:]):
        assert domain[batch].tolist() == [0, 0, 3, 3, 7, 7]


def test_rows_are_drawn_alike_from_domains_of_any_length():
    domain = np.array([0] * 3 + [1] * 30)
    sampler = DomainSampler(domain, batch_size=2, seed=0)
    counts = np.zeros(33)
    for epoch in range(400):
        sampler.set_epoch(epoch)
        np.add.at(counts, [row for row, _ in sampler], 1)
    assert counts[:3].sum() == counts[3:].sum() == 1200  # a batch takes one of each
    assert counts[:3] / 1200 == pytest.approx([1 / 3] * 3, abs=0.05)
    assert counts[3:] / 1200 == pytest.approx([1 / 30] * 30, abs=0.02)


def test_a_smaller_domain_than_its_minibatch_is_drawn_from_too():
    sampler = DomainSampler(np.array([0, 1, 1, 1]), batch_size=16, seed=0)
    assert len(list(sampler)) == len(sampler) == 16


def test_an_epoch_has_the_same_draws_whichever_came_before():
    domain = np.array([0] * 20 + [1] * 20)
    one, other = (DomainSampler(domain, 4, seed=1) for _ in range(2))
    list(one)
    one.set_epoch(5)
    other.set_epoch(5)
    assert list(one) == list(other)
    assert list(one) != list(DomainSampler(domain, 4, seed=1))
    other.seed = 2
    assert list(one) != list(other)


def test_rows_give_the_image_of_their_domain():
    arrays = [np.full((4, 3, 2, 2), 10, np.uint8), np.full((4, 3, 2, 2), 20, np.uint8)]
    arrays[1][3] = 99
    rows = ImageRows(
        Dataset.from_dict({"image": [0, 3], "domain": [0, 1], "label": [1, 0]}), arrays
    )
    assert rows[0]["image"].max() == 10
    assert rows[1]["image"].min() == 99
    assert (rows[1]["label"], rows[1]["key"]) == (0, None)
    assert rows[1, 77]["key"] == 77


# ------------------------------------------------------------------------------- augmentation


def test_hue_is_that_of_the_standard_library(pixels):
    turned = hue(pixels, torch.full((6, 1, 1, 1), 0.2))
    for y, x in ((0, 0), (3, 7), (15, 2)):
        h, s, v = colorsys.rgb_to_hsv(*pixels[2, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb((h + 0.2) % 1, s, v)
        assert turned[2, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)
    grey = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(hue(grey, torch.full((1, 1, 1, 1), 0.3)), grey)


def test_an_amount_of_zero_changes_nothing(pixels):
    zero = torch.zeros(6, 1, 1, 1)
    for step in (brightness, contrast, saturation, hue):
        torch.testing.assert_close(step(pixels, zero), pixels, rtol=0, atol=1e-5)


def test_colour_steps_move_away_from_what_they_should(pixels):
    third = torch.full((6, 1, 1, 1), -1.0)
    assert brightness(pixels, third).max() == 0
    grey = luminance(pixels)
    torch.testing.assert_close(saturation(pixels, third), grey.expand_as(pixels))
    flat = contrast(pixels, third)
    mean = grey.mean((2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean.expand_as(pixels))


def test_a_crop_of_everything_is_the_image_or_its_mirror(pixels, monkeypatch):
    monkeypatch.setattr(module, "SCALE", (1.0, 1.0))
    monkeypatch.setattr(module, "RATIO", (1.0, 1.0))
    found = cropped(pixels, 16, torch.Generator().manual_seed(0))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, pixels, strict=True)]
    mirrored = [
        torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(found, pixels, strict=True)
    ]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)


def test_a_crop_keeps_the_share_of_the_area_that_it_should():
    ramp = torch.linspace(0, 1, 64)
    image = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"))  # brightness tells the place
    images = torch.cat([image, image[:1]])[None].expand(300, 3, 64, 64)
    found = cropped(images, 32, torch.Generator().manual_seed(1))
    whole = 32 / 31 * 63 / 64  # from the outer pixels' centres to the borders, in shares of 64
    height = (found[:, 0, -1, 0] - found[:, 0, 0, 0]) * whole
    width = (found[:, 1, 0, -1] - found[:, 1, 0, 0]).abs() * whole
    area = height * width
    assert 0.65 < area.min() < 0.72
    assert 0.95 < area.max() < 1.0
    assert area.mean() == pytest.approx(0.83, abs=0.03)  # 0.85, less what the border cuts off
    assert found.min() >= 0


def test_a_tenth_of_the_images_loses_its_colours(monkeypatch):
    monkeypatch.setattr(module, "JITTER", 0.0)
    images = torch.rand(2000, 3, 2, 2)
    found = augmented(images, 2, torch.Generator().manual_seed(0))
    grey = (found.std(1) < 1e-6).all((1, 2)).float().mean()
    assert grey == pytest.approx(0.1, abs=0.03)


def items(keys):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(len(keys), 3, 8, 8), dtype=np.uint8)
    return [
        {"image": image, "label": number, "key": key}
        for number, (image, key) in enumerate(zip(images, keys, strict=True))
    ]


def test_a_batch_depends_on_its_key_and_not_on_what_was_drawn_before():
    collate = Collator(8, [0.5] * 3, [0.5] * 3, augment=True)
    first = collate(items([3, 4]))["pixel_values"]
    torch.rand(5)
    assert torch.equal(collate(items([3, 4]))["pixel_values"], first)
    assert not torch.equal(collate(items([5, 4]))["pixel_values"], first)


def test_without_a_key_an_image_is_only_resized_and_normalised():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    batch = Collator(8, mean, std, augment=True)(items([None]))
    raw = torch.from_numpy(items([None])[0]["image"]).float() / 255
    expected = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(batch["pixel_values"][0], expected)
    assert batch["labels"].tolist() == [0]
    assert Collator(16, mean, std, True)(items([None]))["pixel_values"].shape == (1, 3, 16, 16)
    plain = Collator(8, mean, std, augment=False)(items([7]))["pixel_values"][0]
    torch.testing.assert_close(plain, expected)


# ------------------------------------------------------------------------------- the backbone


def test_drop_path_drops_whole_examples_in_training_only():
    layer = DropPath(0.25)
    hidden = torch.ones(4000, 3, 2)
    torch.manual_seed(0)
    found = layer(hidden)
    share = (found == 0).all((1, 2)).float().mean()
    assert share == pytest.approx(0.25, abs=0.02)
    assert torch.equal(found[found != 0].unique(), torch.tensor([1 / 0.75]))
    assert torch.equal(layer.eval()(hidden), hidden)


def test_drop_path_grows_from_layer_to_layer_and_leaves_evaluation_alone(tiny_model, tiny_batch):
    model, batch = tiny_model("vit"), tiny_batch("vit")
    before, names = model(**batch).logits, list(model.state_dict())
    add_drop_path(model, 0.3)
    rates = [layer.dropout[1].rate for layer in model.vit.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert torch.equal(model(**batch).logits, before)
    assert list(model.state_dict()) == names
    torch.manual_seed(0)
    assert not torch.equal(model.train()(**batch).logits, model(**batch).logits)


def test_positions_are_interpolated_to_another_size(tiny_model):
    model = tiny_model("vit")
    positions = model.vit.embeddings.position_embeddings.detach().clone()
    resize_positions(model, 16)
    assert model.vit.embeddings.position_embeddings.shape == (1, 17, 16)
    assert torch.equal(model.vit.embeddings.position_embeddings[:, 0], positions[:, 0])
    found = model(pixel_values=torch.randn(2, 3, 16, 16)).logits
    assert found.shape == (2, 3)
    flat = tiny_model("vit")
    with torch.no_grad():
        flat.vit.embeddings.position_embeddings[:, 1:] = 0.5
    resize_positions(flat, 12)
    spread = flat.vit.embeddings.position_embeddings[:, 1:]
    torch.testing.assert_close(spread, torch.full((1, 9, 16), 0.5))


def test_worker_processes_make_the_same_batches():
    from torch.utils.data import DataLoader

    array = np.random.default_rng(0).integers(256, size=(20, 3, 8, 8), dtype=np.uint8)
    table = {"image": list(range(20)), "domain": [0] * 20, "label": [0] * 20}
    rows = ImageRows(Dataset.from_dict(table), [array])
    collate = Collator(8, [0.5] * 3, [0.5] * 3, augment=True)

    def batches(workers):
        sampler = DomainSampler(rows.domain, 5, seed=0)
        loader = DataLoader(rows, 5, sampler=sampler, collate_fn=collate, num_workers=workers)
        return [batch["pixel_values"] for batch in loader]

    for one, other in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, other)
