"""What may be kept of an output folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.tasks.outputs import Refused, find_outputs, safe_name


@pytest.mark.parametrize("name", ["a", "a/b.txt", "CON", "ü/ö", ".hidden", "a b", "…", "a..b"])
def test_plain_relative_names_are_kept_as_they_are(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "a//b",
        "a/",
        "./a",
        "a\nb",
        "a\0b",
        "\x1b[0m",
        "a\u202eb",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        safe_name(name)
    assert caught.value.kind == "input"


def test_a_name_of_more_than_a_kibibyte_is_a_limit() -> None:
    with pytest.raises(Refused) as caught:
        safe_name("ä" * 513)
    assert caught.value.kind == "limit"


@given(st.text())
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    try:
        path = safe_name(name)
    except Refused:
        return
    root = "/root/folder"
    assert os.path.normpath(f"{root}/{path}") == f"{root}/{path}"


def test_files_are_found_below_folders_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "d").write_bytes(b"123")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert find_outputs(tmp_path, 3) == [("a", 0), ("b/c/d", 3)]
    with pytest.raises(Refused) as caught:
        find_outputs(tmp_path, 2)
    assert caught.value.kind == "limit"


def test_a_sparse_file_counts_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Refused, match="larger than"):
        find_outputs(tmp_path, 1 << 30)


def test_a_deep_path_is_bounded(tmp_path: Path) -> None:
    at = tmp_path
    for _ in range(6):
        at = at / ("d" * 200)
        at.mkdir()
    with pytest.raises(Refused) as caught:
        find_outputs(tmp_path, 1)
    assert caught.value.kind == "limit"
