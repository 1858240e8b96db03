"""Images of several domains: where they are found, how they are decoded, split and made."""

from __future__ import annotations

import dataclasses
import io
import threading

import numpy as np
import pytest
from PIL import Image

from moe_runner import hub, tasks
from moe_runner.options.errors import ConfigError
from moe_runner.options.task import DomainBedTask
from moe_runner.tasks import images as module
from moe_runner.tasks.image_variants import AGREEMENT, ANGLES, Digits, colored, handwritten, rotated
from moe_runner.tasks.images import CORRUPT, Domain, decoded
from moe_runner.tasks.suites.domainbed import DATA_SETS, TASKS, find_folder

PACS = DATA_SETS["pacs"].domains
CLASSES = ("dog", "horse")


def options(members=("pacs/photo",), suite="domainbed", **given) -> DomainBedTask:
    return DomainBedTask(suite=suite, members=tuple(members), **{"image_size": 8, **given})


def write_domains(root, counts=(10, 15, 20, 5)):
    """Write PACS in DomainBed's layout: grey squares, brighter with their number."""
    for domain, count in zip(PACS, counts, strict=True):
        for label in CLASSES:
            folder = root / "PACS" / domain / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (10, 12), (number, 100, 200)).save(folder / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp("data"))


def load(options, tmp_path, seed=0, name=None):
    return tasks.load(options, name or options.members[0], tmp_path / "cache").for_run(seed)


# ------------------------------------------------------------------------------- members


def test_the_members_are_every_domain_and_every_pair():
    assert [m for m in TASKS if m.startswith("pacs/") and "+" not in m] == [
        f"pacs/{domain}" for domain in PACS
    ]
    assert len([m for m in TASKS if m.startswith("pacs/")]) == 4 + 6
    assert len([m for m in TASKS if m.startswith("rotated_mnist/")]) == 6 + 15
    assert TASKS["pacs/cartoon+sketch"].ood == ("cartoon", "sketch")


def test_pairs_adds_those_that_leave_one_domain_out_needs():
    given = options(["pacs/photo"], pairs=True)
    assert tasks.members(given) == (
        "pacs/photo", "pacs/art_painting+photo", "pacs/cartoon+photo", "pacs/photo+sketch",
    )  # fmt: skip
    assert len(tasks.members(options([f"pacs/{d}" for d in PACS], pairs=True))) == 10


def test_the_recipe_is_that_of_the_benchmark_and_the_paper():
    recipe = TASKS["terra_incognita/location_43"].recipe
    assert (recipe.max_steps, recipe.eval_steps, recipe.batch_size) == (5001, 300, 3 * 32)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.schedule) == (5e-5, 1e-4, "constant")
    assert TASKS["pacs/photo+sketch"].recipe.batch_size == 2 * 32
    assert TASKS["rotated_mnist/15"].recipe.batch_size == 5 * 64


# ------------------------------------------------------------------------------- folders


def test_a_folder_of_domains_is_read(pacs, tmp_path):
    data = load(options(data_dir=str(pacs)), tmp_path)
    assert data.spec.labels == CLASSES
    assert [len(array) for array in data.arrays] == [20, 30, 40, 10]
    assert data.arrays[0].shape == (20, 3, 8, 8)
    assert data.arrays[0].dtype == np.uint8
    for row in data.splits["cartoon/in"]:  # images are where their labels say
        number = row["image"] % 15
        assert data.arrays[1][row["image"], :, 3, 3].tolist() == [number, 100, 200]
        assert row["label"] == row["image"] // 15


def test_every_domain_is_split_anew_for_each_trial(pacs, tmp_path):
    given = options(data_dir=str(pacs))
    one, same, other = (load(given, tmp_path, seed) for seed in (0, 0, 1))
    for number, domain in enumerate(PACS):
        ins, outs = (set(one.splits[f"{domain}/{part}"]["image"][:]) for part in ("in", "out"))
        assert not ins & outs
        assert ins | outs == set(range(len(one.arrays[number])))
        assert len(outs) == len(one.arrays[number]) // 5
    name = "cartoon/out"
    assert one.splits[name]["image"][:] == same.splits[name]["image"][:]
    assert one.splits[name]["image"][:] != other.splits[name]["image"][:]


@pytest.mark.parametrize("held_out", ["photo", "cartoon+sketch"])
def test_a_run_trains_on_the_other_domains_only(held_out, pacs, tmp_path):
    data = load(options([f"pacs/{held_out}"], data_dir=str(pacs)), tmp_path)
    tests = [PACS.index(domain) for domain in held_out.split("+")]
    assert set(data.train["domain"][:]) == set(range(4)) - set(tests)
    assert set(data.validation["training_domains"]["domain"][:]) == set(range(4)) - set(tests)
    assert list(data.ood) == held_out.split("+")
    for number, rows in zip(tests, data.ood.values(), strict=True):
        assert set(rows["domain"][:]) == {number}
        assert len(rows) == 0.8 * len(data.arrays[number])


def test_limits_hold_for_every_domain(pacs, tmp_path):
    data = load(options(data_dir=str(pacs), limit=9, eval_limit=2), tmp_path)
    assert len(data.train) == 9
    assert set(map(data.train["domain"][:].count, (0, 1, 3))) == {3}
    assert {len(rows) for rows in data.splits.values()} == {2}


def test_folders_are_found_whatever_the_case_and_the_spaces(tmp_path):
    (tmp_path / "Real World").mkdir()
    (tmp_path / "file").touch()
    assert find_folder(tmp_path, "real_world") == tmp_path / "Real World"
    assert find_folder(tmp_path, "file") is None


def test_the_fingerprint_is_the_content(pacs, tmp_path):
    given = options(data_dir=str(pacs))
    found = tasks.fingerprint(given, "pacs/photo")
    assert list(found) == list(PACS)
    copy = write_domains(tmp_path)
    assert tasks.fingerprint(options(data_dir=str(copy)), "pacs/photo") == found
    (copy / "PACS/photo/dog/000.png").unlink()
    changed = tasks.fingerprint(options(data_dir=str(copy)), "pacs/photo")
    assert [name for name in PACS if changed[name] != found[name]] == ["photo"]


# ------------------------------------------------------------------------------- decoding


def domain_of(count=6, key="k", **given) -> tuple[Domain, list[int]]:
    read: list[int] = []

    def one(index):
        read.append(index)
        return Image.new("L", (4, 4), 10 * index)

    made = Domain(
        name="d", key=key, labels=[0] * count, describe=lambda i: f"image {i}", read=one, **given
    )
    return made, read


def test_images_are_decoded_once_per_content_and_size(tmp_path):
    domain, read = domain_of()
    first, _ = decoded(domain, 4, tmp_path)
    again, _ = decoded(domain, 4, tmp_path)
    assert sorted(read) == list(range(6))
    assert isinstance(again, np.memmap)
    assert (first == again).all()
    assert first[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    decoded(domain, 8, tmp_path)
    assert len(read) == 12
    other, read_of_other = domain_of(key="another")
    decoded(other, 4, tmp_path)
    assert len(read_of_other) == 6


def test_two_processes_that_want_the_same_images_decode_them_once(tmp_path):
    domain, read = domain_of(count=40)
    threads = [threading.Thread(target=decoded, args=(domain, 4, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 40


def test_a_kill_while_decoding_leaves_nothing_that_counts(tmp_path, monkeypatch):
    domain, _ = domain_of()
    monkeypatch.setattr(module, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoded(domain, 4, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("images/*.npy"))
    array, digests = decoded(domain, 4, tmp_path)
    assert (len(array), len(set(digests))) == (6, 6)
    assert CORRUPT not in digests
    assert not list(tmp_path.glob("images/*.part"))


@pytest.fixture
def with_corrupt(tmp_path):
    root = write_domains(tmp_path / "data")
    file = root / "PACS/cartoon/horse/003.png"
    file.write_bytes(file.read_bytes()[:40])  # cut off
    (root / "PACS/cartoon/horse/004.png").write_text("no image")
    return root


def test_a_corrupt_image_is_named(with_corrupt, tmp_path):
    with pytest.raises(ValueError, match=r"no readable image: .*horse/003.png, .*horse/004.png; "):
        load(options(data_dir=str(with_corrupt)), tmp_path)


def test_corrupt_images_are_left_out_and_counted_on_demand(with_corrupt, tmp_path):
    data = load(options(data_dir=str(with_corrupt), skip_corrupt=True), tmp_path)
    assert data.skipped == {"cartoon": 2}
    rows = [*data.splits["cartoon/in"]["image"][:], *data.splits["cartoon/out"]["image"][:]]
    assert set(range(30)) - set(rows) == {18, 19}
    data = load(options(data_dir=str(with_corrupt), skip_corrupt=True), tmp_path)  # from the cache
    assert data.skipped == {"cartoon": 2}


def test_a_domain_that_is_too_small_to_split_is_told(tmp_path):
    root = write_domains(tmp_path / "data", counts=(10, 10, 10, 1))
    with pytest.raises(
        ValueError, match="domain sketch has 2 readable images, too few to hold out"
    ):
        load(options(data_dir=str(root)), tmp_path)


# ------------------------------------------------------------------------------- problems


def problems(given, name="pacs/photo"):
    return {s.problem for s in tasks.sources(given, name).values() if s.problem}


def test_what_is_missing_is_told_with_its_remedy(pacs, tmp_path):
    remedy = "put the images in PACS/<domain>/<class>/"
    missing = tmp_path / "nowhere"
    assert problems(options(data_dir=str(missing))) == {
        f"task.data_dir={missing} is not a folder; {remedy} of one"
    }
    assert problems(options(data_dir=str(tmp_path))) == {
        f"task.data_dir={tmp_path} has no folder PACS; {remedy}"
    }
    root = write_domains(tmp_path)
    for file in root.glob("PACS/sketch/*/*"):
        file.rename(file.with_suffix(".txt"))
    (root / "PACS/photo").rename(root / "PACS/photos")
    assert problems(options(data_dir=str(root))) == {
        f"task.data_dir={root}: the domain {root}/PACS/sketch is empty; {remedy}",
        f"task.data_dir={root} lacks the domain photo of PACS; {remedy}",
    }


def test_an_unknown_domain_is_told():
    with pytest.raises(ConfigError) as caught:
        tasks.sources(options(["pacs/foto"]), "pacs/foto")
    assert str(caught.value) == (
        "task.members=[pacs/foto] is not an option of task=domainbed; did you mean pacs/photo? "
        "(art_painting, cartoon, photo, sketch, or a pair such as art_painting+cartoon)"
    )
    with pytest.raises(ConfigError, match="use <data set>/<domain> of pacs, vlcs, "):
        tasks.sources(options(["paks/photo"]), "paks/photo")
    with pytest.raises(ConfigError, match="choose one with task=domainbed/pacs"):
        tasks.sources(options(["pacs/photo", "vlcs/sun09"], hub_id="me/images"), "pacs/photo")
    with pytest.raises(ConfigError, match=r"task.ood=\[imdb\] is not an option"):
        tasks.sources(options(ood=("imdb",)), "pacs/photo")


def test_the_hub_is_asked_where_there_is_a_copy(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    (line,) = problems(options())
    assert "cannot load 'flwrlabs/pacs' (default, train)" in line
    assert "use task.data_dir=<folder>" in line
    (line,) = problems(options(["vlcs/sun09"]), "vlcs/sun09")
    assert "no copy of vlcs on the Hugging Face Hub is known" in line
    (line,) = problems(options(["vlcs/sun09"], hub_id="me/vlcs"), "vlcs/sun09")
    assert "cannot load 'me/vlcs'" in line


# ------------------------------------------------------------------------------- tables of images


def png(value: int, size: int = 28) -> dict:
    stream = io.BytesIO()
    Image.new("L", (size, size), value).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def write_mnist(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, numbers in (("train", range(40)), ("test", range(40, 60))):
        table = pa.table({"image": [png(n) for n in numbers], "label": [n % 10 for n in numbers]})
        root.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")


def check_rotated_mnist(given, tmp_path):
    data = load(given, tmp_path, name="rotated_mnist/30")
    assert [len(array) for array in data.arrays] == [10] * 6  # both splits of MNIST
    assert data.arrays[0].shape == (10, 3, 28, 28)  # kept small; the collator enlarges
    values = [int(v) for array in data.arrays for v in array[:, 0, 14, 14]]
    assert sorted(values) == list(range(60))
    for part in ("in", "out"):
        for row in data.splits[f"75/{part}"]:
            assert row["label"] == data.arrays[5][row["image"], 0, 14, 14] % 10


def test_rotated_mnist_is_made_from_parquet_files(tmp_path):
    write_mnist(tmp_path / "MNIST")
    given = options(["rotated_mnist/30"], data_dir=str(tmp_path), holdout=0.3)
    check_rotated_mnist(given, tmp_path)
    (tmp_path / "MNIST/test-00000-of-00001.parquet").unlink()
    (line,) = problems(given, "rotated_mnist/30")
    assert "lacks MNIST: looked for MNIST/test.parquet" in line


def test_rotated_mnist_is_made_from_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    repository = tmp_path / "hub/datasets--ylecun--mnist"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    write_mnist(repository / "snapshots/abc/mnist")
    given = options(["rotated_mnist/30"], holdout=0.3)
    assert tasks.fingerprint(given, "rotated_mnist/30")["mnist/train"].startswith(
        "hub ylecun/mnist"
    )
    check_rotated_mnist(given, tmp_path)


def test_a_table_of_the_hub_is_sorted_by_its_domains(tmp_path, monkeypatch):
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    repository = tmp_path / "hub/datasets--me--pacs"
    folder = repository / "snapshots/abc/default"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    numbers = range(40)
    rows = Dataset.from_dict(
        {
            "image": [png(n) for n in numbers],
            "domain": [PACS[n % 4].replace("_", " ").title() for n in numbers],
            "label": [n // 20 for n in numbers],
        },
        features=Features(
            image=ImageFeature(), domain=Value("string"), label=ClassLabel(names=["zebra", "ape"])
        ),
    )
    pq.write_table(rows.data.table, folder / "train-00000-of-00001.parquet")
    data = load(options(hub_id="me/pacs"), tmp_path)
    assert data.spec.labels == ("ape", "zebra")
    for number, domain in enumerate(PACS):
        for part in ("in", "out"):
            for row in data.splits[f"{domain}/{part}"]:
                value = int(data.arrays[number][row["image"], 0, 0, 0])
                assert value % 4 == number
                assert data.spec.labels[row["label"]] == ("zebra" if value < 20 else "ape")


# ------------------------------------------------------------------------------- made from digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return handwritten()


def test_rotated_digits_are_dealt_out_and_turned(digits):
    domains = rotated(digits, 0)
    assert [domain.name for domain in domains] == [str(angle) for angle in ANGLES]
    assert sum(len(domain.labels) for domain in domains) == 1797
    whole = [np.asarray(digits.read(i)) for i in range(1797)]
    for domain in (domains[0], domains[4]):
        number = int(domain.describe(3).split()[1])
        expected = Image.fromarray(whole[number]).rotate(
            int(domain.name), Image.Resampling.BILINEAR
        )
        assert (np.asarray(domain.read(3)) == np.asarray(expected)).all()
        assert domain.labels[3] == digits.labels[number]
    dealt = [domain.describe(i).split()[1] for domain in domains for i in range(len(domain.labels))]
    assert len(set(dealt)) == 1797
    assert rotated(digits, 0)[2].describe(5) == domains[2].describe(5)
    assert rotated(digits, 1)[2].describe(5) != domains[2].describe(5)


def test_colours_agree_with_noisy_labels_as_often_as_they_should(digits):
    for domain, (name, agreement) in zip(colored(digits, 0), AGREEMENT.items(), strict=True):
        assert domain.name == name
        high, red, shape = [], [], []
        for index, label in enumerate(domain.labels):
            image = np.asarray(domain.read(index))
            assert image.shape == (32, 32, 3)
            assert not image[..., 2].any()
            assert not (image[..., 0].any() and image[..., 1].any())
            high.append(label == 1)
            red.append(bool(image[..., 0].any()))
            shape.append(digits.labels[int(domain.describe(index).split()[1])] >= 5)
        assert np.mean(np.equal(high, red)) == pytest.approx(agreement, abs=0.05)
        assert np.mean(np.equal(high, shape)) == pytest.approx(0.75, abs=0.05)


def test_the_mini_suite_needs_no_file(tmp_path):
    given = options(["colored_digits/minus_90"], suite="domainbed_mini")
    (source,) = tasks.sources(given, given.members[0]).values()
    assert source.generated == "colored_digits v1 of scikit-learn's digits seed 0"
    other = dataclasses.replace(given, data_seed=1)
    first, second = (tasks.fingerprint(g, given.members[0]) for g in (given, other))
    assert first != second
    with pytest.raises(ConfigError, match="did you mean colored_digits/minus_90"):
        tasks.sources(given, "colored_digits/minus_9")


def test_real_images_in_the_layout_of_the_benchmark(shared_data, tmp_path):
    given = options(data_dir=str(shared_data / "images"), image_size=32)
    data = load(given, tmp_path)
    assert data.spec.labels == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert [len(array) for array in data.arrays] == [252] * 4
    assert data.skipped == {}
    assert all(30 < array.mean() < 250 for array in data.arrays)
