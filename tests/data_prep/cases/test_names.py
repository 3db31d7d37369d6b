"""What a name tells of its case, and expressions that never end."""

import threading
import time

import pytest

from common.command_line import UsageError
from data_prep.cases import names
from data_prep.cases.names import DEFAULT_REGEX, check_regex, find_cases, shortened, unmatched_text

ENDLESS = r"(?P<case>(a+)+)-\d+"  # tries each of 2 ** 40 ways to cut 40 letters


@pytest.mark.parametrize(
    ("name", "regex", "case"),
    [
        ("Case_1-01", DEFAULT_REGEX, "Case_1"),
        ("Case_10-7", DEFAULT_REGEX, "Case_10"),
        ("TCGA-AA-0001-12", DEFAULT_REGEX, "TCGA-AA-0001"),
        ("slide", DEFAULT_REGEX, "slide"),  # tells no case: one of its own
        ("Case_1-01b", DEFAULT_REGEX, "Case_1-01b"),
        ("P007_s3", r"P(?P<case>\d+)_s\d", "007"),
        ("slide", r"(?:P(?P<case>\d+)_)?.*", "slide"),  # matches, but without a case
        ("Case_1-01", "each", "Case_1-01"),
    ],
)
def test_the_case_of_a_field(name: str, regex: str, case: str) -> None:
    assert find_cases([name], regex) == {name: case}


@pytest.mark.parametrize("regex", ["(", ".*", "(?P<case>a{99999999999999999999})", "Each"])
def test_what_is_no_expression_with_a_case_is_refused(regex: str) -> None:
    with pytest.raises(ValueError, match=r"^case_regex="):
        check_regex(regex)


def test_an_expression_that_never_ends_is_refused_and_leaves_no_clock_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "MATCH_LIMIT_S", 0.2)
    with pytest.raises(UsageError, match=r"^case_regex=.* takes more than 0\.2 s to match aaa"):
        find_cases(["aa-1", "a" * 40], ENDLESS)
    assert find_cases(["aa-1"], ENDLESS) == {"aa-1": "aa"}
    matched_at = time.process_time()
    while time.process_time() - matched_at < 1:  # a clock would end the process
        pass


def test_the_time_for_all_names_together_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes some 20 ms."""
    monkeypatch.setattr(names, "MATCH_LIMIT_S", 0.2)
    began_at = time.process_time()
    with pytest.raises(UsageError, match="takes more than"):
        find_cases([f"{'a' * 18}{number}" for number in range(1000)], ENDLESS)
    assert time.process_time() - began_at < 2


def test_an_expression_typed_in_another_form_of_unicode_matches() -> None:
    assert find_cases(["Ren\u00e9_1"], "(?P<case>Rene\u0301)_[0-9]") == {"Ren\u00e9_1": "Ren\u00e9"}


def test_a_name_is_matched_in_a_thread_too() -> None:
    """Signals do not reach it, nor can it ask for one."""
    found: dict[str, str] = {}
    thread = threading.Thread(target=lambda: found.update(find_cases(["Case_1-01"], DEFAULT_REGEX)))
    thread.start()
    thread.join()
    assert found == {"Case_1-01": "Case_1"}


def test_names_that_do_not_match_are_counted_and_the_first_told() -> None:
    given = ["Case_1-01", "a", "b", "Case_2-01", "c"]
    told = "3 of 5 names do not match case_regex (a, b, ...)"
    assert unmatched_text(given, DEFAULT_REGEX) == told
    assert unmatched_text(given[:2], DEFAULT_REGEX).startswith("1 of 2 names do not match")
    assert unmatched_text(["Case_1-01"], DEFAULT_REGEX) == ""
    assert unmatched_text(given, "each") == ""


def test_a_long_list_of_cases_is_cut() -> None:
    cases = [f"c{number}" for number in range(21)]
    assert shortened(cases[:20]) == ", ".join(cases[:20])
    assert shortened(cases) == "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 11 more"
