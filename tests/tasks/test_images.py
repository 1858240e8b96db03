"""Images of any mode become 8-bit RGB; what is no data is left out; repeated pictures are told."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from moe_runner.tasks.images import files_of, to_rgb, unread_of
from tests.tasks.suites.test_domainbed import load, options, write_domains

GREY = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)


def reread(image: Image.Image, file) -> np.ndarray:
    image.save(file)
    with Image.open(file) as opened:
        return np.asarray(to_rgb(opened))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("eight.png", lambda: Image.fromarray(GREY)),
        ("sixteen.png", lambda: Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("sixteen.tif", lambda: Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("wide.tif", lambda: Image.fromarray(GREY.astype(np.int32) * 257)),
        ("float.tif", lambda: Image.fromarray((GREY / 255).astype(np.float32))),
        ("float255.tif", lambda: Image.fromarray(GREY.astype(np.float32))),
        ("palette.png", lambda: Image.fromarray(GREY).convert("P")),
    ],
)
def test_a_grey_picture_is_the_same_in_every_mode(name, make, tmp_path):
    expected = np.repeat(GREY[..., None], 3, axis=2)
    assert np.array_equal(reread(make(), tmp_path / name), expected)


def test_big_endian_values_are_read_as_such():
    swapped = (GREY.astype(np.uint16) * 257).astype(">u2")
    image = Image.frombytes("I;16B", (4, 4), swapped.tobytes())
    assert np.array_equal(np.asarray(to_rgb(image))[..., 0], GREY)


def test_values_of_no_known_range_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        to_rgb(Image.fromarray(np.full((2, 2), -1.0, dtype=np.float32)))
    with pytest.raises(ValueError, match="no known range"):
        to_rgb(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)))


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    image = Image.fromarray(np.dstack([GREY] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        found = np.asarray(to_rgb(opened))[..., 0]
    assert np.array_equal(found, np.rot90(GREY, -1))


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path):
    root = write_domains(tmp_path) / "PACS" / "photo"
    before = files_of(root)
    for place in (".ipynb_checkpoints", "dog/.ipynb_checkpoints", "@eaDir", "__MACOSX/dog"):
        (root / place).mkdir(parents=True)
        shutil.copy(root / "dog" / "000.png", root / place / "0-checkpoint.png")
    shutil.copy(root / "dog" / "000.png", root / "dog" / "._000.png")
    assert files_of(root) == before


@pytest.mark.parametrize("ending", ["jfif", "JFIF", "avif"])
def test_less_common_endings_are_images(ending, tmp_path):
    file = tmp_path / "dog" / f"0.{ending}"
    file.parent.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(file)
    (tmp_path / "dog" / "0.txt").write_text("no image")
    assert files_of(tmp_path) == [("dog", file)]
    assert unread_of(tmp_path) == [("dog", tmp_path / "dog" / "0.txt")]


def test_pictures_in_training_and_evaluation_are_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = write_domains(tmp_path / "data", counts=(10, 10, 10, 10))  # the same in every domain
    data = load(options(data_dir=str(root)), tmp_path)
    assert data.held_out == ("photo",)
    told = [line for line in caplog.messages if "are also trained on" in line]
    rows = data.splits["photo/in"]
    trained = {
        int(data.arrays[d][i, 0, 0, 0])
        for d, name in enumerate(("art_painting", "cartoon", "photo", "sketch"))
        if name != "photo"
        for i in data.splits[f"{name}/in"]["image"]
    }
    number = list(data.domains).index(next(d for d in data.domains if d.name == "photo"))
    repeated = sum(int(data.arrays[number][i, 0, 0, 0]) in trained for i in rows["image"])
    assert repeated > 0
    assert f"  {repeated} of the pictures that photo is evaluated on are also trained on" in told


def test_a_class_that_a_domain_lacks_is_named(tmp_path, caplog):
    root = write_domains(tmp_path / "data", counts=(10, 10, 10, 10))
    shutil.rmtree(root / "PACS" / "sketch" / "horse")
    load(options(data_dir=str(root)), tmp_path)
    assert "the class horse is not in sketch" in caplog.text
