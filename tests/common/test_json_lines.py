"""JSON lines that are read while they are written."""

from pathlib import Path

from common.json_lines import read_lines


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": [2]}\n{"d": 3')
    assert read_lines(path) == [{"a": 1}, {"c": [2]}]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
