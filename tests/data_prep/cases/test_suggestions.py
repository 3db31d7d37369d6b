"""Names that leave one patient in several cases are refused, with an expression that would do."""

import itertools
import random
import re
import shlex
import time
from collections.abc import Sequence

import pytest

from common.command_line import UsageError
from data_prep.cases import names as names_module
from data_prep.cases.names import DEFAULT_REGEX, find_cases, shortened
from data_prep.cases.suggestions import check_cases

PATIENTS = ["patient10_roi03", "patient10_roi04", "patient11_roi03", "patient11_roi04"]


def refusal(names: Sequence[str], regex: str = DEFAULT_REGEX) -> str:
    with pytest.raises(UsageError) as caught:
        check_cases(names, regex)
    return str(caught.value)


def refused(names: Sequence[str]) -> str | None:
    try:
        check_cases(names, DEFAULT_REGEX)
    except UsageError as error:
        return str(error)
    return None


def shown(message: str) -> list[str]:
    """The expressions, as a shell would take them out of the lines that show them."""
    lines = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    words = [word for line in lines for word in shlex.split(line.partition("   ")[0])]
    assert all(word.startswith("case_regex=") for word in words)
    return [word.removeprefix("case_regex=") for word in words]


def grouped(names: Sequence[str], regex: str) -> list[str]:
    return [*find_cases(names, regex).values()]


def each_twice(*cases: str) -> list[str]:
    return [case for case in cases for _ in range(2)]


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (PATIENTS, each_twice("patient10", "patient11")),
        ([f"HE {name}" for name in PATIENTS], each_twice("patient10", "patient11")),
        (["Patient 1 a", "patient01_b", "patient2_a", "PATIENT-2"], each_twice("1", "2")),
        (["sub-01.a", "sub-01.b", "sub-02.a", "sub-02.b"], each_twice("sub-01", "sub-02")),
        (["x.case.1_a", "x.case.1_b", "x.case.2_a", "x.case.2_b"], each_twice("case.1", "case.2")),
        (
            [f"TCGA-A2-00{n}-01Z-00-DX1_{k}" for n in (10, 11) for k in (1, 2)],
            each_twice("TCGA-A2-0010", "TCGA-A2-0011"),
        ),
        (
            ["tcga-a2-0010_1", "tcga-a2-0010_2", "tcga-a2-0011_1"],
            ["tcga-a2-0010"] * 2 + ["tcga-a2-0011"],
        ),
        (["P10R3", "P10R4", "P11R3", "P11R4"], each_twice("P10", "P11")),
        (["P10 s1 r1", "P10 s2 r1", "P11 s1 r1", "P11 s1 r2"], each_twice("P10", "P11")),
        (
            [f"slide {n} region {k}" for n in (3, 4) for k in (1, 2)],
            each_twice("slide 3", "slide 4"),
        ),
        (["s1.roi2", "s1.roi3", "s2.roi2", "s2.roi3"], each_twice("s1", "s2")),
        (["12_3", "12_4", "13_3", "13_4"], each_twice("12", "13")),
        (["A12-left", "A12-right", "B3-left", "B3-right"], each_twice("A12", "B3")),
        (["10L", "10R", "11L", "11R"], each_twice("10", "11")),
        (["A12-left", "A12-right", "B3", "C4"], ["A12", "A12", "B3", "C4"]),
        (["O'Neil_1", "O'Neil_2", "Smith_1", "Smith_2"], each_twice("O'Neil", "Smith")),
        # some match the default, others do not
        (["Case_1-01", "Case_1-02", "Case_2_01", "Case_2_02"], each_twice("Case_1", "Case_2")),
        (["Case_1-01", "Case_1_02", "Case_2-01", "Case_2-02"], each_twice("Case_1", "Case_2")),
        (["a-1", "a-2", "b_1", "b_2"], each_twice("a", "b")),
        (
            ["TCGA-A2-0010-01Z-00-DX1_1", "TCGA-A2-0010-01Z-00-DX2_1", "Case_1-01", "Case_1-02"],
            each_twice("TCGA-A2-0010", "Case_1"),
        ),
        # all match the default, which leaves each alone, or a patient's slides
        ([f"{name}-1" for name in PATIENTS], each_twice("patient10", "patient11")),
        (["A12_r3-1", "A12_r4-1", "B7_r1-1", "B7_r2-1"], each_twice("A12", "B7")),
        (
            [f"TCGA-A2-00{n}-01Z-00-DX{slide}-1" for n in (10, 11) for slide in (1, 2)],
            each_twice("TCGA-A2-0010", "TCGA-A2-0011"),
        ),
    ],
    ids=lambda value: value[0],
)
def test_an_expression_is_shown_that_groups_them_and_is_taken(
    names: list[str], cases: list[str]
) -> None:
    message = refusal(names)
    (regex,) = shown(message)
    assert grouped(names, regex) == cases
    assert f"   {len(set(cases))} cases: {', '.join(dict.fromkeys(cases))}\n" in message
    assert "give case_regex=each" in message
    check_cases(names, regex)
    check_cases(names, "each")


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{number:03}" for number in range(1, 101)],
        [f"img{number:03}" for number in range(1, 101)],
        [f"img_{number:03}_HE" for number in range(1, 101)],
        ["abc", "def", "ghi"],
        ["Case_1-01", "Case_1-02", "Case_10-01"],
        ["Case_1-01", "Case_2-01", "Case_3-01"],
        ["Case_1-01", "Case_1-02", "Case_2-01", "overview_1"],
        ["Case_1-01", "Case_2-01", "overview_1"],
        ["Case_1A-1", "Case_1A-2", "Case_1B-1"],
        # one field per patient
        [f"patient{number}" for number in range(1, 10)],
        [f"patient_{number:02}_HE" for number in range(1, 10)],
        ["A_patient1", "A_patient2", "B_patient3"],
        ["P1-left", "P2-left", "P3-right"],
        ["TCGA-A2-0010-01Z-00-DX1", "TCGA-A2-0011-01Z-00-DX1", "TCGA-B6-0010-01Z-00-DX1"],
        ["TCGA-A2-0010", "TCGA-A2-0011", "TCGA-B6-0010"],
        ["TCGA-A2-0010-1", "TCGA-A2-0010-2", "TCGA-A2-0011-1"],
        ["one"],
        [],
    ],
    ids=lambda names: names[0] if names else "none",
)
def test_where_nothing_is_to_be_grouped_nothing_is_refused(names: list[str]) -> None:
    check_cases(names, DEFAULT_REGEX)


def test_the_refusal_says_which_two_fields_and_how_many_names() -> None:
    message = refusal(PATIENTS)
    assert message.startswith(
        "one patient could be in train and in test: patient10_roi03 and patient10_roi04 would be"
        " two cases, because 4 of 4 names do not match case_regex (patient10_roi03,"
        " patient10_roi04, ...). Give:\n"
        "  'case_regex=(?P<case>patient\\d+).*'   2 cases: patient10, patient11\n"
    )


def test_where_only_the_place_tells_each_way_to_group_is_shown() -> None:
    """Tiles of two slides: all but the last part is a column of them, the first part a slide."""
    names = [f"A{slide}_x{x}_y{y}" for slide in (1, 2) for x in (0, 512) for y in (0, 512)]
    fine, coarse = shown(refusal(names))
    assert set(grouped(names, fine)) == {"A1_x0", "A1_x512", "A2_x0", "A2_x512"}
    assert set(grouped(names, coarse)) == {"A1", "A2"}


def test_cases_that_the_default_makes_can_be_kept() -> None:
    """Two slides of a patient, each of two fields: not each field is a patient of its own."""
    names = [f"patient{p}_s{s}-{k}" for p in (1, 2) for s in (1, 2) for k in (1, 2)]
    message = refusal(names)
    kept = re.search(r"to keep the cases as they are, give (\S+)$", message)
    assert kept
    regex = shlex.split(kept[1])[0].removeprefix("case_regex=")
    assert grouped(names, regex) == grouped(names, DEFAULT_REGEX)
    check_cases(names, regex)


def crossed(*parts: str) -> list[str]:
    """'1 2', '-A -B': 1-A, 1-B, 2-A, 2-B."""
    return ["".join(chosen) for chosen in itertools.product(*map(str.split, parts))]


TWO = "-1 -2"  # two fields of each


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        # a patient's number, and a slide's letter, stain, side or shorter number
        (crossed("1001 1002", "-A -B", "-1"), "1001 1002"),
        (crossed("1001 1002", "-A -B -C -D", TWO), "1001 1002"),
        (crossed("1001 1002", "-HE -PAS", TWO), "1001 1002"),
        (crossed("1001 1002", "-CD3 -CD20", TWO), "1001 1002"),
        (crossed("1001 1002", "-01 -02 -03", TWO), "1001 1002"),
        (crossed("1001 1002", "_S1 _S2 _S3", TWO), "1001 1002"),
        (crossed("H12-1234 H12-1235 H13-0003", "-A1 -B1", TWO), "H12-1234 H12-1235 H13-0003"),
        (crossed("12-1234 12-1235 13-0003", "-1 -2", TWO), "12-1234 12-1235 13-0003"),
        (crossed("H12-1234 H12-1235", "-A-1 -A-2 -B-1", TWO), "H12-1234 H12-1235"),
        (crossed("S2019.00012 S2020.00013", ".A .B", TWO), "S2019.00012 S2020.00013"),
        (crossed("2019_0012 2020_0013", "_A _B", TWO), "2019_0012 2020_0013"),
        (crossed("HE_1001 HE_1002", "_A _B", TWO), "HE_1001 HE_1002"),
        (
            crossed("SOB_M_DC-14-2523 SOB_B_A-14-225", "-40 -100", "-001 -002"),
            "SOB_M_DC-14-2523 SOB_B_A-14-225",
        ),
        (crossed("A12 B3", "-S1 -S2", TWO), "A12 B3"),
        (crossed("BR01 BR02", "-L -R", TWO), "BR01 BR02"),
        (crossed("S01 S02", "_HE _KI67", TWO), "S01 S02"),
        (crossed("1001 1002", "A B", TWO), "1001 1002"),
        (crossed("H12-1234 H12-1235", "A1 B1", TWO), "H12-1234 H12-1235"),
        ([*crossed("1001 1002", "-A -B", TWO), "1003-1", "1003-2"], "1001 1002 1003"),
        ([*crossed("H12-1234 H12-1235", "-A1 -B1", TWO), "xy-1"], "H12-1234 H12-1235 xy"),
        ([*crossed("1001 1002", "-A -B", TWO), "overview"], "1001 1002 overview"),
        # years as patients' numbers; the same patients at dates
        (crossed("2001 2002 2003", "-A -B", TWO), "2001 2002 2003"),
        (crossed("A7 B12", "_2019-05-01 _2020-06-30", TWO), "A7 B12"),
        (crossed("1007 1012", "-20190501 -20200630", TWO), "1007 1012"),
        # as many digits, or fewer: then the slides are the same few
        (crossed("12 13 14", "-01 -02", TWO), "12 13 14"),
        (crossed("m3 m4", "-liver -lung", TWO), "m3 m4"),
        (crossed("1001 1002", "-2019 -2020", TWO), "1001 1002"),
        (crossed("smith jones mayer", "-left -right", TWO), "smith jones mayer"),
        (crossed("AB CD EF", "-1 -2", TWO), "AB CD EF"),
        # letters and a number
        (crossed("A B C", "1 2"), "A B C"),
        (crossed("A B", "1 2"), "A B"),
        (crossed("smith jones", "01 02 03"), "smith jones"),
        (["AB1", "AB2", "CD1", "overview"], "AB CD overview"),
        # the cases of the default are the patients, by all that can be told
        (["Case_1-01", "Case_1-02", "Case_2-01", "Case_17-01"], None),
        (crossed("patient-", "07 08", "-03 -04"), None),
        (crossed("S01 S02", TWO), None),
        (crossed("A1 A2 B1", TWO), None),
        (crossed("1001 1002", TWO), None),
        (crossed("H12 H13", "-1234 -1235 -987", TWO), None),
        (["H12-1234-01", "H12-1235-01", "H13-0001-01"], None),
        (["S2019-12-1", "S2019-123-1", "S2020-7-1", "S2020-0-1"], None),
        (["2019-123-1", "2019-124-1", "2020-125-1", "2020-126-1"], None),
        (crossed("01 02 03", "-001 -002 -003", TWO), None),
        (crossed("site1 site2", "-3 -4 -5", TWO), None),
        (crossed("center10 center20", "-3 -4 -5", TWO), None),
        (crossed("batch3 batch4", "_P1 _P2", TWO), None),
        (crossed("TMA1 TMA2", "-A1 -A2 -B1", TWO), None),
        (crossed("Lung Breast", "-1 -2 -3", TWO), None),
        (crossed("tumor normal", "-smith -jones -mayer", TWO), None),
        (["S01_HE-1", "S01_HE-2", "S02_HE-1", "S03_PAS-1"], None),
        (crossed("img_0 img_1", TWO), None),
        # dates
        (["2019-05-01-3", "2019-05-01-4", "2019-05-02-3", "2019-06-01-3", "2020-06-01-3"], None),
        (["2019-05-01", "2019-06-01", "2020-05-01"], None),
        (["01.05.2019-1", "01.06.2019-1", "02.05.2019-1", "02.06.2020-1"], None),
        (crossed("20190501 20190502", "-12 -13", TWO), None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_how_files_are_named_here_and_there(names: list[str], patients: str | None) -> None:
    message = refused(names)
    if patients is None:
        assert message is None
        return
    assert message
    (regex,) = shown(message)
    assert list(dict.fromkeys(grouped(names, regex))) == patients.split()
    check_cases(names, regex)


def random_names(draw: random.Random) -> list[str]:
    """Names of one style: words of few parts, joined by few separators, some parts left out."""
    words = draw.choice(
        (
            ("A", "b", "AB", "GH", "a"),
            ("1", "2", "01", "12", "1001", "2019", "05"),
            ("patient1", "Patient 02", "P3", "p4", "case_1", "TCGA-A2-0010", "tcga-a2-0011", "sub"),
            ("slide1", "SLIDE 2", "block-3", "x", "7"),
            ("é1", "漢字2", "ß", "\u0661\u0662", "\u017fub-1", "k", "\u212a", "\u01311", "😀"),
            (".*", "(a", "[b]", "c|d", "\\d+", "?", "'", '"', "$1", "^", "{2}", "#", "~"),
            ("", "A", "1", "a b"),
        )
    )
    separators = draw.choice(("-", "_", " ", ".", "", "-_", "-_. "))
    names: dict[str, None] = {}
    for _ in range(draw.choice((1, 2, 5, 8, 20))):
        parts = draw.choices(words, k=draw.randint(1, 4)) + draw.choice(([], ["1"], ["02"]))
        name = parts[0] + "".join(draw.choice(separators or ("",)) + part for part in parts[1:])
        names[draw.choice((name, name, name, f"-{name}", f"{name}_", f" {name}."))] = None
    return [*names]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_names_each_expression_shown_does_what_is_said_of_it(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(150):
        names = random_names(draw)
        message = refused(names)
        if message is None:
            continue
        for regex in (expressions := shown(message)):
            found = [
                match["case"] if match else "" for match in map(re.compile(regex).fullmatch, names)
            ]
            assert all(found), (regex, names)
            cases = list(dict.fromkeys(found))
            said = (
                f"{shlex.quote(f'case_regex={regex}')}   {len(cases)} cases: {shortened(cases)}\n"
            )
            assert said in message
            assert len(cases) > 1
            check_cases(names, regex)
        assert expressions
        if kept := re.search(r"keep the cases as they are, give (.*)$", message):
            regex = shlex.split(kept[1])[0].removeprefix("case_regex=")
            assert grouped(names, regex) == grouped(names, DEFAULT_REGEX)
            check_cases(names, regex)


@pytest.mark.parametrize("separator", ["_", "-", " "])
def test_five_hundred_names_are_looked_through_at_once(separator: str) -> None:
    names = [separator.join((f"{n // 50}", f"{n % 50}", "a")) for n in range(500)]
    *_, coarse = shown(refusal(names))
    assert len(set(grouped(names, coarse))) == 10


def test_names_of_a_hundred_words_are_looked_through_in_a_second() -> None:
    names = [f"{'a-' * 100}{number}-{number}" for number in range(300)]
    began_at = time.process_time()
    refused(names)
    assert time.process_time() - began_at < 5


def test_an_own_expression_that_takes_too_long_widened_is_not_shown_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names_module, "MATCH_LIMIT_S", 0.2)
    message = refusal([f"b{'a' * 40}!"], r"(?P<case>(a+)+)")
    assert shlex.quote("case_regex=.*?(?P<case>(a+)+).*") in message


def test_an_expression_that_not_all_names_match_is_not_shown() -> None:
    """All up to the first number, of names without one."""
    names = ["AB_a", "AB_b", "CD_a", "CD_b", "EF_a", "GH_a"]
    (regex,) = shown(refusal(names))
    assert grouped(names, regex) == ["AB", "AB", "CD", "CD", "EF", "GH"]


class TestOwnExpressions:
    def test_one_that_matches_all_names_is_taken_whatever_it_groups(self) -> None:
        check_cases(PATIENTS, r"(?P<case>.+)")
        check_cases(PATIENTS, r".*(?P<case>roi\d+)")

    @pytest.mark.parametrize(
        ("regex", "wider"),
        [
            (r"(?P<case>patient\d+)", r"(?P<case>patient\d+).*"),
            (r"(?P<case>atient\d+)_roi\d+", r".*?(?P<case>atient\d+)_roi\d+"),
            (r"(?P<case>patient1[01]|x)", r"(?:(?P<case>patient1[01]|x)).*"),
            (r"(?i)(?P<case>PATIENT\d+)", r"(?i)(?P<case>PATIENT\d+).*"),
        ],
    )
    def test_one_that_matches_only_a_part_of_a_name_is_shown_widened(
        self, regex: str, wider: str
    ) -> None:
        message = refusal(PATIENTS, regex)
        assert message.startswith(
            f"case_regex={regex}: matches none of 4 names, such as patient10_roi03; it must match"
            f" the whole name without its ending, as {shlex.quote(f'case_regex={wider}')} does"
            " (2 cases: "
        )

    def test_one_that_has_nothing_of_a_name_is_told_what_it_must_match(self) -> None:
        message = refusal(PATIENTS, r"(?P<case>slide\d+)")
        assert "such as patient10_roi03; it must match the whole name" in message
        assert message.endswith(r"as '(?P<case>patient\d+).*' matches patient10_roi03")

    def test_names_that_it_does_not_match_are_looked_at_too(self) -> None:
        regex = r"(?P<case>patient\d+)_.*"
        names = [*PATIENTS, "patient12-a", "patient12-b"]
        (better,) = shown(refusal(names, regex))
        assert grouped(names, better) == each_twice("patient10", "patient11", "patient12")
        check_cases([*PATIENTS, "overview"], regex)
