"""Promise 3: a folder counts as a checkpoint only if it is as it was written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.checkpoints.conftest import write_complete
from train.checkpoints.checkpoint_files import verify
from train.checkpoints.upkeep import remove_checkpoint

FILES = (".metadata", "__0_0.distcp", "state.json")
WHOLE: dict[str, Any] = {"format": 1, "world_size": 1, "config_sha256": "0", "files": {}}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "bytes, not"),
        (lambda file: file.write_bytes(b""), "has 0 bytes"),
        (lambda file: file.unlink() or file.mkdir(), "is missing"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[Path], object], reason: str, two_steps: Path
) -> None:
    path = two_steps / "step_00000002"
    damage(path / name)
    problem = verify(path)
    assert name in problem
    assert reason in problem


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_shows(name: str, two_steps: Path) -> None:
    """40 of 40 loaded in silence before there were hashes. Here: a bit of every 29th byte."""
    path = two_steps / "step_00000002"
    content = bytearray((path / name).read_bytes())
    for place in range(0, len(content), 29):
        content[place] ^= 1 << place % 8
        (path / name).write_bytes(content)
        assert verify(path) == f"{name} is damaged (sha256 differs)"
        content[place] ^= 1 << place % 8
    (path / name).write_bytes(content)
    assert verify(path) == ""


def test_a_flipped_bit_of_complete_shows(two_steps: Path) -> None:
    path = two_steps / "step_00000002"
    content = bytearray((path / "COMPLETE").read_bytes())
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        (path / "COMPLETE").write_bytes(content)
        assert verify(path), f"byte {place}: {bytes(content)!r}"
        content[place] ^= 1 << place % 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no COMPLETE"),
        ("", "COMPLETE is damaged"),
        ('{"format": 1, "files": {', "COMPLETE is damaged"),
        ("[]", "COMPLETE is damaged"),
        ("null", "COMPLETE is damaged"),
        ("{}", "COMPLETE is damaged"),
        ('{"format": 1}', "COMPLETE is damaged"),
        ('{"format": 1, "files": {}, "sha256": "0"}', "COMPLETE is damaged"),
    ],
)
def test_a_damaged_complete_is_none(content: str | None, reason: str, two_steps: Path) -> None:
    file = two_steps / "step_00000002" / "COMPLETE"
    file.unlink() if content is None else file.write_text(content)
    assert re.match(reason, verify(two_steps / "step_00000002"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"format": 1, "files": {"state.json": 7}}, "COMPLETE is damaged"),
        ({"format": 1, "files": {"state.json": {"bytes": 1}}}, "COMPLETE is damaged"),
        (WHOLE | {"files": {"state.json": {"bytes": 1}}}, ".*sha256: is missing"),
        (WHOLE, ".*it does not list .metadata"),
        ({"format": 2, "files": {}}, "format 2, this version reads 1"),
    ],
)
def test_a_complete_that_says_something_else_is_none(
    content: dict[str, Any], reason: str, two_steps: Path
) -> None:
    write_complete(two_steps / "step_00000002", content)
    assert re.match(reason, verify(two_steps / "step_00000002"))


def test_a_complete_that_names_a_file_elsewhere_is_none(two_steps: Path) -> None:
    path = two_steps / "step_00000002"
    files = {"../latest": {"bytes": 14, "sha256": "0"}}
    content = {"format": 1, "world_size": 1, "config_sha256": "0", "files": files}
    write_complete(path, content)
    assert "'../latest' is not a plain file name" in verify(path)
    remove_checkpoint(path)
    assert (two_steps / "latest").exists()


def test_a_folder_that_is_not_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert verify(tmp_path / "step_00000009") == "no COMPLETE"
