"""Cases that differ only in how they are written are refused."""

import re
import shlex

import pytest

from common.command_line import UsageError
from data_prep.cases.names import DEFAULT_REGEX, find_cases
from data_prep.cases.similar import check_similar, similar_cases


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Case_1", "case_1"),
        ("Case_1", "CASE_1"),
        ("Case_1", "Case 1"),
        ("Case_1", "Case1"),
        ("Case-1", "Case.1"),
        ("Case_1", "Case__1"),
        ("Case_1", "Case_01"),
        ("P1", "\uff301"),  # a wide P
        ("P1", "P\u00b9"),  # a small 1 above the line
        ("P 1", "P\u00a01"),  # a blank that breaks no line
        ("P1", "P\u200b1"),  # a blank of no width
        ("P-1", "P\u20131"),  # a dash
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_two_ways_to_write_a_case_are_similar(one: str, other: str) -> None:
    assert similar_cases([one, "Case_2", other]) == [[one, other]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Case_1", "Case_2"),
        ("Case_1", "Case_10"),
        ("1-12", "11-2"),
        ("A+", "A-"),
        ("A1B", "AB1"),
        ("Rene", "Ren\u00e9"),
        ("12-1", "1-21"),
    ],
)
def test_others_are_not(one: str, other: str) -> None:
    assert similar_cases([one, other]) == []


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["Case_1-01", "case_1-02", "CASE 01-03", "Case_2-01"], ["1", "1", "1", "2"]),
        (["Lung-1-01", "lung-01-02", "Lung-2-01"], ["1", "1", "2"]),
        (["HE P1-1", "HE p1-2", "HE P2-1"], ["1", "1", "2"]),
        (["Smith-1", "smith-2", "Jones-1"], None),
        (["A1-1", "a1-2", "B1-1"], None),  # the number alone would join A1 with B1
    ],
)
def test_the_refusal_shows_an_expression_that_joins_them_if_there_is_one(
    names: list[str], cases: list[str] | None
) -> None:
    with pytest.raises(UsageError) as caught:
        check_similar(names, DEFAULT_REGEX)
    message = str(caught.value)
    first, second = (find_cases(names, DEFAULT_REGEX)[name] for name in names[:2])
    assert f"in train and in test: {first} and {second}" in message
    assert message.endswith("if they are different patients, give similar_cases=keep")
    shown = re.search(r"\n  (.*)   \d+ cases: ", message)
    assert bool(shown) == bool(cases)
    if shown and cases:
        regex = shlex.split(shown[1])[0].removeprefix("case_regex=")
        assert [*find_cases(names, regex).values()] == cases
        check_similar(names, regex)


def test_names_that_match_nothing_and_own_expressions_are_looked_at_too() -> None:
    with pytest.raises(UsageError, match="Overview and overview would be 2 cases"):
        check_similar(["Overview", "overview", "Case_1-01"], DEFAULT_REGEX)
    with pytest.raises(UsageError, match="P1 and p1 would be 2 cases"):
        check_similar(["P1_a", "p1_b"], "(?P<case>.+)_.")
    check_similar(["Overview", "overview"], "each")
