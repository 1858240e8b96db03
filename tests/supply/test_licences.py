"""The table of licences has exactly the pinned packages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def licences():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_exactly_the_pinned_packages(licences):
    text = licences.PAGE.read_text(encoding="utf-8").partition(licences.START)[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header, _, *rows = rows
    assert header == ["package", "version", "licence", "told by"]
    pinned = re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(pinned) > 100
    assert {(row[0], row[1]) for row in rows} == set(pinned)
    assert len(rows) == len(pinned)
    untold = [row[0] for row in rows if row[2] == licences.NOT_TOLD]
    assert untold == ["sentencepiece"]
    assert all(row[2] for row in rows)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"License-Expression": ["MIT OR Zlib"], "License": ["x"]}, ("MIT OR Zlib", "expression")),
        ({"License": ["BSD 3-Clause License"]}, ("BSD-3-Clause", "field")),
        (
            {"License": ["BSD"], "Classifier": ["License :: OSI Approved :: BSD License"]},
            ("BSD, not told which", "classifier"),
        ),
        (
            {"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: MIT"]},
            ("MIT", "classifier"),
        ),
        ({"License": ["Copyright (c) 2015, somebody"]}, ("not in its metadata", "")),
        ({}, ("not in its metadata", "")),
    ],
)
def test_a_licence_is_what_the_metadata_tells(told, expected, licences, monkeypatch):
    class Told:
        def __getitem__(self, key):
            return told.get(key, [None])[0]

        def get_all(self, key):
            return told.get(key)

    monkeypatch.setattr(licences, "metadata", lambda _: Told())
    assert licences.licence("x") == expected


def test_the_table_takes_the_place_of_the_old_one(licences):
    page = f"a\n{licences.START}\nold\n{licences.END}\nb\n"
    new = licences.with_table(page, "new")
    assert new == f"a\n{licences.START}\nnew\n{licences.END}\nb\n"
    assert licences.with_table(new, "new") == new


def test_what_is_not_installed_as_pinned_is_named(licences, monkeypatch):
    monkeypatch.setattr(licences, "pins", lambda: {"pytest": "0.1", "no-such-package": "1"})
    with pytest.raises(SystemExit) as told:
        licences.table()
    assert "no-such-package==1 is pinned and none installed; make install" in str(told.value)
    assert "pytest==0.1 is pinned and " in str(told.value)
