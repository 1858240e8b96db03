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


@pytest.mark.parametrize("wrapped", ["mine", "archive/mine"])
def test_splits_are_found_in_the_only_folder(wrapped, tmp_path):
    for number, name in enumerate(("train", "val")):
        write(tmp_path / wrapped / name, 4, 60 * number)
    data = loaded(tmp_path, "images")
    assert data.spec.labels == ("cat", "dog")
    assert brightness(data, data.validation["validation"]) == list(range(60, 68))
    inner = options(tmp_path / wrapped, "images")
    assert tasks.fingerprint(options(tmp_path, "images"), "images") == tasks.fingerprint(
        inner, "images"
    )


def test_splits_without_classes_are_no_classes(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "cat").rename(tmp_path / "train")
    (tmp_path / "dog").rename(tmp_path / "test")
    with pytest.raises(ConfigError, match="no classes in test, train, which hold images"):
        tasks.load(options(tmp_path, "images"), "images")
    (tmp_path / "test").rename(tmp_path / "bus")
    assert tasks.load(options(tmp_path, "images"), "images").spec.labels == ("bus", "train")


def test_domains_in_the_only_folder_are_asked_for(tmp_path, caplog):
    for name in ("photo", "sketch"):
        write(tmp_path / "PACS" / name, 10)
    assert loaded(tmp_path, "images").spec.labels == ("photo", "sketch")
    assert f"if they are domains, use task.data_dir={tmp_path}/PACS" in caplog.text


def test_the_folders_of_kaggle_are_splits(tmp_path):
    write(tmp_path / "Training", 10)
    write(tmp_path / "Testing", 4, 60)
    assert len(loaded(tmp_path, "images").ood["test"]) == 8


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_class_of_a_split_of_one_class_counts(split, tmp_path):
    for name in ("train", "test"):
        write(tmp_path / name, 2)
    (tmp_path / "more").mkdir()
    (tmp_path / split / "dog").rename(tmp_path / "more" / "dog")
    mine = options(tmp_path, "images")
    before = tasks.fingerprint(mine, "images")
    (tmp_path / split / "cat").rename(tmp_path / split / "dog")
    after = tasks.fingerprint(mine, "images")
    assert {name for name in before if before[name] != after[name]} == {split}


def test_more_than_one_class_has_the_hash_it_always_had(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_text(name)
    found = tasks.fingerprint(options(tmp_path, "images"), "images")
    digest = "153ed17098187975c1843aed2d37b7be56575955e6d8ff46ad92a8819008cb4d"
    assert found == {"train": f"sha256 {digest}"}


def test_what_is_not_read_is_named(tmp_path, caplog):
    write(tmp_path / "train", 10)
    write(tmp_path / "unlabelled", 1)
    (tmp_path / "val").mkdir()
    for file in ("bird/0.heic", "bird/1.HEIC", "cat/notes.txt", "cat/.hidden"):
        (tmp_path / "train" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / file).write_text("")
    loaded(tmp_path, "images")
    named = "unlabelled, val, train/bird (2 .heic), train/cat (1 .txt); images end in .jpg"
    assert caplog.text.count(f"task.data_dir={tmp_path}: not read are {named}") == 1


def test_other_data_out_of_domain_are_refused(domains):
    with pytest.raises(ConfigError, match="task.ood_dir=elsewhere is not read here; leave it out"):
        tasks.load(options(domains, "sketch", ood_dir="elsewhere"), "sketch")


def test_a_picture_in_two_splits_is_counted(tmp_path, caplog):
    write(tmp_path / "train", 4)
    write(tmp_path / "test", 2)
    write(tmp_path / "valid", 4, 100)
    loaded(tmp_path, "images")
    assert "4 of the pictures that test is evaluated on are also trained on" in caplog.text


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ((), r"holds no images \(.jpg, .*\); put images in"),
        (("train", "training"), r"two folders of one split \(train, training\)"),
        (("a+b", "c"), "rename the domain a.b"),
        (("mine/a", "loose"), "loose holds images itself, and mine folders of them"),
        (("photo/train", "photo/test", "sketch"), r"photo holds splits \(test, train\), not"),
        (("train/train", "test/test"), r"train holds splits \(train\), not .*/train$"),
        (("val", "test"), r"no folder train \(it has test, val\); name one train"),
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
