"""What a file's name says, and which files are listed."""

import os
import unicodedata
from pathlib import Path

import pytest

from data_prep.raw import (
    IMAGE_SUFFIXES,
    field_name,
    files_of_image,
    list_files,
    name_problem,
)

E_ACUTE, E_AND_ACCENT = "\u00e9", "e\u0301"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Case_1-01.tif", "Case_1-01"),
        ("Case_1-01.ome.tif", "Case_1-01"),
        ("Case_1-01.OME.TIF", "Case_1-01"),
        ("Case_1-01.ome.tiff", "Case_1-01"),
        ("Case_1-01.ome.btf", "Case_1-01"),
        ("Case_1-01.tif.tif", "Case_1-01"),  # a hidden ending, typed once more
        ("Case_1-01.svs.png", "Case_1-01"),
        ("Case_1-01 .tif", "Case_1-01"),
        (" Case 1 - 01 .jpg", "Case 1 - 01"),
        ("a.b.v1.2.tif", "a.b.v1.2"),
        ("home.tif", "home"),
        ("a.tif", "a"),
        (".tif", ".tif"),
        (f"caf{E_AND_ACCENT}-1.png", f"caf{E_ACUTE}-1"),
    ],
)
def test_the_name_of_a_field(file: str, name: str) -> None:
    assert field_name(file) == name


def test_only_files_that_may_be_images_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.TIF", "._b2.TIF", ".c.png", "Thumbs.db", "real.png", "d.tif.tmp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "B.tif").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "z-link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "z-lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "z-folder.png").symlink_to(tmp_path / "__MACOSX")
    os.mkfifo(tmp_path / "pipe.png")
    names = ["b2.TIF", "b10.png", "real.png", "z-link.png", "z-lost.png"]
    assert [path.name for path in list_files(tmp_path, IMAGE_SUFFIXES)] == names


def test_a_name_whose_results_would_have_too_long_names_is_refused() -> None:
    assert name_problem("a" * 200) == ""
    assert name_problem("漢" * 67) == "its name has 201 bytes, at most 200; rename it"
    assert "control characters" in name_problem("a\nb")
    assert name_problem(unicodedata.normalize("NFC", "--a # % \" ' $(x)")) == ""


def test_a_mirax_slide_is_its_index_and_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = ["a.mrxs", "a/Data0000.dat", "a/Slidedat.ini", "a.tif"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    files = files_of_image(tmp_path / "a.mrxs")
    assert [str(file.relative_to(tmp_path)) for file in files] == names[:3]
    assert files_of_image(tmp_path / "a.tif") == [tmp_path / "a.tif"]
