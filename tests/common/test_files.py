"""Files that are whole or not there, JSON lines that are read while they are written, names."""

import os
from pathlib import Path

import pytest

from common import files
from common.files import write_atomically


def test_what_is_added_to_goes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        files.through_no_link(tmp_path / "metrics.jsonl", os.O_WRONLY)
    with open(tmp_path / "new", "a", opener=files.through_no_link) as file:
        file.write("x")
    assert (tmp_path / "theirs").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\0", "a\nb", "\x1b[2J", "\x9b", 1, None]
)
def test_what_is_no_plain_name(name: object) -> None:
    assert not files.is_plain(name)


def test_plain_names_and_paths() -> None:
    assert all(map(files.is_plain, ["a", "a b.tif", ".a", "é", "..a", "a\\b"]))
    assert all(map(files.is_inside, ["a", "a/b.c"]))
    assert not any(map(files.is_inside, ["/a", "a//b", "a/../b", "a/", "../a", 3]))


def test_a_file_is_replaced_whole_or_not_at_all_and_a_failure_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(self: Path, target: Path) -> None:
        assert self.read_bytes() == b"new"  # whole before it gets the name
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no power"):
            write_atomically(path, b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
    write_atomically(path, b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "new")]


def test_a_full_disk_is_told_with_the_file_and_nothing_of_it_stays(small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/disk/a.txt'"):
        files.write_atomically(small_disk / "a.txt", b"x" * 2**17)
    assert not [*small_disk.iterdir()]
