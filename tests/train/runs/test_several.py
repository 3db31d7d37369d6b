"""Folders of several runs: what runs= names."""

import re
from pathlib import Path

import pytest

from common.command_line import UsageError
from train.runs.several import expanded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("trial-10", "trial-9", "trial-1", "other[1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "trial-2").write_text("not a folder")
    (tmp_path / "b.safetensors").write_bytes(b"")
    return tmp_path


def test_a_pattern_stands_for_folders_by_their_numbers(folder: Path) -> None:
    assert expanded([f"{folder}/trial-*"]) == [folder / f"trial-{n}" for n in (1, 9, 10)]
    assert expanded([f"{folder}/*.safetensors"]) == [folder / "b.safetensors"]


def test_names_keep_their_order_and_count_once(folder: Path) -> None:
    given = [f"{folder}/trial-9", f"{folder}/trial-?", "nowhere", f"{folder}/other[1]"]
    assert expanded(given) == [
        folder / "trial-9",
        folder / "trial-1",
        Path("nowhere"),  # said by what reads it
        folder / "other[1]",  # a name that is there is no pattern
    ]


def test_a_pattern_that_nothing_fits_is_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=re.escape(f"runs={folder}/fold-*: no folder and no .safetensors")
    ):
        expanded([f"{folder}/fold-*"])
