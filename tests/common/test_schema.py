"""Files from elsewhere: of a limited size, and of the shape that a schema says."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from common.schema import read_checked, read_lines, read_small, require_printable, validated


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    size: int
    share: float
    words: list[str]
    inner: Inner
    missing: float | None = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size: {self.size}; expected at least 0")


RIGHT = {"size": 1, "share": 2, "words": ["a"], "inner": {"name": "é"}, "missing": None}


def test_what_is_right_is_read_and_other_keys_are_passed_over() -> None:
    read = validated(Outer, json.dumps(RIGHT | {"later": 1}))
    assert read == Outer(1, 2.0, ["a"], Inner("é"))


def test_a_name_that_is_not_utf_8_is_kept() -> None:
    assert validated(str, json.dumps(os.fsdecode(b"Caf\xe9"))) == os.fsdecode(b"Caf\xe9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "1"}, "size: expected a valid integer, found '1'"),
        ({"size": True}, "size: expected a valid integer, found True"),
        ({"size": -1}, "size: -1; expected at least 0"),
        ({"share": float("nan")}, "NaN is no JSON"),
        ({"share": None}, "share: expected a valid number, found None"),
        ({"words": "a"}, "words: expected a valid list, found 'a'"),
        ({"words": ["a", 7]}, "words.1: expected a valid string, found 7"),
        ({"inner": {}}, "inner.name: is missing"),
        (
            {"inner": {"name": ["\x1b" * 99]}},
            "inner.name: expected a valid string, found ['\\\\x1b",
        ),
    ],
)
def test_the_first_wrong_key_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        validated(Outer, json.dumps(RIGHT | change))
    assert str(caught.value).startswith(message.replace("\\\\", "\\"))
    assert len(str(caught.value)) < 150


def test_a_key_with_a_default_must_be_there_too() -> None:
    with pytest.raises(ValueError, match="missing: is missing"):
        validated(Outer, json.dumps({key: RIGHT[key] for key in RIGHT if key != "missing"}))


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 10**5, b"9" * 5000, b"1e999"])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        validated(float, content)


def test_no_number_is_infinite_wherever_it_is() -> None:
    with pytest.raises(ValueError, match="1e400 is no number"):
        validated(dict[str, Any], b'{"a": {"b": [1e400]}}')


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "not a file"),
        (lambda path: path.touch() or os.truncate(path, 2**31), "2147483648 bytes long"),
        (Path.mkdir, "directory"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    ],
)
def test_what_is_no_small_file_is_refused_before_it_is_read(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.json")
    with pytest.raises((OSError, ValueError), match=message):
        read_checked(tmp_path / "a.json", Outer)


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes long; expected at most 4"):
        read_small(tmp_path / "a", 4)


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": [2]}\n{"d": 3')
    assert read_lines(path, object) == [{"a": 1}, {"c": [2]}]
    with pytest.raises(UserError, match=r"lines\.jsonl: line 3: c: expected a valid integer"):
        read_lines(path, dict[str, int])
    assert read_lines(tmp_path / "none.jsonl", object) == []


@pytest.mark.parametrize("value", ["a\x1b", {"a": {"b": ["\n"]}}, {"\0": 1}, ["\x9b"]])
def test_control_characters_are_refused_wherever_they_are(value: object) -> None:
    with pytest.raises(ValueError, match="holds a control character"):
        require_printable(value)
    require_printable({"é": ["a b", 1, None]})
