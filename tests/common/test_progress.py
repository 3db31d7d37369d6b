"""Progress of a command: a bar on a terminal, lines in a log."""

import sys

import pytest

from common.progress import track


def test_items_pass_in_order_and_a_log_gets_a_line_when_one_is_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    due = track("abc", total=3, label="prepare", unit="field", every_s=0.0)
    assert list(due) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        f"prepare: {done} of 3 fields" for done in (1, 2, 3)
    ]


def test_items_count_for_what_they_are_worth_and_on_top_of_what_was_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"total": 10, "label": "load", "unit": "byte", "done": 3, "count": len}
    assert list(track(["ab", "cde"], every_s=0.0, **given)) == ["ab", "cde"]
    assert capsys.readouterr().err.splitlines() == [
        "load: 5 of 10 bytes",
        "load: 8 of 10 bytes",
    ]


def test_a_log_gets_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"total": 3, "label": "write", "unit": "row", "count": len}
    assert list(track(["", "ab", "", "c"], every_s=0.0, **given))
    assert capsys.readouterr().err.splitlines() == ["write: 2 of 3 rows", "write: 3 of 3 rows"]


def test_a_log_gets_nothing_before_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", total=3, label="x", unit="y")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track("abc", total=3, label="prepare", unit="field")) == [*"abc"]
    bar = capsys.readouterr().err
    assert "prepare: 100%" in bar
    assert "3/3" in bar


def test_a_bar_of_millions_begins_at_what_was_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    given = {"total": 4_000_000, "label": "load", "unit": "byte", "done": 1_000_000}
    assert list(track("ab", count=lambda item: 1_500_000, **given)) == [*"ab"]
    bar = capsys.readouterr().err
    assert "25%" in bar
    assert "4.00M/4.00M" in bar
