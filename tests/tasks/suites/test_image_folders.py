"""task=image_folders: own images by domain, by split, or by class alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_runner import tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import ImageFoldersTask
from moe_runner.training.images import DomainSampler, ShuffledSampler


def options(root: Path, *members: str, **given) -> ImageFoldersTask:
    return ImageFoldersTask(
        suite="image_folders",
        members=members or ("all",),
        data_dir=str(root),
        image_size=16,
        **given,
    )


def write(folder: Path, count: int, brightness: int = 0) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            value = brightness + 2 * number + (name == "dog")
            picture = np.full((4, 4, 3), value, dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")


def loaded(root: Path, member: str, **given):
    return tasks.load(options(root, member, **given), member).for_run(0)


def brightness(data, rows) -> list[int]:
    return sorted(int(data.arrays[r["domain"]][r["image"]].mean()) for r in rows)


@pytest.fixture
def domains(tmp_path):
    for number, name in enumerate(("photo", "sketch", "clip_art")):
        write(tmp_path / name, 10, 60 * number)
    write(tmp_path / ".thumbnails", 2)
    (tmp_path / "readme.txt").write_text("no image")
    return tmp_path


def test_every_domain_is_held_out_in_turn(domains):
    assert tasks.members(options(domains)) == ("clip_art", "photo", "sketch")
    data = loaded(domains, "sketch")
    assert data.training_domains == ("clip_art", "photo")
    assert data.spec.labels == ("cat", "dog")
    assert brightness(data, data.ood["sketch"]) != []
    assert all(60 <= each < 120 for each in brightness(data, data.ood["sketch"]))
    assert len(data.validation["training_domains"]) == 8  # a fifth of 20, of two domains
    assert data.spec.recipe.batch_size == 64
    assert set(data.splits) == {
        f"{d}/{s}" for d in ("clip_art", "photo", "sketch") for s in ("in", "out")
    }


def test_pairs_and_chosen_domains(domains):
    one = options(domains, "sketch")
    assert tasks.members(one) == ("sketch",)
    both = options(domains, "sketch", pairs=True)
    assert tasks.members(both) == ("sketch", "clip_art+sketch", "photo+sketch")
    with pytest.raises(ConfigError, match="did you mean sketch"):
        tasks.sources(options(domains, "skech"), "skech")


def test_splits_by_name(tmp_path):
    for number, name in enumerate(("Train", "val", "test")):
        write(tmp_path / name, 4, 60 * number)
    assert tasks.members(options(tmp_path)) == ("images",)
    data = loaded(tmp_path, "images")
    assert brightness(data, data.train) == list(range(8))
    assert brightness(data, data.validation["validation"]) == list(range(60, 68))
    assert brightness(data, data.ood["test"]) == list(range(120, 128))
    assert list(data.ood) == ["test"]
    assert data.splits == {}


def test_without_a_validation_folder_a_part_of_train_selects(tmp_path):
    write(tmp_path / "train", 10)
    write(tmp_path / "test", 4, 60)
    data = loaded(tmp_path, "images")
    assert (len(data.train), len(data.validation["validation"])) == (16, 4)
    assert len(data.ood["test"]) == 8  # all of it
    both = brightness(data, data.train) + brightness(data, data.validation["validation"])
    assert sorted(both) == list(range(20))


def test_a_test_folder_without_classes_is_left_out(tmp_path, caplog):
    write(tmp_path / "train", 10)
    write(tmp_path / "more", 1)
    (tmp_path / "more" / "cat").rename(tmp_path / "test")
    (tmp_path / "more" / "dog" / "0.png").unlink()
    data = loaded(tmp_path, "images")
    assert data.ood == {}
    assert "the test folder" in caplog.text
    with pytest.raises(ConfigError, match="task.members=.sketch. is not an option"):
        tasks.members(options(tmp_path, "sketch"))


def test_an_empty_class_folder_is_no_class(tmp_path):
    write(tmp_path, 10)
    (tmp_path / "empty").mkdir()
    assert loaded(tmp_path, "images").spec.labels == ("cat", "dog")


def test_classes_alone(tmp_path):
    write(tmp_path / "mine", 10)
    for root in (tmp_path / "mine", tmp_path):  # with one folder around it
        data = loaded(root, "images")
        assert (len(data.train), len(data.validation["validation"])) == (16, 4)
        assert data.ood == {}


def test_a_picture_in_two_splits_is_counted(tmp_path, caplog):
    write(tmp_path / "train", 4)
    write(tmp_path / "test", 2)
    write(tmp_path / "valid", 4, 100)
    loaded(tmp_path, "images")
    assert "4 of the pictures that test is evaluated on are also trained on" in caplog.text


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ((), "holds no images; put images in"),
        (("train", "training"), r"two folders of one split \(train, training\)"),
        (("a+b", "c"), "rename the domain a.b"),
        (("mine/a", "loose"), "loose holds images itself, and mine folders of them"),
    ],
)
def test_what_is_wrong_is_one_line(folders, words, tmp_path):
    for folder in folders:
        write(tmp_path / folder, 2)
        if folder == "loose":
            (tmp_path / "loose" / "cat" / "0.png").rename(tmp_path / "loose" / "0.png")
    mine = options(tmp_path)
    found = tasks.sources(mine, tasks.members(mine)[0])
    problems = [source.problem for source in found.values() if source.problem]
    assert len(problems) == 1
    with pytest.raises(ConfigError, match=words):
        tasks.load(mine, tasks.members(mine)[0])


def test_the_title_names_the_data_and_what_is_held_out(domains):
    assert options(domains, "sketch").title == f"{domains.name}/sketch"
    assert options(domains, "images").title == domains.name


def test_a_plain_epoch_has_every_image_once():
    domain = np.zeros(10, dtype=np.int64)
    once, drawn = ShuffledSampler(domain, 4, 0), DomainSampler(domain, 4, 0)
    assert sorted(row for row, _ in once) == list(range(10))
    assert len(once) == 10
    assert len({row for row, _ in drawn}) < 10
    first = list(once)
    once.set_epoch(1)
    assert list(once) != first
