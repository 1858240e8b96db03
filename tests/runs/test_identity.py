import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_runner.runs import identity
from moe_runner.runs.identity import canonical_json, content_hash, run_id

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True, kw_only=True)
class Method:
    num_experts: int = 4
    temperature: float = 0.5
    layers: tuple[int, ...] = (1, 3)
    backend: str = field(default="masked", metadata={"identity": ("kernel",)})
    noise: float = field(default=0.0, metadata={"neutral": 0.0})
    normalise: bool = field(default=False, metadata={"neutral": False})


@dataclass(frozen=True, kw_only=True)
class Run:
    method: Method = field(default_factory=Method)
    learning_rate: float = 1e-3
    data_dir: Path | None = field(default=None, metadata={"identity": False})


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_canonical_json_is_compact_ascii_json_of_an_equal_value(value):
    text = canonical_json(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), VALUES))
def test_key_order_does_not_matter(mapping):
    backwards = dict(reversed(mapping.items()))
    assert canonical_json(backwards) == canonical_json(mapping)


@settings(deadline=None, max_examples=50)
@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_an_integral_float_is_its_integer(number):
    assert canonical_json({"x": [float(number)]}) == canonical_json({"x": [number]})


def test_true_is_not_one_and_a_tuple_is_a_list():
    assert canonical_json([True, 1, -0.0, None]) == "[true,1,0,null]"
    assert canonical_json((1, 2)) == canonical_json([1, 2])


def test_a_dataclass_is_its_identifying_fields():
    expected = '{"learning_rate":0.001,"method":{"layers":[1,3],"num_experts":4,"temperature":0.5}}'
    assert canonical_json(Run()) == expected


def test_excluded_fields_are_left_out_whatever_they_hold():
    run = Run(method=Method(backend="grouped"), data_dir=Path("/data"))
    assert canonical_json(run) == canonical_json(Run())


def test_an_option_may_count_with_some_of_its_values_only():
    assert '"backend":"kernel"' in canonical_json(Method(backend="kernel"))
    assert "backend" not in canonical_json(Method(backend="grouped"))


def test_a_later_option_counts_only_when_not_neutral():
    assert '"noise":0.1' in canonical_json(Method(noise=0.1))
    assert '"normalise":true' in canonical_json(Method(normalise=True))
    assert canonical_json(Method(noise=0)) == canonical_json(Method())  # 0 is 0.0 ...
    assert canonical_json(Method(normalise=0)) != canonical_json(Method())  # ... but not False


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_error_that_names_its_place(number):
    with pytest.raises(ValueError, match=r"value\.method\.temperature=-?(nan|inf)"):
        canonical_json(Run(method=Method(temperature=number)))


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), b"x", Run, {1: 2}])
def test_a_value_without_canonical_json_is_an_error(value):
    with pytest.raises(TypeError, match="value"):
        canonical_json([value])


def test_run_id_is_pinned():
    # If this fails, every id on every disk has changed: raise SCHEMA, and say so in CHANGELOG.md.
    assert run_id(Run()) == "89d3087bffc13944"


def test_run_id_depends_on_every_number_and_the_schema(monkeypatch):
    ids = {run_id(Run()), run_id(Run(learning_rate=2e-3)), run_id(Run(method=Method(layers=(1,))))}
    monkeypatch.setattr(identity, "SCHEMA", 3)
    ids.add(run_id(Run()))
    assert len(ids) == 4
    assert run_id(Run(learning_rate=1.0)) == run_id(dataclasses.replace(Run(), learning_rate=1))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(folder: str, **contents: str) -> list[Path]:
        paths = []
        for name, text in contents.items():
            path = tmp_path / folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            paths.append(path)
        return paths

    return write


def test_content_hash_ignores_order_repetition_and_the_place_of_the_folder(make):
    here = make("here", train="a", sub__dev="b")
    there = make("some/where", train="a", sub__dev="b")
    assert content_hash(here) == content_hash([*reversed(there), there[0]])
    assert len(content_hash(here)) == 64


def test_content_hash_sees_names_contents_and_where_one_ends(make):
    variants = [
        make("a", x="12", y="3"),
        make("b", x="1", y="23"),
        make("c", x="12", z="3"),
        make("d", x="12"),
        make("e", x="12", y="3", z=""),
        make("f", x="12", sub__y="3"),
    ]
    assert len({content_hash(paths) for paths in variants}) == len(variants)


def test_content_hash_of_a_missing_file_or_of_none_is_an_error(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        content_hash([*make("a", x="1"), tmp_path / "a" / "gone"], tmp_path / "memo.json")
    with pytest.raises(ValueError, match="at least one"):
        content_hash([])


def test_the_memo_is_used_and_follows_changes(make, tmp_path, monkeypatch):
    memo = tmp_path / "cache" / "memo.json"
    paths = make("a", x="1", y="2")
    first = content_hash(paths, memo)
    with monkeypatch.context() as patch:
        patch.setattr(identity.hashlib, "file_digest", None)  # a second look would fail
        assert content_hash(paths, memo) == first
    stat = os.stat(paths[0])
    paths[0].write_text("9")  # same size; the mtime tells
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = content_hash(paths, memo)
    assert changed != first
    assert changed == content_hash(paths)


@pytest.mark.parametrize("damage", ["", '{"half": ', "[]", '{"%s": 7}', '{"%s": [1, 2]}', "\xff"])
def test_a_damaged_memo_is_made_anew(make, tmp_path, damage):
    memo = tmp_path / "memo.json"
    paths = make("a", x="1")
    memo.write_bytes(damage.replace("%s", str(paths[0])).encode("latin-1"))
    assert content_hash(paths, memo) == content_hash(paths)
    assert str(paths[0]) in json.loads(memo.read_text())


def test_a_memo_keeps_what_others_added(make, tmp_path):
    memo = tmp_path / "memo.json"
    one, two = make("a", x="1"), make("b", x="2")
    content_hash(one, memo)
    content_hash(two, memo)
    assert set(json.loads(memo.read_text())) == {str(one[0]), str(two[0])}
    assert list(tmp_path.glob(".*.tmp")) == []
